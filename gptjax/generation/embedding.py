"""Texts to vectors: the mean of a model's final activations over the tokens of a text, of length 1.

Axes: B texts, L tokens, D width.
"""

import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptjax.generation.engine import Engine
from gptjax.hosts import compiling
from gptjax.models import attention
from gptjax.parallel import context, sharding

MOST = 8  # texts in one program
LEAST = 16  # tokens that a text is padded to


def embed(engine: Engine, texts: list[np.ndarray]) -> np.ndarray:
    """Float32 [B, D] of at most MOST texts."""
    unit = attention.token_unit(nnx.merge(engine.graph, engine.params).kernel)
    unit *= 2 * sharding.mesh_axis_size("sequence")
    longest = max(LEAST, max(map(len, texts)))
    length = -(-min(1 << (longest - 1).bit_length(), engine.config.context_length) // unit) * unit
    token_BL = np.zeros((1 << (len(texts) - 1).bit_length(), length), np.int32)
    for i, token_L in enumerate(texts):
        token_BL[i, : len(token_L)] = token_L
    length_B = np.array([len(token_L) for token_L in texts] + [1] * (len(token_BL) - len(texts)), np.int32)
    return sharding.on_host(_embed(engine.graph, engine.params, token_BL, length_B))[: len(texts)]


@functools.partial(compiling.jit, static_argnames="graph")
def _embed(graph, params, token_BL, length_B):
    order_L = context.device_order(token_BL.shape[1])
    place_L = np.arange(token_BL.shape[1]) if order_L is None else np.asarray(order_L)
    position_BL = jnp.broadcast_to(place_L, token_BL.shape)
    x_BLD, _ = nnx.merge(graph, params).activations(token_BL[:, place_L], position_BL=position_BL)
    in_text_BL = position_BL < length_B[:, None]
    mean_BD = jnp.where(in_text_BL[..., None], x_BLD.astype(jnp.float32), 0).sum(1) / length_B[:, None]
    return mean_BD / jnp.maximum(jnp.linalg.norm(mean_BD, axis=-1, keepdims=True), 1e-12)
