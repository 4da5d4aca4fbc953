"""Causal attention: the maths in plain XLA, the fast kernels beside it, and the choice between them.

Axes: B batch, L queries, M keys, H query heads, G key/value heads (H = G * R), K head size.
A token sees itself and earlier tokens, in its own document (`segment_BL`, for packed rows), and only the last
`window` tokens in a banded layer (Child et al. 2019, GPT-3). Softmax is float32 everywhere.
"""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from gptjax import layers, sharding
from gptjax.errors import UserError, choose

MASKED = -1e30  # finite: -inf would turn a row without visible keys into NaN


def visible(query_L, key_M, window: int | None):
    """Boolean [L, M]: whether the query at a position sees the key at a position."""
    distance = query_L[:, None] - key_M[None, :]
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def softmax_attention(q_BLHK, k_BMGK, v_BMGK, mask, dropout_rate: float = 0.0, key=None):
    """softmax(q k' / sqrt(K)) v and the log of the softmax's denominator.

    mask: boolean, broadcasts to [B, G, R, L, M]. Returns the output [B, L, H, K] and log_sum_BGRL, float32.
    """
    logit_BGRLM = masked_logits(q_BLHK, k_BMGK, mask)
    largest_BGRL = logit_BGRLM.max(-1)
    weight_BGRLM = jnp.exp(logit_BGRLM - largest_BGRL[..., None])
    sum_BGRL = weight_BGRLM.sum(-1)
    weight_BGRLM = layers.dropout(weight_BGRLM, dropout_rate, key).astype(v_BMGK.dtype)
    out_BGRLK = jnp.einsum("bgrlm,bmgk->bgrlk", weight_BGRLM, v_BMGK, preferred_element_type=jnp.float32)
    out_BGRLK = (out_BGRLK / sum_BGRL[..., None]).astype(v_BMGK.dtype)
    return ungroup(out_BGRLK), largest_BGRL + jnp.log(sum_BGRL)


def masked_logits(q_BLHK, k_BMGK, mask):
    """Logits [B, G, R, L, M] in float32, those outside the mask at MASKED."""
    q_BLGRK = group(q_BLHK, k_BMGK.shape[2]) / math.sqrt(q_BLHK.shape[-1])
    logit_BGRLM = jnp.einsum("blgrk,bmgk->bgrlm", q_BLGRK, k_BMGK, preferred_element_type=jnp.float32)
    return jnp.where(mask, logit_BGRLM, MASKED)


def group(x_BLHK, groups: int):
    """[B, L, H, K] -> [B, L, G, R, K]: the query heads that share a key/value head."""
    return x_BLHK.reshape(*x_BLHK.shape[:2], groups, -1, x_BLHK.shape[-1])


def ungroup(x_BGRLK):
    """[B, G, R, L, K] -> [B, L, H, K]."""
    B, G, R, L, K = x_BGRLK.shape
    return x_BGRLK.transpose(0, 3, 1, 2, 4).reshape(B, L, G * R, K)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def block_attention(bounds, dropout_rate, q_BLHK, k_BMGK, v_BMGK, segment_BL, key):
    """Attention of one block of queries. bounds: (first query, end, first key, window); segment_BL, key: or None.

    The backward pass keeps q, k, v, the output and the log-sum, as flash attention does (Dao et al. 2022), and never
    the probabilities: they would be H * T numbers for every token and layer.
    """
    return _block_forward(bounds, dropout_rate, q_BLHK, k_BMGK, v_BMGK, segment_BL, key)[0]


def _block_mask(bounds, segment_BL):
    start, end, first_key, window = bounds
    mask = visible(np.arange(start, end), np.arange(first_key, end), window)[None, None, None]
    if segment_BL is None:
        return mask
    same = segment_BL[:, start:end, None] == segment_BL[:, None, first_key:end]
    return mask & same[:, None, None]


def _block_forward(bounds, dropout_rate, q_BLHK, k_BMGK, v_BMGK, segment_BL, key):
    mask = _block_mask(bounds, segment_BL)
    out_BLHK, log_sum_BGRL = softmax_attention(q_BLHK, k_BMGK, v_BMGK, mask, dropout_rate, key)
    return out_BLHK, (q_BLHK, k_BMGK, v_BMGK, segment_BL, key, out_BLHK, log_sum_BGRL)


