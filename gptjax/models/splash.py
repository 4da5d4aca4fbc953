"""The TPU flash attention kernel that ships with JAX ("splash"), on the mesh in context.

Axes: B batch, L queries, M keys, H query heads, G key/value heads, K head size.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask
from jax.sharding import NamedSharding

from gptjax.errors import UserError
from gptjax.models import attention
from gptjax.parallel import context, sharding


class CausalMask(splash_attention_mask.Mask):
    """A token sees itself and earlier ones, the last `window` of them; queries may stand in any order.

    The kernel computes it from q_sequence and mask_function, and skips blocks in which nothing is seen.
    """

    def __init__(self, query_order: np.ndarray, window: int | None):
        self.q_sequence = query_order.astype(np.int32)
        self.mask_function = (lambda q, k: q >= k) if window is None else (lambda q, k: (q >= k) & (q - k < window))

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self.q_sequence),) * 2

    def __getitem__(self, index) -> np.ndarray:
        query, key = index
        return self.mask_function(self.q_sequence[query][:, None], np.arange(self.shape[1])[key][None])


def splash_attention(
    q_BLHK, k_BLGK, v_BLGK, *, window=None, segment_BL=None, prefix_BL=None, dropout_rate=0.0, key=None, interpret=False
):
    """Each device runs the kernel on its rows, heads and queries, with all their keys.

    Where the mesh splits sequences, tokens are in `context.device_order`. A head size below 128 lanes is the kernel's own
    affair: padded here, q, k, v and what is kept for the backward pass would take as many bytes as heads of 128.
    """
    assert prefix_BL is None and (key is None or dropout_rate == 0)
    length = q_BLHK.shape[1]
    if segment_BL is None:
        segment_BL = jnp.zeros(q_BLHK.shape[:2], jnp.int32)
    kernel = _kernel(length, q_BLHK.shape[2] // sharding.mesh_axis_size("tensor"), window, interpret)
    run = _run if jax.sharding.get_abstract_mesh().empty else _run_on_mesh
    return run(kernel, q_BLHK / math.sqrt(q_BLHK.shape[-1]), k_BLGK, v_BLGK, segment_BL)


def _kernel(length: int, n_heads: int, window: int | None, interpret: bool):
    shards = sharding.mesh_axis_size("sequence")
    order_L = context.device_order(length)
    mask = CausalMask(np.arange(length) if order_L is None else order_L, window)
    query_block = math.gcd(length // (1 if shards == 1 else 2 * shards), 512)
    key_block = math.gcd(length, 512)
    if min(query_block, key_block) < 128:
        raise UserError(
            f"the splash kernel works on blocks of 128 tokens, but {length} tokens over mesh.sequence={shards} are in"
            f" chunks of {length // (2 * shards)}; use a smaller mesh.sequence, or model.attention='xla'."
        )
    sizes = {name: query_block for name in ("block_q", "block_q_dkv", "block_q_dq")}
    sizes |= {f"block_{name}": key_block for name in ("kv", "kv_compute", "kv_dkv", "kv_dkv_compute", "kv_dq")}
    return splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * n_heads),
        head_shards=1,
        q_seq_shards=shards,
        block_sizes=splash_attention_kernel.BlockSizes(**sizes),
        residual_checkpoint_name=attention.KEPT,
        interpret=interpret,
    )


def _run_on_mesh(kernel, q_BLHK, k_BLGK, v_BLGK, segment_BL):
    """Of the kernel's tables of blocks each device has those of its queries."""
    heads, rows = sharding.spec(("batch", "length", "heads", None)), sharding.spec(("batch", "length"))
    mesh = jax.sharding.get_abstract_mesh()
    tables = kernel.manual_sharding_spec(NamedSharding(mesh, sharding.spec((None, "length"))))

    def local(kernel, q_BLHK, k_BLGK, v_BLGK, segment_BL):
        return _run(kernel, q_BLHK, k_BLGK, v_BLGK, segment_BL)

    return jax.shard_map(local, in_specs=(tables, heads, heads, heads, rows), out_specs=heads, check_vma=False)(
        kernel, q_BLHK, k_BLGK, v_BLGK, segment_BL
    )


def _run(kernel, q_BLHK, k_BLGK, v_BLGK, segment_BL):
    q_BHLK, k_BGMK, v_BGMK = (x.swapaxes(1, 2) for x in (q_BLHK, *map(context.gather_length, (k_BLGK, v_BLGK))))
    segment_BM = context.gather_length(segment_BL)
    attend = jax.vmap(lambda q, k, v, sq, sk: kernel(q, k, v, segment_ids=splash_attention_kernel.SegmentIds(sq, sk)))
    return attend(q_BHLK, k_BGMK, v_BGMK, segment_BL, segment_BM).swapaxes(1, 2)
