"""xla_attention where the mesh splits sequences: each device attends from its chunks of queries to the keys they see.

Axes: those of attention.py; P the blocks of keys that a chunk's attention is put together from.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.models.attention import MASKED, Visibility, block_attention
from gptjax.parallel import context, sharding


def context_parallel_attention(
    q_BLHK, k_BLGK, v_BLGK, *, window=None, segment_BL=None, prefix_BL=None, dropout_rate=0.0, key=None
):
    """xla_attention where the mesh splits sequences, whose tokens are in `context.device_order`."""
    assert key is None or dropout_rate == 0
    rows, heads = ("batch", "length"), ("batch", "length", "heads", None)
    given = {"segment_BL": segment_BL, "prefix_BL": prefix_BL}
    given = {name: a for name, a in given.items() if a is not None}
    function = _attend_to_chunks if prefix_BL is None else _attend_to_all

    def local(q_BLHK, k_BLGK, v_BLGK, *arrays):
        return function(window, q_BLHK, k_BLGK, v_BLGK, **dict(zip(given, arrays)))

    return jax.shard_map(
        local,
        in_specs=(*[sharding.spec(heads)] * 3, *[sharding.spec(rows)] * len(given)),
        out_specs=sharding.spec(heads),
        check_vma=False,
    )(q_BLHK, k_BLGK, v_BLGK, *given.values())


def _attend_to_all(window, q_BLHK, k_BLGK, v_BLGK, prefix_BL, segment_BL=None):
    """One device's part where any key may be seen: its two chunks of queries, each to all keys of the sequence."""
    size = q_BLHK.shape[1] // 2
    gathered = jax.tree.map(context.gather_length, (k_BLGK, v_BLGK, segment_BL, prefix_BL))
    k_BMGK, v_BMGK, segment_BM, prefix_BM = gathered

    def attend(here: int, chunk):
        cut = lambda a: None if a is None else a[:, here : here + size]  # noqa: E731
        positions = chunk * size + jnp.arange(size), np.arange(k_BMGK.shape[1])
        visibility = Visibility(*positions, cut(segment_BL), segment_BM, prefix_BM)
        return block_attention(window, 0.0, cut(q_BLHK), k_BMGK, v_BMGK, visibility, None)[0]

    early, late = context.device_chunks()
    return jnp.concatenate([attend(0, early), attend(size, late)], axis=1)


def _attend_to_chunks(window, q_BLHK, k_BLGK, v_BLGK, segment_BL=None):
    """One device's part: of its two chunks of queries, early and late, to those chunks of keys that each sees.

    Which they are depends on the device, but never how many: each chunk sees itself, the late one all S early ones,
    and for every other device either the early chunk sees its early one or the late chunk its late one.
    """
    shards, device = sharding.mesh_axis_size("sequence"), jax.lax.axis_index("sequence")
    early, late = context.device_chunks()
    size = q_BLHK.shape[1] // 2
    k_BMGK, v_BMGK, segment_BM = jax.tree.map(context.gather_length, (k_BLGK, v_BLGK, segment_BL))

    def attend(is_late, key_chunk):
        """(output, log-sum) of one of the device's chunks to one of the sequence's."""
        here, there = is_late * size, key_chunk * size
        cut = lambda a, start: jax.lax.dynamic_slice_in_dim(a, start, size, axis=1)  # noqa: E731
        positions = jnp.where(is_late, late, early) * size + jnp.arange(size), there + jnp.arange(size)
        segments = () if segment_BL is None else (cut(segment_BL, here), cut(segment_BM, there))
        kv = cut(k_BMGK, there), cut(v_BMGK, there)
        return block_attention(window, 0.0, cut(q_BLHK, here), *kv, Visibility(*positions, *segments), None)

    of_early, of_late = [attend(0, early)], [attend(1, late), attend(1, early)]
    for offset in range(1, shards):
        other = (device - offset) % shards
        earlier = other < device
        out, log_sum = attend(jnp.where(earlier, 0, 1), jnp.where(earlier, other, 2 * shards - 1 - other))
        of_early.append((out, jnp.where(earlier, log_sum, MASKED)))
        of_late += [(out, jnp.where(earlier, MASKED, log_sum)), attend(1, other)]
    return jnp.concatenate([_merge(of_early), _merge(of_late)], axis=1)


def _merge(parts):
    """The attention to several blocks of keys from that to each: outputs weighed by their share of the whole sum."""
    out_PBLHK, log_sum_PBGRL = (jnp.stack(values) for values in zip(*parts))
    share_PBGRL = jnp.exp(log_sum_PBGRL - jax.nn.logsumexp(log_sum_PBGRL, axis=0))
    P, B, L, H = out_PBLHK.shape[:4]
    share_PBLH = share_PBGRL.transpose(0, 1, 4, 2, 3).reshape(P, B, L, H)
    return (out_PBLHK * share_PBLH[..., None]).sum(0).astype(out_PBLHK.dtype)
