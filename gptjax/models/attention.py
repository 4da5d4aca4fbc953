"""Attention: the maps to queries, keys and values, the maths in plain XLA, the table of kernels, and the choice of one.

Axes: B batch, L queries, M keys, H query heads, G key/value heads (H = G * R), K head size.
A token sees itself and earlier tokens, in its own document (`segment_BL`, for packed rows), and only the last
`window` tokens in a banded layer (Child et al. 2019, GPT-3). Softmax is float32 everywhere.

Tokens of `prefix_BL` are seen by earlier ones too, in their own document: the prefix of a prefix LM (Raffel et al.
2020), or all tokens of a masked one. A banded layer stays one: it sees `window` - 1 tokens back, and so many ahead.
"""

import dataclasses
import functools
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from gptjax.errors import UserError, choose, imported
from gptjax.models import layers
from gptjax.parallel import sharding

KEPT = "attention"  # the name, for remat policies, of what a kernel keeps for its backward pass beside q, k and v
MASKED = -1e30  # finite: -inf would turn a row without visible keys into NaN


def one_product(qkv: layers.Linear, x_BLD):
    """Queries [B, L, G, R, K], keys and values [B, L, G, K], by one matmul that is split."""
    return split_qkv(checkpoint_name(sharding.constrain(qkv(x_BLD), "batch", "length", "heads", None, None), "qkv"))


def three_products(qkv: layers.Linear, x_BLD):
    """The same by a matmul each: of the weights, not of the activations, parts are cut out and put together again.

    On TPU each then leaves its matmul in the order of axes that the kernel reads; split, all of q, k and v are written
    again in both passes, and their gradients once more. With fewer tokens than the width, as in generation, weights are
    what is larger.
    """
    if x_BLD.shape[0] * x_BLD.shape[1] < x_BLD.shape[2]:
        return one_product(qkv, x_BLD)
    R = qkv.outputs[1] - 2
    parts = (qkv.part(x_BLD, slice(0, R)), qkv.part(x_BLD, R), qkv.part(x_BLD, R + 1))
    axes = ("batch", "length", "heads", None, None)
    return [checkpoint_name(sharding.constrain(part, *axes[: part.ndim]), "qkv") for part in parts]


PROJECTIONS = {"cpu": one_product, "gpu": one_product, "tpu": three_products}  # the fastest form on each platform


@jax.custom_vjp
def split_qkv(qkv):
    """[B, L, G, R + 2, K] -> queries [B, L, G, R, K], keys and values [B, L, G, K].

    Its gradient is one concatenation. That of slicing would be three padded arrays, added.
    """
    return qkv[:, :, :, :-2], qkv[:, :, :, -2], qkv[:, :, :, -1]


def _join_qkv(_, parts):
    q, k, v = parts
    return (jnp.concatenate([q, k[:, :, :, None], v[:, :, :, None]], axis=3),)


split_qkv.defvjp(lambda qkv: (split_qkv(qkv), None), _join_qkv)


def visible(query_L, key_M, window: int | None):
    """Boolean [L, M]: whether the query at a position sees the key at a position; of queries [B, L], [B, L, M]."""
    distance = query_L[..., None] - key_M[None, :]
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


class Visibility(typing.NamedTuple):
    """What decides which of M keys each of L queries sees. A pytree of arrays; window is static, and given apart."""

    query_L: jax.Array | np.ndarray  # positions in the sequence
    key_M: jax.Array | np.ndarray
    query_segment_BL: jax.Array | None = None  # the document of each token, in packed rows
    key_segment_BM: jax.Array | None = None
    key_prefix_BM: jax.Array | None = None  # boolean: keys that are seen by earlier queries too
    ahead_P: np.ndarray | None = None  # True for each key before these, which all queries see

    def mask(self, window: int | None):
        """Boolean, broadcasts to [B, G, R, L, M], or P + M."""
        mask = self._of_tokens(window)
        return mask if self.ahead_P is None else _ahead().mask(mask, len(self.ahead_P))

    def _of_tokens(self, window: int | None):
        mask = visible(self.query_L, self.key_M, window)[None, None, None]
        if self.key_prefix_BM is not None:
            ahead = visible(self.key_M, self.query_L, window).T[None, None, None]
            mask = mask | ahead & self.key_prefix_BM[:, None, None, None, :]
        if self.query_segment_BL is None:
            return mask
        return mask & (self.query_segment_BL[:, :, None] == self.key_segment_BM[:, None, :])[:, None, None]


