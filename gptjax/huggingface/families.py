"""The families of models that come from and go to transformers: which there are, and which a model is of."""

import importlib
import typing

from gptjax.errors import UserError


class Entry(typing.NamedTuple):
    title: str  # as people say it
    module: str  # imported when chosen; its FAMILY is a base.Family


FAMILIES = {  # by the model_type of a config.json
    "openai-gpt": Entry("GPT-1", "gptjax.huggingface.gpt1"),
    "gpt2": Entry("GPT-2", "gptjax.huggingface.gpt2"),
    "llama": Entry("Llama", "gptjax.huggingface.llama"),
}


def titles(conjunction: str) -> str:
    """All of them, such as "GPT-1, GPT-2 or Llama"."""
    return _listed([entry.title for entry in FAMILIES.values()], conjunction)


def _listed(names: list[str], conjunction: str) -> str:
    *others, last = names
    return f"{', '.join(others)} {conjunction} {last}" if others else last


def load(model_type: str):
    """The base.Family of a model_type of FAMILIES."""
    return importlib.import_module(FAMILIES[model_type].module).FAMILY


def family_of(values: dict, where):
    """The Family of a config.json. Raises UserError: another kind of model."""
    model_type = values.get("model_type")
    if model_type not in list(FAMILIES):  # which may be no name at all
        raise UserError(f"{where} is of model_type {model_type!r}; gptjax imports {_listed(list(FAMILIES), 'and')}.")
    return load(model_type)


def family_for(model):
    """The Family that a ModelConfig can be written as. Raises UserError: all that keeps it from the nearest one."""
    if model.architecture != "gpt":  # a copy of it that computes something else has no other sign
        raise UserError(f"model.architecture={model.architecture!r} cannot be written: transformers has no such model.")
    reasons = {family: family.reasons(model) for family in map(load, FAMILIES)}
    nearest = min(reasons, key=lambda family: len(reasons[family]))  # of equals the first
    if reasons[nearest]:
        raise UserError(
            f"this model cannot be written as Hugging Face's {nearest.architecture}: {'; '.join(reasons[nearest])};"
            " transformers has no such model."
        )
    return nearest