def _block_backward(bounds, dropout_rate, saved, d_out_BLHK):
    q_BLHK, k_BMGK, v_BMGK, segment_BL, key, out_BLHK, log_sum_BGRL = saved
    G, scale = k_BMGK.shape[2], 1 / math.sqrt(q_BLHK.shape[-1])
    logit_BGRLM = masked_logits(q_BLHK, k_BMGK, _block_mask(bounds, segment_BL))
    probability_BGRLM = jnp.exp(logit_BGRLM - log_sum_BGRL[..., None])
    d_out_BLGRK = group(d_out_BLHK, G)
    # sum_m p_m dp_m = sum_k o_k do_k: also with dropout, whose mask is in both o and dp
    product_BLGR = (d_out_BLGRK.astype(jnp.float32) * group(out_BLHK, G)).sum(-1)
    d_probability_BGRLM = jnp.einsum("blgrk,bmgk->bgrlm", d_out_BLGRK, v_BMGK, preferred_element_type=jnp.float32)
    d_probability_BGRLM = layers.dropout(d_probability_BGRLM, dropout_rate, key)
    d_logit_BGRLM = probability_BGRLM * (d_probability_BGRLM - product_BLGR.transpose(0, 2, 3, 1)[..., None]) * scale
    d_logit_BGRLM = d_logit_BGRLM.astype(q_BLHK.dtype)
    d_q_BGRLK = jnp.einsum("bgrlm,bmgk->bgrlk", d_logit_BGRLM, k_BMGK)
    d_k_BMGK = jnp.einsum("bgrlm,blgrk->bmgk", d_logit_BGRLM, group(q_BLHK, G))
    dropped_BGRLM = layers.dropout(probability_BGRLM, dropout_rate, key).astype(v_BMGK.dtype)
    d_v_BMGK = jnp.einsum("bgrlm,blgrk->bmgk", dropped_BGRLM, d_out_BLGRK)
    return ungroup(d_q_BGRLK), d_k_BMGK, d_v_BMGK, None, None


block_attention.defvjp(_block_forward, _block_backward)


def query_blocks(length: int, window: int | None) -> list[tuple[int, int, int]]:
    """(first query, end, first key) of blocks of queries: keys that no query of a block sees are left out."""
    count = min(8, max(1, length // 128))
    edges = [length * i // count for i in range(count + 1)]
    return [(a, b, 0 if window is None else max(0, a - window + 1)) for a, b in zip(edges, edges[1:])]


def xla_attention(q_BLHK, k_BLGK, v_BLGK, *, window=None, segment_BL=None, dropout_rate=0.0, key=None):
    """Full-sequence attention for any backend: masks, bands, segments, dropout."""
    outputs = []
    for i, (start, end, first_key) in enumerate(query_blocks(q_BLHK.shape[1], window)):
        bounds = (start, end, first_key, window)
        block_key = None if key is None else jax.random.fold_in(key, i)
        k, v = k_BLGK[:, first_key:end], v_BLGK[:, first_key:end]
        outputs.append(block_attention(bounds, dropout_rate, q_BLHK[:, start:end], k, v, segment_BL, block_key))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def cached_attention(q_BLHK, k_BMGK, v_BMGK, start, *, window=None):
    """Attention of queries at positions start, start+1, ... over a cache of M positions, filled up to there."""
    positions = start + jnp.arange(q_BLHK.shape[1])
    mask = visible(positions, jnp.arange(k_BMGK.shape[1]), window)[None, None, None]
    return softmax_attention(q_BLHK, k_BMGK, v_BMGK, mask)[0]


def largest_logit(q_BLHK, k_BLGK, *, window=None, segment_BL=None):
    """The largest attention logit a query gives to a key it sees, float32: it grows before runs diverge."""
    blocks = query_blocks(q_BLHK.shape[1], window)
    return jnp.stack(
        [
            masked_logits(q_BLHK[:, a:b], k_BLGK[:, first:b], _block_mask((a, b, first, window), segment_BL)).max()
            for a, b, first in blocks
        ]
    ).max()


def cudnn_attention(q_BLHK, k_BLGK, v_BLGK, *, window=None, segment_BL=None, dropout_rate=0.0, key=None):
    """cuDNN's flash attention through jax.nn.dot_product_attention."""
    assert segment_BL is None and (key is None or dropout_rate == 0)
    local = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q_BLHK, k_BLGK, v_BLGK, is_causal=True, local_window_size=local, implementation="cudnn"
    )


def splash_attention(
    q_BLHK, k_BLGK, v_BLGK, *, window=None, segment_BL=None, dropout_rate=0.0, key=None, interpret=False
):
    """The TPU flash kernel that ships with JAX, run per device on its rows and heads.

    Head sizes below 128 lanes are padded with zeros, which changes no dot product.
    """
    assert key is None or dropout_rate == 0
    length, head_size = q_BLHK.shape[1], q_BLHK.shape[3]
    pad = -head_size % 128
    q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, pad))).swapaxes(1, 2) for x in (q_BLHK, k_BLGK, v_BLGK))
    if segment_BL is None:
        segment_BL = jnp.zeros(q_BLHK.shape[:2], jnp.int32)
    heads = PartitionSpec(sharding.RULES["batch"], sharding.RULES["heads"])
    local = functools.partial(_splash_rows, length=length, window=window, interpret=interpret)
    if not jax.sharding.get_abstract_mesh().empty:
        rows = PartitionSpec(sharding.RULES["batch"])
        local = jax.shard_map(local, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False)
    out_BHLK = local(q / math.sqrt(head_size), k, v, segment_BL)
    return out_BHLK.swapaxes(1, 2)[..., :head_size]