def _ahead():
    """The module of keys ahead of all rows, which few models have."""
    from gptjax.models.adapters import ahead

    return ahead


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def block_attention(window, dropout_rate, q_BLHK, k_BMGK, v_BMGK, visibility: Visibility, key):
    """Attention of one block of queries to one block of keys: the output [B, L, H, K] and log_sum_BGRL.

    The backward pass keeps q, k, v, the output and the log-sum, as flash attention does (Dao et al. 2022), and never
    the probabilities: they would be H * T numbers for every token and layer.
    """
    return _block_forward(window, dropout_rate, q_BLHK, k_BMGK, v_BMGK, visibility, key)[0]


def _block_forward(window, dropout_rate, q_BLHK, k_BMGK, v_BMGK, visibility, key):
    mask = visibility.mask(window)
    attended = softmax_attention(q_BLHK, k_BMGK, v_BMGK, mask, dropout_rate, key)
    out_BLHK, log_sum_BGRL = checkpoint_name(attended, KEPT)
    return (out_BLHK, log_sum_BGRL), (q_BLHK, k_BMGK, v_BMGK, visibility, key, out_BLHK, log_sum_BGRL)


def block_backward(window, dropout_rate, saved, cotangents):
    """Gradients of `block_attention`'s arguments: saved are these, its output and its log-sum."""
    q_BLHK, k_BMGK, v_BMGK, visibility, key, out_BLHK, log_sum_BGRL = saved
    d_out_BLHK, d_log_sum_BGRL = cotangents
    G, scale = k_BMGK.shape[2], 1 / math.sqrt(q_BLHK.shape[-1])
    logit_BGRLM = masked_logits(q_BLHK, k_BMGK, visibility.mask(window))
    probability_BGRLM = jnp.exp(logit_BGRLM - log_sum_BGRL[..., None])
    d_out_BLGRK = group(d_out_BLHK, G)
    # sum_m p_m dp_m = sum_k o_k do_k: also with dropout, whose mask is in both o and dp
    product_BLGR = (d_out_BLGRK.astype(jnp.float32) * group(out_BLHK, G)).sum(-1)
    inner_BGRL = product_BLGR.transpose(0, 2, 3, 1) - d_log_sum_BGRL  # the gradient of the log-sum is p
    d_probability_BGRLM = jnp.einsum("blgrk,bmgk->bgrlm", d_out_BLGRK, v_BMGK, preferred_element_type=jnp.float32)
    d_probability_BGRLM = layers.dropout(d_probability_BGRLM, dropout_rate, key)
    d_logit_BGRLM = probability_BGRLM * (d_probability_BGRLM - inner_BGRL[..., None]) * scale
    d_logit_BGRLM = d_logit_BGRLM.astype(q_BLHK.dtype)
    d_q_BGRLK = jnp.einsum("bgrlm,bmgk->bgrlk", d_logit_BGRLM, k_BMGK)
    d_k_BMGK = jnp.einsum("bgrlm,blgrk->bmgk", d_logit_BGRLM, group(q_BLHK, G))
    dropped_BGRLM = layers.dropout(probability_BGRLM, dropout_rate, key).astype(v_BMGK.dtype)
    d_v_BMGK = jnp.einsum("bgrlm,blgrk->bmgk", dropped_BGRLM, d_out_BLGRK)
    return ungroup(d_q_BGRLK), d_k_BMGK, d_v_BMGK, None, None


