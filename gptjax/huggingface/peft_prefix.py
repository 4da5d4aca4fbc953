"""Prefix and prompt tuning as PEFT has them: one array `prompt_embeddings`, of keys and values of all layers, or of vectors.

PEFT's positions count on behind a prefix (`shifted` of ours). Axes: P virtual tokens, N layers, G key/value heads, K head size,
D width.
"""

import numpy as np

from gptjax.errors import UserError
from gptjax.models.adapters.prefix import Prefix, Prompt

NAME = "prompt_embeddings"
KINDS = {"PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt"}


def config_out(kind: Prefix, model) -> dict:
    """adapter_config.json. Raises UserError: positions of ours, which PEFT has not."""
    if not kind.shifted:
        raise UserError("PEFT's positions count on behind a prefix, and this one was trained with shifted=False.")
    of_prompt = isinstance(kind, Prompt)
    return {
        "peft_type": "PROMPT_TUNING" if of_prompt else "PREFIX_TUNING",
        "num_virtual_tokens": kind.length, "num_layers": model.n_layers, "num_transformer_submodules": 1,
        "token_dim": model.d_model if of_prompt else model.kv_heads * model.head_size,
        "num_attention_heads": model.n_heads if of_prompt else model.kv_heads,
        **({"prompt_tuning_init": "RANDOM"} if of_prompt else {"prefix_projection": False}),
    }  # fmt: skip


def tensors_out(kind: Prefix, model, adapter: dict) -> dict[str, np.ndarray]:
    """Of the adapter's parameters."""
    if isinstance(kind, Prompt):
        return {NAME: adapter["prompt"]}
    both_NCPGK = np.stack([adapter["keys"], adapter["values"]], axis=1)
    return {NAME: both_NCPGK.transpose(2, 0, 1, 3, 4).reshape(kind.length, -1)}


def config_in(values: dict, where) -> str:
    """model.adapter of an adapter_config.json. Raises UserError: ours has no equal."""
    if values.get("prefix_projection"):
        raise UserError(f"{where} has prefix_projection=true, for which gptjax has no equal: save it without.")
    return f"{KINDS[values['peft_type']]}(length={values['num_virtual_tokens']}, shifted=True)"


def params_in(kind: Prefix, tensors: dict, model, where) -> dict:
    """The adapter's parameters. Raises UserError: no such tensor, or of another shape."""
    of_prompt = isinstance(kind, Prompt)
    size = model.d_model if of_prompt else 2 * model.n_layers * model.kv_heads * model.head_size
    if tensors.keys() != {NAME} or tensors[NAME].shape != (kind.length, size):
        held = {name: list(array.shape) for name, array in tensors.items()}
        raise UserError(f"{where} has {held}; for this model expected {NAME} of {[kind.length, size]}.")
    if of_prompt:
        return {"prompt": tensors[NAME]}
    shape = (kind.length, model.n_layers, 2, model.kv_heads, model.head_size)
    both_NCPGK = tensors[NAME].reshape(shape).transpose(1, 2, 0, 3, 4)
    return {"keys": both_NCPGK[:, 0], "values": both_NCPGK[:, 1]}
