"""Inside a model: logits, the loss of each token, attention probabilities, the residual stream, the logit lens.

Pure functions of (graph, params, tokens), each compiled once for a shape. Texts are padded to few lengths (`bucket`):
a causal model does not see what comes later. Models that fill in what is missing in a text see all of it: seen_BL says
which tokens are no padding, and None that a model is causal.

Axes: B texts, L tokens, M tokens that are attended to, T = L + 1, N layers, H heads, D width, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptjax.hosts import compiling
from gptjax.models import attention
from gptjax.parallel import context

LEAST = 16  # tokens in a bucket


def bucket(length: int, context_length: int, unit: int = 1) -> int:
    """The length that so many tokens are padded to: the context, or the smallest of its halves, quarters ... that does.

    unit: what every length has to be a multiple of."""
    size = context_length
    while size % 2 == 0 and size // 2 >= max(length, LEAST) and (size // 2) % unit == 0:
        size //= 2
    return size


@functools.partial(compiling.jit, static_argnums=0)
def logits(graph, params, token_BL, seen_BL=None):
    """Float32 [B, L, V] on the mesh in context."""
    order_L = context.device_order(token_BL.shape[1])
    if order_L is None:
        return nnx.merge(graph, params)(token_BL, **_masks(seen_BL))
    position_BL = jnp.broadcast_to(order_L, token_BL.shape)
    seen_BL = None if seen_BL is None else seen_BL[:, order_L]
    gpt = nnx.merge(graph, params)
    return gpt(token_BL[:, order_L], position_BL=position_BL, **_masks(seen_BL))[:, np.argsort(order_L)]


@functools.partial(compiling.jit, static_argnums=(0, 3))
def token_loss(graph, params, token_BT, chunks: int = 1):
    """Float32 [B, L]: of predicting each token of token_BT but the first from those before it, in nats."""
    return nnx.merge(graph, params).token_loss(token_BT, chunks=chunks)[0]


@functools.partial(compiling.jit, static_argnums=0)
def attention_weights(graph, params, token_BL, seen_BL=None):
    """Float32 [N, B, H, L, M]: the attention probabilities of every layer and head."""
    return _layers(nnx.merge(graph, params), token_BL, seen_BL, weights=True)[1]


@functools.partial(compiling.jit, static_argnums=0)
def residuals(graph, params, token_BL, seen_BL=None):
    """Float32 [N + 1, B, L, D]: the residual stream after the embedding and after each layer."""
    return _layers(nnx.merge(graph, params), token_BL, seen_BL)[0].astype(jnp.float32)


@functools.partial(compiling.jit, static_argnums=0)
def logit_lens(graph, params, token_BL, seen_BL=None):
    """Float32 [N + 1, B, L, V]: what the final norm and the output matrix make of the residual stream after the
    embedding and after each layer (nostalgebraist 2020). The last is the model's logits."""
    gpt = nnx.merge(graph, params)

    def read(x_BLD):
        return gpt.logits(gpt.finish(x_BLD))

    return jax.lax.map(read, _layers(gpt, token_BL, seen_BL)[0])


def _masks(seen_BL) -> dict:
    return {} if seen_BL is None else {"segment_BL": seen_BL.astype(jnp.int32), "prefix_BL": seen_BL}


def _layers(gpt, token_BL, seen_BL, weights: bool = False):
    """The residual stream [N + 1, B, L, D] in the compute dtype, and [N, B, H, L, M] if weights are asked for.

    Attention in plain XLA, whatever kernel the model has: no other gives its probabilities."""
    B, L = token_BL.shape
    position_BL = jnp.broadcast_to(jnp.arange(L), token_BL.shape)
    masks = _masks(seen_BL)
    segment_BL, prefix_BL = masks.get("segment_BL"), masks.get("prefix_BL")
    visibility = attention.Visibility(np.arange(L), np.arange(L), segment_BL, segment_BL, prefix_BL)

    def layer(x_BLD, block, kind, _):
        def attend(q_BLHK, k_BMGK, v_BMGK):
            mask = visibility.mask(kind.window)
            out_BLHK, _ = attention.softmax_attention(q_BLHK, k_BMGK, v_BMGK, mask)
            if not weights:
                return out_BLHK, None
            weight_BGRLM = jax.nn.softmax(attention.masked_logits(q_BLHK, k_BMGK, mask), axis=-1)
            return out_BLHK, weight_BGRLM.reshape(B, -1, L, L)

        x_BLD, weight_BHLM = block(x_BLD, attend, position_BL if kind.rotary else None)
        return x_BLD, (x_BLD, weight_BHLM)

    x_BLD = gpt.embed(token_BL, position_BL)
    _, (x_NBLD, weight_NBHLM) = gpt.scan(layer, x_BLD, gpt.blocks, None)
    return jnp.concatenate([x_BLD[None], x_NBLD]), weight_NBHLM
