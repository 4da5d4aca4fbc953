"""Flash attention for GPUs, written in Pallas and compiled by Triton: with dropout, packed documents, bands, and queries of a part
of the sequence only. cuDNN's, which is the faster where it can be used, has none of these through JAX.

Scores, probabilities and the mask of dropout are made in tiles of queries and keys and never leave the chip, forward or
backward; what is kept for the backward pass are q, k, v, the output and the log-sum of each query (Dao et al. 2022,
FlashAttention; Dao 2023, FlashAttention-2: its order of loops). Whether a probability is dropped is a function of the step's key,
the row, the head, and the positions of query and key: so it is the same in both passes, on any mesh and in any tiling.

Axes: B batch, L queries, M keys, H query heads, G key/value heads (H = G * R), K head size. In a kernel q queries and m keys
of a tile.
"""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from gptjax.models.attention import KEPT, MASKED
from gptjax.parallel import context, sharding

FORWARD, BACKWARD = 64, 32  # queries and keys of a tile


@dataclasses.dataclass(frozen=True)
class _Form:
    """What kernels are compiled for."""

    window: int | None
    dropout_rate: float
    interpret: bool  # run by the kernel's interpreter, on any platform


class _Where(typing.NamedTuple):
    """Which queries and keys these are."""

    query_L: typing.Any  # int32, positions in the sequence, which grow; keys are the whole sequence
    query_segment_BL: typing.Any  # None: each row is one document
    key_segment_BM: typing.Any
    seed_4: typing.Any  # uint32: two words of the step's key, and which of all rows and heads are the first here


def triton_attention(
    q_BLHK, k_BLGK, v_BLGK, *, window=None, segment_BL=None, prefix_BL=None, dropout_rate=0.0, key=None, interpret=False
):
    """Each device runs the kernels on its rows, heads and queries, with all their keys. Where the mesh splits sequences, tokens
    are in `context.device_order`. interpret: without a GPU, slowly."""
    assert prefix_BL is None
    form = _Form(window, 0.0 if key is None else dropout_rate, interpret)
    words_2 = jnp.zeros(2, jnp.uint32) if key is None else jax.random.bits(key, (2,), jnp.uint32)
    segments = () if segment_BL is None else (segment_BL,)
    if jax.sharding.get_abstract_mesh().empty:
        return _attend_here(form, words_2, q_BLHK, k_BLGK, v_BLGK, *segments)
    heads, rows = sharding.spec(("batch", "length", "heads", None)), sharding.spec(("batch", "length"))
    return jax.shard_map(
        functools.partial(_attend_here, form),
        in_specs=(sharding.spec((None,)), heads, heads, heads, *[rows] * len(segments)),
        out_specs=heads,
        check_vma=False,
    )(words_2, q_BLHK, k_BLGK, v_BLGK, *segments)


def _attend_here(form: _Form, words_2, q_BLHK, k_BLGK, v_BLGK, segment_BL=None):
    """One device's part."""
    k_BMGK, v_BMGK, segment_BM = jax.tree.map(context.gather_length, (k_BLGK, v_BLGK, segment_BL))
    B, L, H = q_BLHK.shape[:3]
    first_2 = jnp.stack([_shard("batch") * B, _shard("heads") * H]).astype(jnp.uint32)
    where = _Where(_positions(L), segment_BL, segment_BM, jnp.concatenate([words_2, first_2]))
    return _flash(form, q_BLHK, k_BMGK, v_BMGK, where)


def _shard(axis: str):
    """The number of this device's part of a logical axis."""
    [mesh_axes] = sharding.spec((axis,))
    mesh_axes = (mesh_axes,) if isinstance(mesh_axes, str) else mesh_axes
    split = tuple(name for name in mesh_axes if sharding.mesh_axis_size(name) > 1)
    return jax.lax.axis_index(split) if split else jnp.int32(0)


def _positions(length: int):
    """The positions of this device's queries in the sequence, int32 [L]."""
    if sharding.mesh_axis_size("sequence") == 1:
        return jnp.arange(length, dtype=jnp.int32)
    size = length // 2
    return jnp.concatenate([chunk * size + jnp.arange(size, dtype=jnp.int32) for chunk in context.device_chunks()])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _flash(form: _Form, q_BLHK, k_BMGK, v_BMGK, where: _Where):
    """The output [B, L, H, K]."""
    return _flash_forward(form, q_BLHK, k_BMGK, v_BMGK, where)[0]


