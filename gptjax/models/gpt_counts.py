"""What flops.py counts in a GPT: its layers' parameters, what attention costs beside them, what they keep.

A = n_heads * head_dim, T = context_length.
"""

import typing

from gptjax.config import catalogue
from gptjax.config.fields import ModelConfig
from gptjax.errors import choose

GATED = ("swiglu", "geglu")  # activations that take a gate beside their input, so that the way up is twice as wide


class LayerKind(typing.NamedTuple):
    """What one layer of a period has otherwise than another."""

    window: int | None  # tokens it sees, itself included; None: all
    rotary: bool  # whether it rotates queries and keys, where the model has rotary positions


def layer_kinds(model: ModelConfig) -> tuple[LayerKind, ...]:
    """Of the layers of a period, after which all repeats."""
    windows = [{"L": None, "S": model.band_width}[letter] for letter in model.window_pattern]
    return tuple(
        LayerKind(windows[i % len(windows)], model.rope_pattern[i % len(model.rope_pattern)] == "R")
        for i in range(model.layer_period)
    )


def has_bias(model: ModelConfig, part: str) -> bool:
    """part: "qkv", "out" or "mlp"."""
    return model.bias if model.linear_bias is None else part in model.linear_bias.split(",")


def layer_parameters(model: ModelConfig, relative_positions: bool = False) -> tuple[int, int]:
    """(matrices, vectors) of one layer.

    relative_positions: with those of Transformer-XL (Dai et al. 2019, section 3.3) instead of the model's own: a matrix
    [D, A] of positions, and two vectors [A] beside the queries.
    """
    width, mlp = model.d_model, model.ff_size
    q, kv = model.n_heads * model.head_size, model.kv_heads * model.head_size
    up = _up_projections(model) * mlp
    matrices = width * (q + 2 * kv) + q * width + width * up + mlp * width
    sizes = {"qkv": q + 2 * kv, "out": width, "mlp": up + width}
    biases = sum(size for part, size in sizes.items() if has_bias(model, part))
    qk_gains = 2 * model.head_size if model.qk_norm else 0
    vectors = biases + qk_gains + 2 * _norm_parameters(model)
    if model.adapter is not None:
        of_adapter = catalogue.adapter(model.adapter).layer_parameters(model)
        matrices, vectors = matrices + of_adapter[0], vectors + of_adapter[1]
    return (matrices + width * q, vectors + 2 * q) if relative_positions else (matrices, vectors)


def outer_parameters(model: ModelConfig, relative_positions: bool = False) -> tuple[int, int]:
    """(position table, vectors) outside of the layers."""
    learned = model.position == "learned" and not relative_positions
    of_adapter = 0 if model.adapter is None else catalogue.adapter(model.adapter).outer_parameters(model)
    return model.context_length * model.d_model * learned, _norm_parameters(model) * model.final_norm + of_adapter


def _up_projections(model: ModelConfig) -> int:
    return 2 if model.mlp in GATED else 1


def _norm_parameters(model: ModelConfig) -> int:
    return model.d_model * (2 if model.norm == "layernorm" and model.bias else 1)


def visible_pairs(length: int, band_width: int | None = None) -> int:
    """(query, key) pairs of a causal sequence whose tokens see at most band_width tokens, themselves included."""
    band = min(band_width or length, length)
    return band * (band + 1) // 2 + (length - band) * band


def mixing_flops(model: ModelConfig) -> int:
    """Forward FLOPs of one full sequence beside those of its matrices: scores and values over visible pairs."""
    pairs = sum(visible_pairs(model.context_length, kind.window) for kind in layer_kinds(model))
    pairs = pairs * (model.n_layers // model.layer_period) + model.n_layers * model.prefix_length * model.context_length
    return 4 * model.n_heads * model.head_size * pairs


def full_mixing_flops(model: ModelConfig) -> int:
    """mixing_flops of a token as if every token saw all T; a banded layer counts its band instead."""
    length = model.context_length
    keys = sum(min(length, kind.window or length) for kind in layer_kinds(model))
    return 4 * model.n_heads * model.head_size * keys * (model.n_layers // model.layer_period)


def recomputed_flops(model: ModelConfig) -> int:
    """Forward FLOPs of the layers that the backward pass of one sequence runs again.

    The last linear map of a pre-norm layer is not, since nothing needs its output. Attention counts once; a flash kernel
    that recomputes scores in its own backward pass does more.
    """
    length, width, attention = model.context_length, model.d_model, mixing_flops(model)
    matrices = layer_parameters(model)[0] - (model.ff_size * width if model.norm_position == "pre" else 0)
    layers = 2 * model.n_layers * matrices * length
    qkv = 2 * model.n_layers * width * (model.n_heads + 2 * model.kv_heads) * model.head_size * length
    up = 2 * model.n_layers * width * _up_projections(model) * model.ff_size * length
    recomputed = {
        "none": 0,
        "dots": attention,
        "attention": layers - qkv,
        "mlp": layers - qkv - up,
        "full": layers + attention,
        "offload": layers + attention,
    }
    return choose(recomputed, model.remat, "model.remat")


def kept_bytes(model: ModelConfig, remat: str, itemsize: int, tensor: int = 1) -> int:
    """Bytes per token that one layer keeps for the backward pass, beside its input where that is recomputed from.

    Counted as by Korthikanti et al. 2022, eq. 1 and 2: the inputs of matmuls, norms and activations, and dropout
    masks; not their 5 a s of attention probabilities, which every kernel here recomputes. Of `tensor` devices each
    has its heads and MLP entries, and its tokens of the residual stream; the inputs of its matmuls it has whole.
    """
    width = model.d_model
    heads, kv_heads = model.n_heads // tensor, model.kv_heads // tensor
    q, qkv = heads * model.head_size, (heads + 2 * kv_heads) * model.head_size
    mlp = model.ff_size // tensor
    up = _up_projections(model) * mlp

    residual = width // tensor
    qk_norm = (heads + kv_heads) * model.head_size if model.qk_norm else 0  # before and after
    last = residual if model.norm_position == "post" else 0  # pre-norm only adds the MLP's output: nothing to keep
    masks = 2 * residual if model.residual_dropout else 0  # a byte an entry
    scores = heads * 4  # a float32 log-sum-exp for each query, in every kernel
    kept = {
        "none": itemsize * (2 * width + 2 * residual + qkv + qk_norm + q + up + mlp) + masks + scores,
        "dots": itemsize * (qkv + residual + up + last),  # outputs of linear maps
        "attention": itemsize * (qkv + q) + scores,  # q, k, v and what the kernel keeps; the MLP is computed again
        "mlp": itemsize * (qkv + q + up) + scores,  # the same, and what the activation works on
        "full": 0,
        "offload": 0,
    }
    return choose(kept, remat, "model.remat")


def top_entries(model: ModelConfig) -> int:
    """Entries per token between the last layer and the logits: inputs of the final norm and of the head."""
    return model.d_model * (2 if model.final_norm else 1)