def _splash_rows(q_BHLK, k_BGLK, v_BGLK, segment_BL, *, length, window, interpret):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (length, length)
    mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    block = math.gcd(length, 512)
    sizes = splash.BlockSizes(
        **{
            f"block_{name}": block
            for name in ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
        }
    )
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * q_BHLK.shape[1]),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=sizes,
        interpret=interpret,
    )
    return jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=splash.SegmentIds(s, s)))(
        q_BHLK, k_BGLK, v_BGLK, segment_BL
    )


@dataclasses.dataclass(frozen=True)
class Kernel:
    function: typing.Callable
    platforms: tuple[str, ...]  # where it runs
    dropout: bool = False  # whether it can drop attention probabilities
    segments: bool = False  # whether it can keep packed documents apart
    float32: bool = False
    sequence_sharded: bool = False  # whether the partitioner may split the tokens of a sequence


KERNELS = {
    "xla": Kernel(
        xla_attention, ("cpu", "gpu", "tpu"), dropout=True, segments=True, float32=True, sequence_sharded=True
    ),
    "cudnn": Kernel(cudnn_attention, ("gpu",)),
    "splash": Kernel(splash_attention, ("tpu",), segments=True, float32=True),
}
FASTEST = {"gpu": "cudnn", "tpu": "splash", "cpu": "xla"}


def choose_kernel(config, platform: str) -> tuple[str, str]:
    """(name, reason) of the attention kernel for a Config on a platform (cpu, gpu, tpu).

    `model.attention="auto"` takes the platform's fastest that can do what the config asks, otherwise xla.
    Raises UserError if a kernel asked for by name cannot.
    """
    asked = config.model.attention
    if asked != "auto":
        choose(KERNELS, asked, "model.attention")
        obstacle = _obstacle(asked, config, platform)
        if obstacle:
            raise UserError(f"model.attention={asked!r} cannot be used: it {obstacle}; use 'auto' or 'xla'.")
        return asked, "as configured"
    fastest = FASTEST.get(platform, "xla")
    obstacle = _obstacle(fastest, config, platform)
    return ("xla", f"{fastest} {obstacle}") if obstacle else (fastest, f"the fastest on {platform}")


def _obstacle(name: str, config, platform: str) -> str | None:
    """Why a kernel cannot run this config, or None."""
    kernel, model = KERNELS[name], config.model
    if platform not in kernel.platforms:
        return f"runs on {'/'.join(kernel.platforms)}, not on {platform}"
    if model.attention_dropout and not kernel.dropout:
        return f"has no attention dropout (model.attention_dropout={model.attention_dropout})"
    if config.data.mask_documents and not kernel.segments:
        return "cannot keep packed documents apart (data.mask_documents=True)"
    if model.dtype == "float32" and not kernel.float32:
        return "has no float32 form (model.dtype='float32')"
    if config.mesh.sequence != 1 and not kernel.sequence_sharded:
        return f"cannot split a sequence over devices (mesh.sequence={config.mesh.sequence})"
    if name == "splash" and model.context_length % 128:
        return f"needs a context that is a multiple of 128 (model.context_length={model.context_length})"
    if name == "cudnn" and (model.head_size > 128 or model.head_size % 8):
        return f"needs a head size of at most 128, a multiple of 8 (it is {model.head_size})"
    return None
