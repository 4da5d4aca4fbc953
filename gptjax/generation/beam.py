"""Beam search: the likeliest texts, by keeping the num_beams likeliest beginnings at every step.

The conventions are Hugging Face's: of 2 num_beams candidates a step those that end a text join the finished ones, each
with the score log-probability / length ** length_penalty, end-of-text counted in both; the search ends when no beam can
beat the worst of num_beams finished texts (early_stopping=False, where the best a beam can still reach is taken at its
present length), or at max_tokens, where the beams themselves count as texts.
"""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx

from gptjax.errors import UserError
from gptjax.hosts import compiling
from gptjax.models.layers import DTYPES
from gptjax.parallel import numerics


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    tokens: list[int]  # without end-of-text
    score: float
    finished: str  # eot | length


@numerics.settings()
def search(engine, prompt: np.ndarray, settings, ends: tuple[int, ...]) -> list[Hypothesis]:
    """At most num_beams texts that follow a prompt, until one of the tokens `ends`, best first. Raises UserError: an empty prompt, or one that leaves no
    room for max_tokens in the context."""
    beams, context = settings.num_beams, engine.config.context_length
    if len(prompt) == 0 or len(prompt) + settings.max_tokens > context:
        raise UserError(
            f"the context is too short for beam search: {len(prompt)} tokens of prompt and --max_tokens={settings.max_tokens} in a context"
            f" of {context}; both have to fit, and the prompt has at least one."
        )
    if settings.penalties:
        names = ", ".join(f"--{name}" for name in settings.penalties)
        raise UserError(f"beam search cannot use penalties ({names}); leave them out, or --num_beams.")
    token_BL = np.tile(np.asarray(prompt, np.int32), (beams, 1))
    arguments = (engine.graph, engine.params, engine.layers)
    logprob_BV, cache = _begin(*arguments, token_BL, places=len(prompt) + settings.max_tokens, dtype=engine.cache_dtype)
    texts, total_B = [[] for _ in range(beams)], [0.0] + [-np.inf] * (beams - 1)
    finished: list[Hypothesis] = []

    def score(total: float, length: int) -> float:
        return total / length**settings.length_penalty

    for length in range(1, settings.max_tokens + 1):
        candidates = _best(
            total_B, np.asarray(logprob_BV, np.float64)[:, : engine.entries], (1 + max(1, len(ends))) * beams
        )
        ended = [(total, beam) for total, beam, token in candidates[:beams] if token in ends]
        total_B, order_B, token_B = zip(*[c for c in candidates if c[2] not in ends][:beams])
        finished += [Hypothesis(texts[beam], score(total, length), "eot") for total, beam in ended]
        finished = sorted(finished, key=lambda f: -f.score)[:beams]
        texts = [[*texts[beam], token] for beam, token in zip(order_B, token_B)]
        if len(finished) == beams and finished[-1].score >= score(max(total_B), length):
            return finished
        if length < settings.max_tokens:
            place = np.int32(len(prompt) + length - 1)
            logprob_BV, cache = _step(*arguments, cache, *(np.array(a, np.int32) for a in (order_B, token_B)), place)
    unfinished = [Hypothesis(text, score(total, length), "length") for text, total in zip(texts, total_B)]
    return sorted(finished + unfinished, key=lambda f: -f.score)[:beams]


def _best(total_B, logprob_BV, count: int) -> list[tuple[float, int, int]]:
    """(total, beam, token) of each of the likeliest continuations, best first."""
    total_BV = np.array(total_B)[:, None] + logprob_BV
    flat = total_BV.reshape(-1)
    top = np.argsort(-flat, kind="stable")[: min(count, flat.size)]
    beam, token = np.divmod(top, logprob_BV.shape[1])
    return list(zip(flat[top].tolist(), beam.tolist(), token.tolist()))


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
    x_B1D, cache = gpt.extend(token_B[:, None], gpt.take_rows(cache, order_B), place, None, layers)
    return jax.nn.log_softmax(gpt.logits(x_B1D[:, 0])), cache
