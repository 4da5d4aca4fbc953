"""Frozen weights in four bits, NormalFloat (Dettmers et al. 2023, section 3), under an adapter that is trained (QLoRA).

A weight is one of 16 values times the largest magnitude of its block. Blocks lie along one dimension of the weight, BLOCK
entries long, or the largest divisor of that dimension below it; two entries share a byte, the first in its low bits. Their
scales stay in float32: they are not quantised a second time (section 3, double quantisation), which would save 0.37 bits of the
4.5 that an entry takes.

The dimension is the last one that `mesh.fsdp` does not split, so that blocks and bytes lie whole on their devices: the size of a
head, or the MLP's width.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptjax.errors import UserError

BLOCK = 64
# Quantiles of the normal distribution, on [-1, 1], with 0 among them: appendix E.
CODE = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
BETWEEN = (CODE[1:] + CODE[:-1]) / 2  # values between two entries of the code


def block_size(size: int) -> int:
    """Entries of a block along a dimension of this size."""
    return max(divisor for divisor in range(1, min(size, BLOCK) + 1) if size % divisor == 0)


def block_dim(axes: tuple) -> int:
    """The dimension that blocks lie along, from the end, of a weight with these logical axes."""
    return max(dim for dim, axis in enumerate(axes) if axis != "embed") - len(axes)


def check(maps: dict) -> None:
    """Raises UserError: a linear map (adapters.targets.Map) has no blocks of four entries."""
    for name, of in maps.items():
        if (size := _blocked(of)) % 4:
            raise UserError(
                f"frozen='nf4' keeps {name} in blocks of at least 4 weights, and it has {size} in a row; use a multiple of 4 for"
                f" {'model.d_ff' if name in ('up', 'down') else 'model.head_dim'}, or frozen='int8'."
            )


def _blocked(of) -> int:
    """The size of the dimension that `block_dim` names."""
    return of.inputs[-1] if of.path[-1] in ("out", "down") else of.outputs[-1]


def entries(of) -> int:
    """Scales of a linear map (adapters.targets.Map)."""
    return math.prod((*of.inputs, *of.outputs)) // block_size(_blocked(of))


def quantised(weight, dim: int):
    """(bytes, scales) of a weight whose blocks lie along a dimension, counted from the end."""
    blocks = _split(weight.astype(jnp.float32), block_size(weight.shape[dim]), dim)
    scale = jnp.abs(blocks).max(dim)
    unit = blocks / jnp.expand_dims(jnp.where(scale > 0, scale, 1.0), dim)
    code = jnp.searchsorted(jnp.asarray(BETWEEN), unit, method="compare_all").astype(jnp.uint8).reshape(weight.shape)
    pairs = _split(code, 2, dim)
    low, high = (jax.lax.index_in_dim(pairs, i, pairs.ndim + dim, keepdims=False) for i in (0, 1))
    return low | high << 4, scale


def dequantised(weight, scale, dim: int):
    """float32: what bytes and scales stand for."""
    code = jnp.stack([weight & 15, weight >> 4], axis=weight.ndim + dim + 1)
    size = 2 * weight.shape[dim]
    shape = list(weight.shape)
    shape[dim] = size
    blocks = _split(values(code.reshape(shape)), size // scale.shape[dim], dim)
    return (blocks * jnp.expand_dims(scale, dim)).reshape(shape)


def values(code):
    """float32: the entries of CODE by number, chosen bit by bit: no device gathers from so small a table as fast."""
    chosen = [jnp.float32(value) for value in CODE]
    for bit in range(4):
        is_set = (code >> bit) & 1 == 1
        chosen = [jnp.where(is_set, odd, even) for even, odd in zip(chosen[::2], chosen[1::2])]
    return chosen[0]


def _split(array, size: int, dim: int):
    """array with a dimension split into runs of a size, which come behind it: dim is theirs, counted from the end."""
    at = array.ndim + dim
    return array.reshape(*array.shape[:at], array.shape[at] // size, size, *array.shape[at + 1 :])


# ---- in a model


def quantise(linear) -> None:
    """A layers.Linear's weight as bytes and scales, in a model that is being made."""
    about = linear.weight.get_metadata()
    linear.block_dim = block_dim(about["axes"])
    weight, scale = quantised(linear.weight[...], linear.block_dim)
    linear.weight = nnx.Param(weight, **about)
    linear.scale = nnx.data(nnx.Param(scale, axes=about["axes"], kind="vector"))  # None until now, which is no data