block_attention.defvjp(_block_forward, block_backward)


class QueryBlock(typing.NamedTuple):
    """Queries start to end - 1 of a whole sequence and the keys that one of them may see, first_key to end_key - 1."""

    start: int
    end: int
    first_key: int
    end_key: int

    def queries(self, x_BL):
        return x_BL[:, self.start : self.end]

    def keys(self, x_BL):
        return x_BL[:, self.first_key : self.end_key]

    def visibility(self, segment_BL, prefix_BL, ahead_P=None) -> Visibility:
        return Visibility(
            np.arange(self.start, self.end),
            np.arange(self.first_key, self.end_key),
            None if segment_BL is None else self.queries(segment_BL),
            None if segment_BL is None else self.keys(segment_BL),
            None if prefix_BL is None else self.keys(prefix_BL),
            ahead_P,
        )


def query_blocks(length: int, window: int | None, prefix: bool = False) -> list[QueryBlock]:
    """A sequence's queries in blocks. prefix: whether some keys are seen by earlier queries too."""
    count = min(8, max(1, length // 128))
    edges = [length * i // count for i in range(count + 1)]
    reach = length if window is None else window - 1
    return [
        QueryBlock(a, b, max(0, a - reach), min(length, b + reach) if prefix else b) for a, b in zip(edges, edges[1:])
    ]


def xla_attention(
    q_BLHK, k_BLGK, v_BLGK, *, window=None, segment_BL=None, prefix_BL=None, ahead=None, dropout_rate=0.0, key=None
):
    """Full-sequence attention for any backend: masks, bands, segments, prefixes, dropout.

    ahead: (keys, values) [P, G, K] that all tokens see, whatever else they see."""
    outputs, ahead_P = [], None if ahead is None else np.ones(len(ahead[0]), bool)
    for i, block in enumerate(query_blocks(q_BLHK.shape[1], window, prefix_BL is not None)):
        block_key = None if key is None else jax.random.fold_in(key, i)
        q, k, v = block.queries(q_BLHK), block.keys(k_BLGK), block.keys(v_BLGK)
        k, v = (k, v) if ahead is None else _ahead().joined(ahead, k, v)
        visibility = block.visibility(segment_BL, prefix_BL, ahead_P)
        outputs.append(block_attention(window, dropout_rate, q, k, v, visibility, block_key)[0])
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def cached_attention(q_BLHK, k_BMGK, v_BMGK, start, *, window=None, pad_B=None, ahead=None):
    """Attention of queries at places start, start+1, ... over a cache of M places, filled up to there.

    start: one place for all rows, or one for each, [B].
    pad_B: how many places at the start of each row are padding, which no query of a token sees. ahead: see xla_attention.
    """
    places = jnp.asarray(start)[..., None] + jnp.arange(q_BLHK.shape[1])
    key_M = jnp.arange(k_BMGK.shape[1])
    mask = visible(places, key_M, window)[..., None, None, :, :]
    if pad_B is not None:
        mask = mask & (key_M >= pad_B[:, None])[:, None, None, None]
    if ahead is not None:
        mask = _ahead().mask(mask, len(ahead[0]))
        k_BMGK, v_BMGK = _ahead().joined(ahead, k_BMGK, v_BMGK)
    return softmax_attention(q_BLHK, k_BMGK, v_BMGK, mask)[0]


def largest_logit(q_BLHK, k_BLGK, *, window=None, segment_BL=None, prefix_BL=None, ahead=None):
    """The largest attention logit a query gives to a key of a token that it sees, float32: it grows before runs diverge."""

    def of(block: QueryBlock):
        mask = block.visibility(segment_BL, prefix_BL).mask(window)
        return masked_logits(block.queries(q_BLHK), block.keys(k_BLGK), mask).max()

    return jnp.stack([of(block) for block in query_blocks(q_BLHK.shape[1], window, prefix_BL is not None)]).max()


def cudnn_attention(
    q_BLHK, k_BLGK, v_BLGK, *, window=None, segment_BL=None, prefix_BL=None, dropout_rate=0.0, key=None
):
    """cuDNN's flash attention through jax.nn.dot_product_attention."""
    assert segment_BL is None and prefix_BL is None and (key is None or dropout_rate == 0)
    local = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        q_BLHK, k_BLGK, v_BLGK, is_causal=True, local_window_size=local, implementation="cudnn"
    )


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What attends, and what it can do. Functions are "module:function", imported when the kernel is chosen; all take what
    xla_attention takes, and are never asked for what they cannot do."""

    function: str
    platforms: tuple[str, ...]  # where it runs
    dropout: bool = False  # whether it can drop attention probabilities
    segments: bool = False  # whether it can keep packed documents apart
    prefix: bool = False  # whether it can let tokens be seen by earlier ones
    float32: bool = False
    context_parallel: str | None = None  # the same, where the tokens of a sequence are split over devices
    block: int = 1  # tokens: a sequence is a multiple of it, and so is each chunk that a device has of one
    largest_head: int | None = None  # the head size it goes up to; None: any
    head_unit: int = 1  # what a head size is a multiple of


KERNELS = {
    "xla": Kernel(
        "gptjax.models.attention:xla_attention",
        ("cpu", "gpu", "tpu"),
        dropout=True,
        segments=True,
        prefix=True,
        float32=True,
        context_parallel="gptjax.models.context_attention:context_parallel_attention",
    ),
    "cudnn": Kernel("gptjax.models.attention:cudnn_attention", ("gpu",), largest_head=128, head_unit=8),
    "triton": Kernel(
        "gptjax.models.triton_attention:triton_attention",
        ("gpu",),
        dropout=True,
        segments=True,
        context_parallel="gptjax.models.triton_attention:triton_attention",
        block=64,
        largest_head=128,
        head_unit=8,
    ),
    "splash": Kernel(
        "gptjax.models.splash:splash_attention",
        ("tpu",),
        segments=True,
        float32=True,
        context_parallel="gptjax.models.splash:splash_attention",
        block=128,
    ),
}
FASTEST = {"gpu": ("cudnn", "triton"), "tpu": ("splash",), "cpu": ()}  # the fastest first; xla is what is left


def attend(kernel: str, q_BLHK, k_BLGK, v_BLGK, **options):
    """Attention by a kernel's name on the mesh in context: where that splits sequences, tokens
    are in `context.device_order`."""
    chosen = KERNELS[kernel]
    address = chosen.context_parallel if sharding.mesh_axis_size("sequence") > 1 else chosen.function
    return imported(address, f"model.attention={kernel!r}")(q_BLHK, k_BLGK, v_BLGK, **options)


def token_unit(kernel: str) -> int:
    """What the tokens of a sequence, or of each chunk that a device has of one, are a multiple of under a kernel's name,
    or that of none."""
    return KERNELS[kernel].block if kernel in KERNELS else 1


def choose_kernel(config, platform: str, sequence: int | None = None) -> tuple[str, str]:
    """(name, reason) of the attention kernel for a Config on a platform (cpu, gpu, tpu).

    sequence: the mesh's devices along that axis; None: mesh.sequence, of which -1 is taken for several.
    `model.attention="auto"` takes the platform's fastest that can do what the config asks, otherwise xla.
    A model without attention has none. Raises UserError if a kernel asked for by name cannot.
    """
    if not config.model.has_attention:
        return "none", f"model.architecture={config.model.architecture!r} has no attention"
    if config.model.prefix_length and sequence != 1 and (sequence or config.mesh.sequence) != 1:
        raise UserError(f"model.adapter={config.model.adapter!r} needs whole sequences; set mesh.sequence=1.")
    asked, sequence = config.model.attention, config.mesh.sequence if sequence is None else sequence
    if asked != "auto":
        choose(KERNELS, asked, "model.attention")
        obstacle = _obstacle(asked, config, platform, sequence)
        if obstacle:
            raise UserError(f"model.attention={asked!r} cannot be used: it {obstacle}; use 'auto' or 'xla'.")
        return asked, "as configured"
    obstacles = []
    for name in FASTEST.get(platform, ()):
        obstacle = _obstacle(name, config, platform, sequence)
        if obstacle is None:
            return name, "; ".join(obstacles) or f"the fastest on {platform}"
        obstacles.append(f"{name} {obstacle}")
    return "xla", "; ".join(obstacles) or f"the fastest on {platform}"


def advice(config, platform: str, kernel: str, sequence: int) -> str | None:
    """What to set where the config alone keeps an accelerator's own kernel from running, and what that costs; else None."""
    if kernel != "xla" or config.model.attention != "auto":
        return None
    needed_of = {name: _cures(KERNELS[name], config, sequence) for name in FASTEST.get(platform, ())}
    name = min(needed_of, key=lambda name: len(needed_of[name]), default=None)
    if name is None or not needed_of[name]:
        return None
    return (
        f"without the {name} kernel the attention scores of all heads go through the device's memory; GPT-2 small's step on 8"
        f" H100 then takes twice as long, by its plan. To use the kernel, set {' and '.join(needed_of[name])}."
    )


def _cures(kernel: Kernel, config, sequence: int) -> list[str]:
    """What to set so that nothing which a user chose freely keeps this kernel from running."""
    cures = {
        "model.attention_dropout=0": config.model.attention_dropout and not kernel.dropout,
        "data.mask_documents=False": config.data.mask_documents and not kernel.segments,
        "model.dtype=bfloat16": config.model.dtype == "float32" and not kernel.float32,
        "mesh.sequence=1": sequence > 1 and kernel.context_parallel is None,
    }
    return [cure for cure, applies in cures.items() if applies]


def _obstacle(name: str, config, platform: str, sequence: int) -> str | None:
    """Why a kernel cannot run this config, or None."""
    kernel, model = KERNELS[name], config.model
    if platform not in kernel.platforms:
        return f"runs on {'/'.join(kernel.platforms)}, not on {platform}"
    if model.attention_dropout and not kernel.dropout:
        return f"has no attention dropout (model.attention_dropout={model.attention_dropout})"
    if model.prefix_length and name != "xla":
        return f"has no keys ahead of all rows (model.adapter={model.adapter!r})"
    if config.data.documents_apart and not kernel.segments:
        return "cannot keep packed documents apart (data.mask_documents, data.packing='best_fit')"
    if config.data.sees_ahead and not kernel.prefix:
        return f"cannot let a token see later ones (data.objective={config.data.objective!r})"
    if model.dtype == "float32" and not kernel.float32:
        return "has no float32 form (model.dtype='float32')"
    if sequence != 1 and kernel.context_parallel is None:
        return f"cannot split a sequence over devices (mesh.sequence={sequence})"
    chunks = 2 * sequence if sequence > 1 else 1
    if kernel.block > 1 and model.context_length % (kernel.block * chunks):
        length = f"model.context_length={model.context_length}" + f" in {chunks} chunks" * (chunks > 1)
        return f"needs a context that is a multiple of {kernel.block * chunks} ({length})"
    if model.head_size > (kernel.largest_head or model.head_size) or model.head_size % kernel.head_unit:
        limits = [f"of at most {kernel.largest_head}"] * (kernel.largest_head is not None)
        limits += [f"a multiple of {kernel.head_unit}"] * (kernel.head_unit > 1)
        return f"needs a head size {', '.join(limits)} (it is {model.head_size})"
    return None
