"""Text from a model: prefill, then a decode loop with a KV cache, both compiled once.

A text longer than the context goes on from its last half: when the cache is full, the last context_length / 2
tokens become the prompt of a new one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptjax.errors import UserError


def restrict(logit_BV, top_k, top_p):
    """Logits with all but the top_k largest, and all outside the smallest set of probability top_p, at -inf.

    top_k = V and top_p = 1 change nothing (Fan et al. 2018; Holtzman et al. 2020).
    """
    sorted_BV = jnp.sort(logit_BV, axis=-1, descending=True)
    kth_B1 = jnp.take_along_axis(sorted_BV, jnp.full((logit_BV.shape[0], 1), top_k - 1), axis=-1)
    probability_BV = jax.nn.softmax(jnp.where(sorted_BV >= kth_B1, sorted_BV, -jnp.inf), axis=-1)
    before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV  # probability of all larger logits
    last_B1 = jnp.maximum((before_BV < top_p).sum(-1, keepdims=True), 1) - 1
    smallest_B1 = jnp.maximum(kth_B1, jnp.take_along_axis(sorted_BV, last_B1, axis=-1))
    return jnp.where(logit_BV >= smallest_B1, logit_BV, -jnp.inf)


def pick(logit_BV, key, temperature, top_k, top_p, restricted: bool):
    """A token for each row: the likeliest at temperature 0, otherwise drawn."""
    scaled_BV = logit_BV / jnp.maximum(temperature, 1e-6)
    drawn_B = jax.random.categorical(key, restrict(scaled_BV, top_k, top_p) if restricted else scaled_BV)
    return jnp.where(temperature == 0, jnp.argmax(logit_BV, axis=-1), drawn_B)


@functools.partial(jax.jit, static_argnames=("graph", "restricted"))
def _fill(graph, params, prompt_BP, prompt_length, stop_at, key, temperature, top_k, top_p, eot_id, restricted):
    """Tokens [B, M] of one cache: the prompt, then generated ones up to position stop_at; and how many there are.

    prompt_BP is padded: what stands beyond prompt_length is overwritten before anything sees it.
    """
    model = nnx.merge(graph, params)
    batch, length = prompt_BP.shape[0], model.config.context_length
    logit_BPV, cache = model.extend(prompt_BP, model.empty_cache(batch, length), 0)
    last_BV = jax.lax.dynamic_index_in_dim(logit_BPV, prompt_length - 1, axis=1, keepdims=False)
    token_BM = jnp.zeros((batch, length), jnp.int32).at[:, : prompt_BP.shape[1]].set(prompt_BP)

    def unfinished(carry):
        position, _, _, _, done_B = carry
        return (position < stop_at) & ~done_B.all()

    def decode(carry):
        position, logit_BV, token_BM, cache, done_B = carry
        next_B = pick(logit_BV, jax.random.fold_in(key, position), temperature, top_k, top_p, restricted)
        next_B = jnp.where(done_B, eot_id, next_B).astype(jnp.int32)
        token_BM = jax.lax.dynamic_update_slice(token_BM, next_B[:, None], (0, position))
        logit_B1V, cache = model.extend(next_B[:, None], cache, position)
        return position + 1, logit_B1V[:, 0], token_BM, cache, done_B | (next_B == eot_id)

    start = (prompt_length, last_BV, token_BM, cache, jnp.zeros(batch, bool))
    position, _, token_BM, _, done_B = jax.lax.while_loop(unfinished, decode, start)
    return token_BM, position, done_B


def generate(
    graph,
    params,
    prompt,
    *,
    num_samples=1,
    max_tokens=200,
    temperature=1.0,
    top_k=None,
    top_p=None,
    seed=0,
    eot_id=None,
) -> list[np.ndarray]:
    """num_samples continuations of prompt (token ids), each of at most max_tokens, ended by eot_id if that comes.

    Raises UserError: an empty prompt, a setting out of range.
    """
    config = nnx.merge(graph, params).config
    prompt = np.asarray(prompt, np.int32)
    _check(prompt, num_samples, max_tokens, temperature, top_k, top_p)
    half = max(1, config.context_length // 2)
    token_BL = np.tile(prompt[-(config.context_length - 1) :], (num_samples, 1))
    generated, done_B = [np.zeros((num_samples, 0), np.int32)], np.zeros(num_samples, bool)
    left, key = max_tokens, jax.random.key(seed)
    while left > 0 and not done_B.all():
        length = token_BL.shape[1]
        stop_at = min(config.context_length, length + left)
        bucket = min(config.context_length, 1 << max(4, (length - 1).bit_length()))
        padded = np.pad(token_BL, ((0, 0), (0, bucket - length)))
        settings = (temperature, min(top_k or config.vocab_size, config.vocab_size), 1.0 if top_p is None else top_p)
        restricted = top_k is not None or top_p is not None
        key, round_key = jax.random.split(key)
        eot = -1 if eot_id is None else eot_id
        token_BM, end, now_done_B = jax.device_get(
            _fill(graph, params, padded, length, stop_at, round_key, *settings, eot, restricted=restricted)
        )
        new_BL = np.where(done_B[:, None], eot, token_BM[:, length:end])
        generated.append(new_BL)
        done_B, left = done_B | now_done_B, left - new_BL.shape[1]
        token_BL = token_BM[:, :end][:, -half:]
    return [_until(row, eot_id) for row in np.concatenate(generated, axis=1)]


def _until(row, eot_id):
    ends = np.flatnonzero(row == eot_id) if eot_id is not None else []
    return row[: ends[0]] if len(ends) else row


def _check(prompt, num_samples, max_tokens, temperature, top_k, top_p) -> None:
    if prompt.size == 0:
        raise UserError(
            "the prompt is empty, and this tokenizer has no end-of-text token to start from; give --prompt."
        )
    for name, value, low in (("num_samples", num_samples, 1), ("max_tokens", max_tokens, 1), ("top_k", top_k, 1)):
        if value is not None and value < low:
            raise UserError(f"--{name}={value} is too small; use at least {low}.")
    if temperature < 0:
        raise UserError(
            f"--temperature={temperature} is negative;"
            " use 0 for the likeliest token, 1 for the model's own distribution."
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"--top_p={top_p} is not in (0, 1].")


def prompt_ids(tokenizer, prompt: str | None) -> np.ndarray:
    """Token ids of a prompt, after end-of-text where the tokenizer has one, as a document begins in training."""
    start = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
    text = tokenizer.encode(prompt) if prompt else np.zeros(0, np.int32)
    return np.concatenate([np.array(start, np.int32), text])
