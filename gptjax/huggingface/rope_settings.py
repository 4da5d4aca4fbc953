"""Rotary positions in a config.json of the Llama family, and as fields of ModelConfig.

transformers 5 keeps all in rope_parameters; releases before keep the period outside, as rope_theta, and what scales the
rates in rope_scaling. A file may have all three.
"""

import dataclasses

from gptjax.config.fields import ModelConfig
from gptjax.errors import UserError, imported, make_chosen, written_call
from gptjax.huggingface.base import COUNT, POSITIVE, TABLE, Field
from gptjax.models import rotary

FIELDS = (  # the first two of releases before 5, the third since
    Field("rope_theta", None, POSITIVE, 10000.0),
    Field("rope_scaling", None, TABLE, None),
    Field("rope_parameters", None, TABLE, None),
    Field("partial_rotary_factor", None, POSITIVE, 1.0),
    Field("original_max_position_embeddings", None, COUNT, None),
)
_LENGTH = "original_max_position_embeddings"  # theirs for original_context_length
_OF_ANY_TYPE = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
_INTO_FACTOR = {"mscale", "mscale_all_dim"}  # of yarn, which make an attention_factor


def conflicts(filled: dict) -> list[tuple[bool, str]]:
    """(whether it stands, what ours has no equal for)."""
    name, settings = _settings(filled)
    turned = settings.get("partial_rotary_factor", filled["partial_rotary_factor"])
    period = theta(filled)
    scaling = _type(settings)
    problem = None if scaling == "default" else _problem(filled)
    tables = sorted(each for each, value in settings.items() if type(value) is dict)
    return [
        (bool(tables), f"its rotary positions are others in each kind of layer ({name}: {', '.join(tables)})"),
        (
            scaling not in ("default", *rotary.SCALINGS),
            f"its rotary positions are scaled in another way ({name}: rope_type={scaling!r}), not one of"
            f" {', '.join(rotary.SCALINGS)}",
        ),
        (problem is not None, f"{name}: {problem}"),
        (turned != 1, f"its rotary positions turn a part of each head only (partial_rotary_factor={turned!r})"),
        (not POSITIVE.fits(period), f"{name} has rope_theta={period!r}; expected {POSITIVE.expected}"),
    ]


def unread(values: dict) -> list[str]:
    """The settings of a config.json that transformers does not read for its rope_type."""
    name, settings = _settings(values)
    parameters = _parameters(_type(settings))
    read = {_theirs(parameter) for parameter in parameters} | _OF_ANY_TYPE
    read |= _INTO_FACTOR if "attention_factor" in parameters else set()
    return [f"{name}.{each}" for each in settings.keys() - read]


def theta(filled: dict):
    """The base period in tokens, which may be no number."""
    return _settings(filled)[1].get("rope_theta", filled["rope_theta"])


def scaling_in(filled: dict) -> str | None:
    """model.rope_scaling of a config.json, such as "linear(factor=2.0)"; None: plain rates.

    Raises UserError: a parameter is missing or is no number.
    """
    settings = _settings(filled)[1]
    name = _type(settings)
    if name == "default":
        return None
    values = {each: settings.get(_theirs(each)) for each in _parameters(name)}
    if "original_context_length" in values:
        outside, inside = filled[_LENGTH], values["original_context_length"]
        values["original_context_length"] = outside or inside or filled["max_position_embeddings"]
    if name == "yarn":
        values |= _of_yarn(settings, values, filled["max_position_embeddings"])
    as_typed = {each: value for each, value in values.items() if value is not None}
    return _call(name, _different(make_chosen(_call(name, as_typed), rotary.SCALINGS, "rope_type")))


def _call(name: str, parameters: dict) -> str:
    return f"{name}({', '.join(f'{each}={value!r}' for each, value in parameters.items())})"


def _different(scaling) -> dict:
    """The parameters of a scaling that are not at their defaults."""
    values = {field.name: (getattr(scaling, field.name), field.default) for field in dataclasses.fields(scaling)}
    return {name: value for name, (value, default) in values.items() if value != default}


def _of_yarn(settings: dict, values: dict, context_length: int) -> dict:
    """The parameters of yarn that transformers makes of others: its modeling_rope_utils."""
    from gptjax.models.rope_scaling import yarn_gain

    factor = values["factor"] or context_length / values["original_context_length"]
    both = [settings.get(name) for name in ("mscale", "mscale_all_dim")]
    gain = values["attention_factor"]
    if gain is None and all(both):
        gain = yarn_gain(factor, both[0]) / yarn_gain(factor, both[1])
    return {"factor": factor, "attention_factor": gain} | {
        name: values[name] or None for name in ("beta_fast", "beta_slow")
    }


def fields_of_theirs(model: ModelConfig) -> dict:
    """The period stands twice, and what scales the rates too: releases before 5 read what is outside of rope_parameters."""
    settings = {"rope_type": "default"}
    if model.rope_scaling is not None:
        name, _ = written_call(model.rope_scaling, rotary.SCALINGS, "model.rope_scaling")
        scaling = make_chosen(model.rope_scaling, rotary.SCALINGS, "model.rope_scaling")
        settings = {"rope_type": name} | {_theirs(each): value for each, value in _different(scaling).items()}
    return {
        "rope_parameters": {"rope_theta": model.rope_theta} | settings,
        "rope_theta": model.rope_theta,
        "rope_scaling": None if model.rope_scaling is None else settings,
    }


def _settings(values: dict) -> tuple[str, dict]:
    """(field, settings of rotary positions) that transformers 5 takes."""
    name = "rope_scaling" if values.get("rope_scaling") else "rope_parameters"
    return name, values.get(name) or {}


def _type(settings: dict):
    return settings.get("rope_type", settings.get("type", "default"))


def _problem(filled: dict) -> str | None:
    """Why the rates cannot be scaled as the file says, if it names a way that ours has."""
    if _type(_settings(filled)[1]) not in list(rotary.SCALINGS):  # which may be no name at all
        return None
    try:
        scaling_in(filled)
    except UserError as error:
        return str(error).rstrip(".")
    return None


def _parameters(name) -> list[str]:
    """Of a rope_type, by our names."""
    if name not in list(rotary.SCALINGS):
        return []
    return [field.name for field in dataclasses.fields(imported(rotary.SCALINGS[name], f"rope_type={name!r}"))]


def _theirs(parameter: str) -> str:
    return _LENGTH if parameter == "original_context_length" else parameter
