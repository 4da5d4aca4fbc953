"""Texts to vectors: the mean of a model's final activations over the tokens of a text, of length 1.

Axes: B texts, L tokens, D width.
"""

import concurrent.futures
import functools

import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptjax.errors import UserError
from gptjax.hosts import compiling
from gptjax.models import attention
from gptjax.parallel import context, sharding

MOST = 8  # texts in one program
LEAST = 16  # tokens that a text is padded to


class Request:
    """Texts that somebody waits for, embedded a few at a time."""

    def __init__(self, texts: list[np.ndarray]):
        self.future, self.finished = concurrent.futures.Future(), False
        self._texts, self._parts = texts, []

    def advance(self, engine) -> None:
        """Embeds the next MOST of them; the last settle the future. One that was cancelled is given up."""
        if self.future.cancelled():
            self.finished = True
            return
        first = len(self._parts) * MOST
        self._parts.append(embed(engine, self._texts[first : first + MOST]))
        if first + MOST >= len(self._texts):
            self._settle(lambda: self.future.set_result(np.concatenate(self._parts)))

    def fail(self, error: Exception) -> None:
        self._settle(lambda: self.future.set_exception(error))

    def _settle(self, settle) -> None:
        """Until here it can be cancelled: a future that says that it runs cannot."""
        if not self.finished and self.future.set_running_or_notify_cancel():
            settle()
        self.finished = True


def check(token_lists, config) -> list[np.ndarray]:
    """int32 [L] of each. Raises UserError: no text, no tokens, more than the context, ids that are none."""
    texts = [np.asarray(tokens) for tokens in token_lists]
    if not texts:
        raise UserError("there is no text to embed; expected at least one.")
    for token_L in texts:
        if token_L.ndim != 1 or token_L.size == 0 or token_L.dtype.kind not in "iu":
            raise UserError(f"{token_L.dtype} of shape {token_L.shape} is no text to embed; expected token ids [L].")
        if len(token_L) > config.context_length:
            raise UserError(f"a text to embed has {len(token_L)} tokens; expected at most {config.context_length}.")
        outside = token_L[(token_L < 0) | (token_L >= config.vocab_size)]
        if outside.size:
            raise UserError(f"token id {outside[0]} is outside the vocabulary; expected 0 to {config.vocab_size - 1}.")
    return [token_L.astype(np.int32) for token_L in texts]


def embed(engine, texts: list[np.ndarray]) -> np.ndarray:
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
