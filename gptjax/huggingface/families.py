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
    "mistral": Entry("Mistral", "gptjax.huggingface.mistral"),
    "qwen2": Entry("Qwen2", "gptjax.huggingface.qwen2"),
    "qwen3": Entry("Qwen3", "gptjax.huggingface.qwen3"),
    "smollm3": Entry("SmolLM3", "gptjax.huggingface.smollm3"),
    "gemma": Entry("Gemma", "gptjax.huggingface.gemma"),
}
RELATIVES = {  # model_types that people may take for one of those, and what they have that gptjax's GPT has not
    "gemma2": "attention scores with a soft cap, and a norm after each branch",
    "gemma3_text": "another base period in the layers that see a window, and a norm after each branch",
    "mixtral": "experts",
    "phi3": "queries, keys and values in one matrix, and rates of rotary positions in two lists",
    "qwen2_moe": "experts",
    "qwen3_moe": "experts",
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
        relative = f", which has {RELATIVES[model_type]}" if model_type in list(RELATIVES) else ""
        imports = f"gptjax imports {_listed(list(FAMILIES), 'and')}"
        raise UserError(f"{where} is of model_type {model_type!r}{relative}; {imports}.")
    return load(model_type)


def family_for(model, imported_as: str | None = None):
    """The Family that a ModelConfig can be written as: the one it came from, of that model_type, if it still can. Raises
    UserError: all that keeps it from the nearest one."""
    if model.architecture != "gpt":  # a copy of it that computes something else has no other sign
        raise UserError(f"model.architecture={model.architecture!r} cannot be written: transformers has no such model.")
    names = sorted(FAMILIES, key=lambda name: name != imported_as)  # that one first, of equals in their order
    reasons = {family: family.reasons(model) for family in map(load, names)}
    nearest = min(reasons, key=lambda family: len(reasons[family]))  # of equals the first
    if reasons[nearest]:
        raise UserError(
            f"this model cannot be written as Hugging Face's {nearest.architecture}: {'; '.join(reasons[nearest])};"
            " transformers has no such model."
        )
    return nearest