def _flash_forward(form: _Form, q_BLHK, k_BMGK, v_BMGK, where: _Where):
    (B, L, H, K), M = q_BLHK.shape, k_BMGK.shape[1]
    tiles = _Tiles(form, B, L, M, H, k_BMGK.shape[2], K, FORWARD)
    attended = pl.pallas_call(
        functools.partial(_forward_kernel, tiles),
        grid=(L // tiles.size, B, H),
        in_specs=[tiles.where(where), tiles.ranges, tiles.queries, tiles.all_keys, tiles.all_keys],
        out_specs=[tiles.queries, tiles.of_queries],
        out_shape=[jax.ShapeDtypeStruct(q_BLHK.shape, v_BMGK.dtype), jax.ShapeDtypeStruct((B, H, L), jnp.float32)],
        **tiles.options("flash_forward"),
    )(where, tiles.key_ranges(where.query_L), q_BLHK, k_BMGK, v_BMGK)
    out_BLHK, log_sum_BHL = checkpoint_name(attended, KEPT)
    return out_BLHK, (q_BLHK, k_BMGK, v_BMGK, where, out_BLHK, log_sum_BHL)


def _flash_backward(form: _Form, saved, d_out_BLHK):
    q_BLHK, k_BMGK, v_BMGK, where, out_BLHK, log_sum_BHL = saved
    (B, L, H, K), (M, G) = q_BLHK.shape, k_BMGK.shape[1:3]
    tiles = _Tiles(form, B, L, M, H, G, K, BACKWARD)
    # sum_m p_m dp_m = sum_k o_k do_k: also with dropout, whose mask is in both o and dp
    inner_BHL = (d_out_BLHK.astype(jnp.float32) * out_BLHK).sum(-1).swapaxes(1, 2)
    arguments = (q_BLHK, k_BMGK, v_BMGK, d_out_BLHK, log_sum_BHL, inner_BHL)
    d_q_BLHK = pl.pallas_call(
        functools.partial(_query_kernel, tiles),
        grid=(L // tiles.size, B, H),
        in_specs=[
            *(tiles.where(where), tiles.ranges, tiles.queries, tiles.all_keys, tiles.all_keys, tiles.queries),
            *(tiles.of_queries, tiles.of_queries),
        ],
        out_specs=tiles.queries,
        out_shape=jax.ShapeDtypeStruct(q_BLHK.shape, q_BLHK.dtype),
        **tiles.options("flash_backward_queries"),
    )(where, tiles.key_ranges(where.query_L), *arguments)
    d_k_BMGK, d_v_BMGK = pl.pallas_call(
        functools.partial(_key_kernel, tiles),
        grid=(M // tiles.size, B, G),
        in_specs=[
            *(tiles.where(where), tiles.ranges, tiles.all_queries, tiles.keys, tiles.keys),
            *(tiles.all_queries, tiles.of_all_queries, tiles.of_all_queries),
        ],
        out_specs=[tiles.keys, tiles.keys],
        out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (k_BMGK, v_BMGK)],
        **tiles.options("flash_backward_keys"),
    )(where, tiles.query_ranges(where.query_L), *arguments)
    return d_q_BLHK, d_k_BMGK, d_v_BMGK, None


_flash.defvjp(_flash_forward, _flash_backward)


@dataclasses.dataclass(frozen=True)
class _Tiles:
    """Shapes, and the parts of arrays that a program of a kernel's grid is given: (tile, row, head)."""

    form: _Form
    B: int
    L: int
    M: int
    H: int
    G: int
    K: int
    largest: int

    @property
    def size(self) -> int:
        """Queries and keys of a tile."""
        return math.gcd(math.gcd(self.L, self.M), self.largest)

    @property
    def R(self) -> int:
        return self.H // self.G

    @property
    def lanes(self) -> int:
        """K in a kernel, which computes on powers of two."""
        return max(16, 1 << (self.K - 1).bit_length())

    @property
    def scale(self) -> float:
        return 1 / math.sqrt(self.K)

    def key_ranges(self, query_L):
        """int32 [tiles of queries, 2]: the first tile of keys that one of them sees, and the end."""
        first_I, last_I = query_L[:: self.size], query_L[self.size - 1 :: self.size]
        start_I = jnp.zeros_like(first_I) if self.form.window is None else first_I - self.form.window + 1
        return jnp.stack([jnp.maximum(start_I, 0) // self.size, last_I // self.size + 1], axis=1)

    def query_ranges(self, query_L):
        """int32 [tiles of keys, 2]: the first tile of queries that sees one of them, and the end."""
        first_I, last_I = query_L[:: self.size], query_L[self.size - 1 :: self.size]
        key_J = jnp.arange(0, self.M, self.size, dtype=jnp.int32)
        start_J = (last_I < key_J[:, None]).sum(1)
        reach = self.M if self.form.window is None else self.form.window
        end_J = (first_I - (key_J[:, None] + self.size - 1) < reach).sum(1)
        return jnp.stack([start_J, end_J], axis=1).astype(jnp.int32)

    def options(self, name: str) -> dict:
        parameters = triton.CompilerParams(num_warps=4, num_stages=2)
        name += "" if self.form.window is None else f"_window{self.form.window}"  # for whoever counts its FLOPs
        return {"compiler_params": parameters, "interpret": self.form.interpret, "name": name}

    # ---- parts of arrays

    def where(self, where: _Where) -> _Where:
        all_queries = pl.BlockSpec((self.L,), lambda i, b, h: (0,))
        of_row = lambda count: pl.BlockSpec((None, count), lambda i, b, h: (b, 0))  # noqa: E731
        segments = (None, None) if where.query_segment_BL is None else (of_row(self.L), of_row(self.M))
        return _Where(all_queries, *segments, pl.BlockSpec((4,), lambda i, b, h: (0,)))

    @property
    def ranges(self):
        return pl.BlockSpec((None, 2), lambda i, b, h: (i, 0))

    @property
    def queries(self):
        return pl.BlockSpec((None, self.size, None, self.lanes), lambda i, b, h: (b, i, h, 0))

    @property
    def of_queries(self):
        return pl.BlockSpec((None, None, self.size), lambda i, b, h: (b, h, i))

    @property
    def all_keys(self):
        return pl.BlockSpec((None, self.M, None, self.lanes), lambda i, b, h: (b, 0, h // self.R, 0))

    @property
    def keys(self):
        return pl.BlockSpec((None, self.size, None, self.lanes), lambda j, b, g: (b, j, g, 0))

    @property
    def all_queries(self):
        return pl.BlockSpec((None, self.L, self.R, self.lanes), lambda j, b, g: (b, 0, g, 0))

    @property
    def of_all_queries(self):
        return pl.BlockSpec((None, self.R, self.L), lambda j, b, g: (b, g, 0))

    # ---- in a kernel

    def at(self, i):
        """The entries of tile i."""
        return pl.ds(i * self.size, self.size)

    def load(self, reference):
        """[tile, K]"""
        if self.lanes == self.K:
            return triton.load(reference)
        return triton.load(reference, mask=(jnp.arange(self.lanes) < self.K)[None, :], other=0.0)

    def store(self, reference, value):
        mask = None if self.lanes == self.K else (jnp.arange(self.lanes) < self.K)[None, :]
        triton.store(reference, value.astype(reference.dtype), mask=mask)

    def logits(self, where: _Where, q_qK, k_mK, i, j):
        """The logits of the queries of tile i for the keys of tile j, float32 [q, m]; MASKED where a query does not see a key."""
        query_q, key_m = where.query_L[self.at(i)], j * self.size + jnp.arange(self.size)
        distance_qm = query_q[:, None] - key_m[None, :]
        seen_qm = distance_qm >= 0
        if self.form.window is not None:
            seen_qm &= distance_qm < self.form.window
        if where.query_segment_BL is not None:
            segment_q, segment_m = where.query_segment_BL[self.at(i)], where.key_segment_BM[self.at(j)]
            seen_qm &= segment_q[:, None] == segment_m[None, :]
        logit_qm = triton.dot(q_qK, k_mK, trans_b=True) * self.scale
        return jnp.where(seen_qm, logit_qm, MASKED)

    def dropped(self, where: _Where, value_qm, row, head, i, j):
        """Values with those of dropped pairs at zero, and the others scaled up."""
        if self.form.dropout_rate == 0:
            return value_qm
        query_q, key_m = where.query_L[self.at(i)], j * self.size + jnp.arange(self.size)
        word_4 = [where.seed_4[n] for n in range(4)]
        kept_qm = kept(self.form.dropout_rate, word_4, row, head, query_q, key_m)
        return jnp.where(kept_qm, value_qm / (1 - self.form.dropout_rate), 0.0)


def kept(rate: float, word_4, row, head, query_q, key_m):
    """bool [q, m]: whether the probabilities of a row and head are kept, at these positions of the sequence.

    word_4: of _Where.seed_4. A hash of key, row, head and positions, by Appleby's finalizer of MurmurHash3 (2011).
    """
    unsigned = lambda n: jnp.asarray(n).astype(jnp.uint32)  # noqa: E731
    of_head = _mixed(_mixed(word_4[0] + word_4[2] + unsigned(row)) ^ (word_4[3] + unsigned(head)))
    of_query_q = _mixed(of_head + unsigned(query_q) * np.uint32(0x9E3779B9))
    of_pair_qm = _mixed(of_query_q[:, None] ^ (word_4[1] + unsigned(key_m) * np.uint32(0x85EBCA77))[None, :])
    return of_pair_qm >= np.uint32(min(rate * 2.0**32, 2.0**32 - 1))


def _mixed(bits):
    bits = (bits ^ (bits >> 16)) * np.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


def _forward_kernel(tiles: _Tiles, where, range_2, q_ref, k_ref, v_ref, out_ref, log_sum_ref):
    i, row, head = (pl.program_id(n) for n in range(3))
    q_qK = tiles.load(q_ref)

    def attend(j, carry):
        out_qK, largest_q, sum_q = carry
        k_mK, v_mK = (tiles.load(ref.at[tiles.at(j)]) for ref in (k_ref, v_ref))
        logit_qm = tiles.logits(where, q_qK, k_mK, i, j)
        new_q = jnp.maximum(largest_q, logit_qm.max(-1))
        weight_qm = jnp.where(logit_qm == MASKED, 0.0, jnp.exp(logit_qm - new_q[:, None]))
        shrunk_q = jnp.exp(largest_q - new_q)
        dropped_qm = tiles.dropped(where, weight_qm, row, head, i, j)
        out_qK = out_qK * shrunk_q[:, None] + triton.dot(dropped_qm.astype(v_mK.dtype), v_mK)
        return out_qK, new_q, sum_q * shrunk_q + weight_qm.sum(-1)

    size = tiles.size
    nothing = jnp.zeros((size, tiles.lanes)), jnp.full(size, MASKED), jnp.zeros(size)
    out_qK, largest_q, sum_q = jax.lax.fori_loop(range_2[0], range_2[1], attend, nothing)
    tiles.store(out_ref, out_qK / sum_q[:, None])
    log_sum_ref[...] = largest_q + jnp.log(sum_q)


def _query_kernel(tiles: _Tiles, where, range_2, q_ref, k_ref, v_ref, d_out_ref, log_sum_ref, inner_ref, d_q_ref):
    i, row, head = (pl.program_id(n) for n in range(3))
    q_qK, d_out_qK = tiles.load(q_ref), tiles.load(d_out_ref)
    log_sum_q, inner_q = log_sum_ref[...], inner_ref[...]

    def attend(j, d_q_qK):
        k_mK, v_mK = (tiles.load(ref.at[tiles.at(j)]) for ref in (k_ref, v_ref))
        probability_qm = jnp.exp(tiles.logits(where, q_qK, k_mK, i, j) - log_sum_q[:, None])
        d_probability_qm = triton.dot(d_out_qK, v_mK, trans_b=True)
        d_probability_qm = tiles.dropped(where, d_probability_qm, row, head, i, j)
        d_logit_qm = probability_qm * (d_probability_qm - inner_q[:, None])
        return d_q_qK + triton.dot(d_logit_qm.astype(k_mK.dtype), k_mK)

    d_q_qK = jax.lax.fori_loop(range_2[0], range_2[1], attend, jnp.zeros((tiles.size, tiles.lanes)))
    tiles.store(d_q_ref, d_q_qK * tiles.scale)


def _key_kernel(
    tiles: _Tiles, where, range_2, q_ref, k_ref, v_ref, d_out_ref, log_sum_ref, inner_ref, d_k_ref, d_v_ref
):
    j, row, group = (pl.program_id(n) for n in range(3))
    k_mK, v_mK = tiles.load(k_ref), tiles.load(v_ref)

    def of_head(r, sums):
        head = group * tiles.R + r

        def attend(i, sums):
            d_k_mK, d_v_mK = sums
            q_qK, d_out_qK = (tiles.load(ref.at[tiles.at(i), r]) for ref in (q_ref, d_out_ref))
            log_sum_q, inner_q = log_sum_ref[r, tiles.at(i)], inner_ref[r, tiles.at(i)]
            probability_qm = jnp.exp(tiles.logits(where, q_qK, k_mK, i, j) - log_sum_q[:, None])
            dropped_qm = tiles.dropped(where, probability_qm, row, head, i, j)
            d_v_mK = d_v_mK + triton.dot(dropped_qm.astype(d_out_qK.dtype), d_out_qK, trans_a=True)
            d_probability_qm = triton.dot(d_out_qK, v_mK, trans_b=True)
            d_probability_qm = tiles.dropped(where, d_probability_qm, row, head, i, j)
            d_logit_qm = probability_qm * (d_probability_qm - inner_q[:, None])
            return d_k_mK + triton.dot(d_logit_qm.astype(q_qK.dtype), q_qK, trans_a=True), d_v_mK

        return jax.lax.fori_loop(range_2[0], range_2[1], attend, sums)

    nothing = jnp.zeros((tiles.size, tiles.lanes))
    d_k_mK, d_v_mK = jax.lax.fori_loop(0, tiles.R, of_head, (nothing, nothing))
    tiles.store(d_k_ref, d_k_mK * tiles.scale)
    tiles.store(d_v_ref, d_v_mK)
