"""xla_attention where the mesh splits sequences: each device attends from its chunks of queries to the keys they see.

Axes: those of attention.py; P the blocks of keys that a chunk's attention is put together from.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from gptjax.models.attention import KEPT, MASKED, Visibility, block_attention, block_backward, softmax_attention
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
    """One device's part: of its two chunks of queries, early and late, to those chunks of keys that each sees."""
    k_BMGK, v_BMGK, segment_BM = jax.tree.map(context.gather_length, (k_BLGK, v_BLGK, segment_BL))
    return _chunked(window, q_BLHK, k_BMGK, v_BMGK, segment_BL, segment_BM)


class _Block(typing.NamedTuple):
    """One of the device's chunks of queries, which starts at `query`, and a chunk of keys that it sees, at `key`."""

    is_late: jax.Array | int
    query: jax.Array | int
    key: jax.Array
    visibility: Visibility


def _blocks(length: int, segment_BL, segment_BM) -> list[_Block]:
    """Those of one device with so many queries. Which they are depends on the device, but never how many: each chunk sees
    itself, the late one all S early ones, and for every other device either the early chunk sees its early one or the
    late chunk its late one."""
    shards, device = sharding.mesh_axis_size("sequence"), jax.lax.axis_index("sequence")
    early, late = context.device_chunks()
    size = length // 2
    chunks = [(0, early), (1, late), (1, early)]
    for offset in range(1, shards):
        other = (device - offset) % shards
        earlier = other < device
        chunks += [(jnp.where(earlier, 0, 1), jnp.where(earlier, other, 2 * shards - 1 - other)), (1, other)]

    def block(is_late, key_chunk) -> _Block:
        query, key = is_late * size, key_chunk * size
        positions = jnp.where(is_late, late, early) * size + jnp.arange(size), key + jnp.arange(size)
        segments = () if segment_BL is None else (_cut(segment_BL, query, size), _cut(segment_BM, key, size))
        return _Block(is_late, query, key, Visibility(*positions, *segments))

    return [block(*chunk) for chunk in chunks]


def _cut(a_BL, start, size: int):
    return jax.lax.dynamic_slice_in_dim(a_BL, start, size, axis=1)


def _added(a_BL, part_BC, start):
    """a_BL with a part added to its entries from start on."""
    part_BC = part_BC + _cut(a_BL, start, part_BC.shape[1])
    return jax.lax.dynamic_update_slice_in_dim(a_BL, part_BC, start, axis=1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(window, q_BLHK, k_BMGK, v_BMGK, segment_BL, segment_BM):
    """The output [B, L, H, K] of a device's queries. The backward pass keeps it and its log-sums as a whole, not of each
    block: blocks are 2 S + 1 chunks, and the queries are two."""
    return _chunked_forward(window, q_BLHK, k_BMGK, v_BMGK, segment_BL, segment_BM)[0]


def _chunked_forward(window, q_BLHK, k_BMGK, v_BMGK, segment_BL, segment_BM):
    size, parts = q_BLHK.shape[1] // 2, ([], [])
    for block in _blocks(q_BLHK.shape[1], segment_BL, segment_BM):
        q, k, v = _cut(q_BLHK, block.query, size), *(_cut(a, block.key, size) for a in (k_BMGK, v_BMGK))
        out, log_sum = softmax_attention(q, k, v, block.visibility.mask(window))
        for is_late, of_chunk in enumerate(parts):
            if isinstance(block.is_late, int):  # else it is known on the device
                of_chunk += [(out, log_sum)] * (block.is_late == is_late)
            else:
                of_chunk.append((out, jnp.where(block.is_late == is_late, log_sum, MASKED)))
    outs, log_sums = zip(*map(_merge, parts))
    attended = jnp.concatenate(outs, axis=1), jnp.concatenate(log_sums, axis=-1)
    out_BLHK, log_sum_BGRL = checkpoint_name(attended, KEPT)
    return out_BLHK, (q_BLHK, k_BMGK, v_BMGK, segment_BL, segment_BM, out_BLHK, log_sum_BGRL)


def _chunked_backward(window, saved, d_out_BLHK):
    """Of each block as if it stood alone, with the log-sum of all that its queries see: so its probabilities are theirs."""
    q_BLHK, k_BMGK, v_BMGK, segment_BL, segment_BM, out_BLHK, log_sum_BGRL = saved
    size = q_BLHK.shape[1] // 2
    d_q, d_k, d_v = (jnp.zeros_like(a) for a in (q_BLHK, k_BMGK, v_BMGK))
    for block in _blocks(q_BLHK.shape[1], segment_BL, segment_BM):
        q, out, d_out = (_cut(a, block.query, size) for a in (q_BLHK, out_BLHK, d_out_BLHK))
        k, v = (_cut(a, block.key, size) for a in (k_BMGK, v_BMGK))
        log_sum = jax.lax.dynamic_slice_in_dim(log_sum_BGRL, block.query, size, axis=-1)
        of_block = block_backward(window, 0.0, (q, k, v, block.visibility, None, out, log_sum), (d_out, 0.0))
        d_q = _added(d_q, of_block[0], block.query)
        d_k, d_v = (_added(a, part, block.key) for a, part in zip((d_k, d_v), of_block[1:3]))
    return d_q, d_k, d_v, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _merge(parts):
    """(output, log-sum) of the attention to several blocks of keys from those to each: outputs weighed by their share of
    the whole sum."""
    out_PBLHK, log_sum_PBGRL = (jnp.stack(values) for values in zip(*parts))
    whole_BGRL = jax.nn.logsumexp(log_sum_PBGRL, axis=0)
    P, B, L, H = out_PBLHK.shape[:4]
    share_PBLH = jnp.exp(log_sum_PBGRL - whole_BGRL).transpose(0, 1, 4, 2, 3).reshape(P, B, L, H)
    return (out_PBLHK * share_PBLH[..., None]).sum(0).astype(out_PBLHK.dtype), whole_BGRL
