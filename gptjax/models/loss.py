"""Cross-entropy of next-token prediction, without ever holding the float32 logits of the whole vocabulary.

Losses are sums with counts, divided once, after microbatches and devices are summed. Axes: N tokens (any leading
shape), D width, V padded vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

from gptjax.parallel import sharding


def cross_entropy(x, head_VD, target, *, vocab_size: int, chunks: int = 1, softcap: float | None = None):
    """(loss of each token in nats, logsumexp of its logits), float32, of the shape of target.

    x [..., D] are final activations, head_VD the output matrix; its rows from vocab_size on are padding and take no
    part. chunks > 1 goes through the vocabulary in so many parts: logits are recomputed in the backward pass and
    only V/chunks of them exist at a time.
    """
    args = (x, head_VD, target, vocab_size, softcap, False)
    log_normaliser, target_logit = _whole(*args) if chunks == 1 else _chunked(chunks, *args)
    return log_normaliser - target_logit, log_normaliser


def smoothed_cross_entropy(x, head_VD, target, *, vocab_size: int, chunks: int = 1, softcap: float | None = None):
    """The two of `cross_entropy`, and the target's logit minus the mean logit: s times it is what label smoothing s adds to
    the loss (Szegedy et al. 2016, section 7).

    The smoothed target has 1 - s of its probability at the target and s / vocab_size at every entry, the target's too, as
    torch.nn.CrossEntropyLoss(label_smoothing=s) has it. Padding has none and is no part of the mean.
    """
    args = (x, head_VD, target, vocab_size, softcap, True)
    log_normaliser, target_logit, mean_logit = _whole(*args) if chunks == 1 else _chunked(chunks, *args)
    return log_normaliser - target_logit, log_normaliser, target_logit - mean_logit


def scores(x, head_VD, target, *, vocab_size: int, chunks: int = 1, softcap: float | None = None):
    """(log-probability of each token of target in nats, whether it is the likeliest), of the shape of target.

    As `cross_entropy` otherwise, but without a gradient. Of equally likely entries the first is the likeliest.
    """

    def step(carry, part):
        running, target_logit, largest, likeliest = carry
        head_vD, entry_v = part
        logit = part_logits(x, head_vD, entry_v, vocab_size, softcap)
        chosen = jnp.where(entry_v == target[..., None], logit, 0).sum(-1)
        here, entry = logit.max(-1), entry_v[logit.argmax(-1)]
        better = (here > largest) | ((here == largest) & (entry < likeliest))
        running = jnp.logaddexp(running, jax.nn.logsumexp(logit, axis=-1))
        return (running, target_logit + chosen, jnp.maximum(here, largest), jnp.where(better, entry, likeliest)), None

    low, zero = jnp.full(target.shape, -jnp.inf, jnp.float32), jnp.zeros(target.shape, jnp.float32)
    start = (low, zero, low, jnp.full(target.shape, head_VD.shape[0], jnp.int32))
    (log_normaliser, target_logit, _, likeliest), _ = jax.lax.scan(step, start, parts(head_VD, chunks))
    return target_logit - log_normaliser, likeliest == target


def mask_padding(logit, vocab_size: int, entry_v=None):
    """Logits with those of entries from vocab_size on at -inf. entry_v: the entries of the last axis; None: all."""
    entry_v = jnp.arange(logit.shape[-1]) if entry_v is None else entry_v
    return jnp.where(entry_v < vocab_size, logit, -jnp.inf)


def logits(x, head_VD, softcap: float | None = None, product=None):
    """Float32 logits [..., V] of activations [..., D], padding included. product: of both, other than a plain one.

    Tokens are flat where layers.flat_linear has them so. On TPU the gradient of flat logits is written twice, in two
    orders of axes: 1.3 times the time of the loss.
    """
    keeps_shape = sharding.length_is_split(at_head=True) or sharding.platform() == "tpu"
    tokens = x if keeps_shape else x.reshape(-1, x.shape[-1])
    product = product or functools.partial(jnp.einsum, "...d,vd->...v", preferred_element_type=jnp.float32)
    logit = product(tokens, head_VD.astype(x.dtype))
    if softcap:
        logit = softcap * jnp.tanh(logit / softcap)
    return logit.reshape(*x.shape[:-1], head_VD.shape[0])


def _whole(x, head_VD, target, vocab_size, softcap, with_mean):
    """(logsumexp, logit of the target) of every token, and the mean of its logits with_mean."""
    logit = mask_padding(logits(x, head_VD, softcap), vocab_size)
    logit = sharding.constrain(logit, "batch", "head_length", "vocab") if logit.ndim == 3 else logit
    chosen = (
        jnp.arange(logit.shape[-1]) == target[..., None]
    )  # a comparison, unlike a gather, needs no vocabulary in one place
    mean = (_mean_part(logit, jnp.arange(logit.shape[-1]), vocab_size),) if with_mean else ()
    return jax.nn.logsumexp(logit, axis=-1), jnp.where(chosen, logit, 0).sum(-1), *mean


def _mean_part(logit, entry_v, vocab_size: int):
    """What these entries add to the mean logit of the true vocabulary."""
    return jnp.where(entry_v < vocab_size, logit, 0).sum(-1) / vocab_size


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4, 5, 6))
def _chunked(chunks, x, head_VD, target, vocab_size, softcap, with_mean):
    """As _whole, with a running logsumexp over parts of the vocabulary."""
    return _chunked_forward(chunks, x, head_VD, target, vocab_size, softcap, with_mean)[0]


def parts(head_VD, chunks):
    """The head as [chunks, V/chunks, D], and the entries of each part.

    A part takes every chunks-th entry: so a vocabulary sharded over devices stays where it is.
    """
    size = head_VD.shape[0] // chunks
    entry_cv = jnp.arange(chunks)[:, None] + chunks * jnp.arange(size)
    return head_VD.reshape(size, chunks, -1).swapaxes(0, 1), entry_cv


def part_logits(x, head_vD, entry_v, vocab_size, softcap):
    logit = mask_padding(logits(x, head_vD, softcap), vocab_size, entry_v)
    return sharding.constrain(logit, "batch", "head_length", "vocab") if logit.ndim == 3 else logit


def _chunked_forward(chunks, x, head_VD, target, vocab_size, softcap, with_mean):
    def step(carry, part):
        running, target_logit, *mean = carry
        head_vD, entry_v = part
        logit = part_logits(x, head_vD, entry_v, vocab_size, softcap)
        chosen = jnp.where(entry_v == target[..., None], logit, 0).sum(-1)
        mean = [so_far + _mean_part(logit, entry_v, vocab_size) for so_far in mean]
        return (jnp.logaddexp(running, jax.nn.logsumexp(logit, axis=-1)), target_logit + chosen, *mean), None

    zero = jnp.zeros(target.shape, jnp.float32)
    start = (jnp.full(target.shape, -jnp.inf, jnp.float32), zero, *[zero] * with_mean)
    result, _ = jax.lax.scan(step, start, parts(head_VD, chunks))
    return result, (x, head_VD, target, result[0])


def _chunked_backward(chunks, vocab_size, softcap, with_mean, saved, cotangents):
    x, head_VD, target, log_normaliser = saved
    d_normaliser, d_target, *d_mean = (c[..., None] for c in cotangents)

    def step(dx, part):
        head_vD, entry_v = part
        logit, pullback = jax.vjp(lambda x, h: part_logits(x, h, entry_v, vocab_size, softcap), x, head_vD)
        probability = jnp.exp(logit - log_normaliser[..., None])
        d_logit = d_normaliser * probability + jnp.where(entry_v == target[..., None], d_target, 0)
        for d in d_mean:  # padding's part of it ends at the mask
            d_logit = d_logit + d / vocab_size
        dx_part, d_head_vD = pullback(d_logit)
        return dx + dx_part.astype(jnp.float32), d_head_vD

    dx, d_head_cvD = jax.lax.scan(step, jnp.zeros(x.shape, jnp.float32), parts(head_VD, chunks))
    return dx.astype(x.dtype), d_head_cvD.swapaxes(0, 1).reshape(head_VD.shape), None


_chunked.defvjp(_chunked_forward, _chunked_backward)
