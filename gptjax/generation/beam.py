"""Beam search: the likeliest texts, by keeping the num_beams likeliest beginnings at every step.

The conventions are Hugging Face's: of 2 num_beams candidates a step those that end a text join the finished ones, each
with the score log-probability / length ** length_penalty, end-of-text counted in both; the search ends when no beam can
beat the worst of num_beams finished texts (early_stopping=False, where the best a beam can still reach is taken at its
present length), or at max_tokens, where the beams themselves count as texts.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptjax import compiling, numerics
from gptjax.errors import UserError
from gptjax.layers import DTYPES


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    tokens: list[int]  # without end-of-text
    score: float
    finished: str  # eot | length


@numerics.settings()
def search(engine, prompt: np.ndarray, settings, eot_id: int | None) -> list[Hypothesis]:
    """At most num_beams texts that follow a prompt, best first. Raises UserError: an empty prompt, or one that leaves no
    room for max_tokens in the context."""
    beams, context = settings.num_beams, engine.config.context_length
    if len(prompt) == 0 or len(prompt) + settings.max_tokens > context:
        raise UserError(
            f"beam search has no room: {len(prompt)} tokens of prompt and --max_tokens={settings.max_tokens} in a context"
            f" of {context}; both have to fit, and the prompt has at least one."
        )
    if settings.penalises:
        raise UserError("beam search takes no penalties; leave them out, or --num_beams.")
    token_BL = np.tile(np.asarray(prompt, np.int32), (beams, 1))
    arguments = (engine.graph, engine.params, engine.layers)
    logprob_BV, cache = _begin(*arguments, token_BL, places=len(prompt) + settings.max_tokens, dtype=engine.cache_dtype)
    texts, total_B = [[] for _ in range(beams)], np.array([0.0] + [-np.inf] * (beams - 1))
    finished: list[Hypothesis] = []
    for length in range(1, settings.max_tokens + 1):
        score_C, beam_C, token_C = _best(total_B, np.asarray(logprob_BV, np.float64)[:, : engine.entries], 2 * beams)
        rank, kept = 0, []
        for score, beam, token in zip(score_C, beam_C, token_C):
            if token == eot_id:
                if rank < beams:
                    finished.append(Hypothesis(texts[beam], score / length**settings.length_penalty, "eot"))
            elif len(kept) < beams:
                kept.append((score, beam, token))
            rank += 1
        finished = sorted(finished, key=lambda f: -f.score)[:beams]
        total_B = np.array([score for score, _, _ in kept])
        texts = [[*texts[beam], int(token)] for _, beam, token in kept]
        best_still = total_B.max() / length**settings.length_penalty
        if len(finished) == beams and finished[-1].score >= best_still:
            return finished
        if length < settings.max_tokens:
            order_B, token_B = (np.array([k[i] for k in kept], np.int32) for i in (1, 2))
            place = np.int32(len(prompt) + length - 1)
            logprob_BV, cache = _step(*arguments, cache, order_B, token_B, place)
    length = settings.max_tokens
    ended = [Hypothesis(text, total / length**settings.length_penalty, "length") for text, total in zip(texts, total_B)]
    return sorted(finished + ended, key=lambda f: -f.score)[:beams]


def _best(total_B, logprob_BV, count: int):
    """(total, beam, token) of the likeliest continuations, best first."""
    total_BV = total_B[:, None] + logprob_BV
    flat = total_BV.reshape(-1)
    top = np.argsort(-flat, kind="stable")[: min(count, flat.size)]
    return flat[top], top // logprob_BV.shape[1], top % logprob_BV.shape[1]


@functools.partial(compiling.jit, static_argnames=("graph", "places", "dtype"))
def _begin(graph, params, layers, token_BL, *, places, dtype):
    gpt = nnx.merge(graph, params)
    cache = gpt.empty_cache(token_BL.shape[0], places, DTYPES[dtype], apart=layers is not None)
    x_BLD, cache = gpt.extend(token_BL, cache, 0, None, layers)
    return jax.nn.log_softmax(gpt.logits(x_BLD[:, -1])), cache


@functools.partial(compiling.jit, static_argnames="graph")
def _step(graph, params, layers, cache, order_B, token_B, place):
    """The log-probabilities after token_B, of the beams order_B."""
    gpt = nnx.merge(graph, params)
    rows = 1 if layers is None else 0  # the dimension of the cache that is rows
    cache = jax.tree.map(lambda a: jnp.take(a, order_B, axis=rows), cache)
    x_B1D, cache = gpt.extend(token_B[:, None], cache, place, None, layers)
    return jax.nn.log_softmax(gpt.logits(x_B1D[:, 0])), cache
