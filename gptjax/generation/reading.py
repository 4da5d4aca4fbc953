"""Prompts that are read chunk by chunk, so that rows which are being made wait for a chunk and not for a prompt.

    reader = Reader(engine, places=1024, chunk=128, prefix_tokens=8192)
    reading = reader.begin(prompt_L)
    while not reading.finished:
        reader.advance(reading)     # or, in between, a step of the slots
    slots.place(row, reading)

Each prompt is read alone, in a cache of one row, in chunks that begin at multiples of `chunk`; the last is padded behind to a
power of two. So every bit of a prompt's keys and values depends on its tokens alone: not on other prompts, and not on whether
a chunk was read or copied from the prefixes that are kept of earlier prompts.

An LSTM's state would go on through the padding, so its last chunk is read in pieces of a power of two.

Axes: L tokens of a chunk, V vocabulary, K = decoding.LIKELIEST; "1": one row.
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptjax.generation import decoding, sampling
from gptjax.generation.prefixes import Prefixes
from gptjax.hosts import compiling
from gptjax.models import cache_layout
from gptjax.models.layers import DTYPES
from gptjax.parallel import numerics, sharding

LEAST = 16  # tokens that a chunk is padded to


class Scores(typing.NamedTuple):
    """Log-probabilities of each token of a prompt but the first, as the model gives them."""

    logprob_L: np.ndarray  # float32, nats
    token_LK: np.ndarray  # the likeliest in its place
    likeliest_logprob_LK: np.ndarray


@dataclasses.dataclass(eq=False)
class Reading:
    """A prompt, and how far it was read."""

    prompt_L: np.ndarray
    keys: list[bytes]  # of its whole chunks, see Prefixes
    scored: bool
    cache: typing.Any
    tokens: int = 0  # in the cache
    cached_tokens: int = 0  # of these, copied from what earlier prompts left
    logit_1V: jax.Array | None = None  # of the token after the prompt; None: not read to its end
    scores: list[Scores] = dataclasses.field(default_factory=list)  # of each chunk, if scored

    @property
    def finished(self) -> bool:
        return self.logit_1V is not None

    def all_scores(self) -> Scores:
        """The scores of the whole prompt."""
        joined = (np.concatenate(parts) for parts in zip(*self.scores))
        return Scores(*(array[: len(self.prompt_L) - 1] for array in joined))


class Reader:
    """Reads prompts for slots with caches of so many places, and keeps up to `prefix_tokens` of them in whole chunks."""

    def __init__(self, engine, *, places: int, chunk: int, prefix_tokens: int):
        assert chunk >= LEAST and chunk & (chunk - 1) == 0, "a chunk is a power of two"
        self._engine, self._chunk, self._keeps = engine, chunk, prefix_tokens > 0
        self._places = -(-places // chunk) * chunk  # with the padding of the last chunk
        self._prefixes = Prefixes(prefix_tokens // chunk, chunk)
        self._last: Reading | None = None  # the prompt that was read last, whole: often asked again for another text

    @property
    def _setup(self):
        return self._engine.setup, self._engine.weights

    @numerics.settings()
    def begin(self, prompt_L: np.ndarray, *, scored: bool = False) -> Reading:
        """A prompt with as much of it read as earlier prompts have in common with it; of one whose tokens are to be scored,
        nothing."""
        last = self._last
        if last is not None and not scored and np.array_equal(last.prompt_L, prompt_L):
            return dataclasses.replace(last, scored=False, cached_tokens=len(prompt_L), scores=[])
        keys = self._prefixes.keys(prompt_L)
        reading = Reading(prompt_L, keys, scored, blank(*self._setup, places=self._places))
        before_last = keys[: (len(prompt_L) - 1) // self._chunk]  # whose logits have to be made
        for piece in [] if scored else self._prefixes.longest(before_last):
            reading.cache = pasted(*self._setup, reading.cache, piece, np.int32(reading.tokens))
            reading.tokens += self._chunk
        reading.cached_tokens = reading.tokens
        return reading

    @numerics.settings()
    def advance(self, reading: Reading) -> int:
        """Reads the next chunk of it. Returns how many tokens that is, its padding included."""
        start = reading.tokens
        count, width = self._next(len(reading.prompt_L) - start)
        token_1L, target_1L = np.zeros((2, 1, width), np.int32)
        token_1L[0, :count] = reading.prompt_L[start : start + count]
        target_L = reading.prompt_L[start + 1 : start + 1 + count]
        target_1L[0, : len(target_L)] = target_L
        arguments = token_1L, target_1L, reading.cache, np.int32(start), np.int32(count - 1)
        reading.cache, logit_1V, scores = read(*self._setup, *arguments, scored=reading.scored)
        reading.tokens += count
        if reading.scored:
            logprob_1L, (token_1LK, logprob_1LK) = sharding.on_host(scores)
            reading.scores.append(Scores(logprob_1L[0, :count], token_1LK[0, :count], logprob_1LK[0, :count]))
        keys = reading.keys[: reading.tokens // self._chunk]
        if count == self._chunk and self._prefixes.lacks(keys[-1]):
            self._prefixes.keep(keys, cut(*self._setup, reading.cache, np.int32(start), size=self._chunk))
        if reading.tokens == len(reading.prompt_L):
            reading.logit_1V = logit_1V
            self._last = reading if self._keeps else None
        return width

    def _next(self, left: int) -> tuple[int, int]:
        """(tokens, tokens with padding) of the next chunk, of so many tokens that are left."""
        if left >= self._chunk:
            return self._chunk, self._chunk
        if self._engine.config.has_attention:
            return left, max(LEAST, 1 << (left - 1).bit_length())
        piece = 1 << (left.bit_length() - 1)
        return piece, piece


# ---- programs. The state of an LSTM has no places: what is kept of a prefix is all of it, behind its last token.


@functools.partial(compiling.jit, static_argnames=("setup", "places"))
def blank(setup, weights, *, places: int):
    """The cache of a row that has read nothing."""
    gpt = nnx.merge(setup.graph, weights.params)
    return gpt.lay_out(gpt.empty_cache(1, places, DTYPES[setup.cache_dtype], apart=weights.layers is not None))


@functools.partial(compiling.jit, static_argnames=("setup", "scored"), donate_argnames="cache")
def read(setup, weights, token_1L, target_1L, cache, start, last, *, scored: bool):
    """(The cache with tokens at places start, start + 1, ..., the logits behind token `last` of them, and if scored the
    log-probability of each target with the likeliest tokens in its place)."""
    gpt = nnx.merge(setup.graph, weights.params)
    x_1LD, cache = gpt.extend(token_1L, cache, start, None, weights.layers)
    x_1D = jax.lax.dynamic_index_in_dim(x_1LD, last, axis=1, keepdims=False)
    logit_1V, scores = gpt.logits(x_1D, setup.columns), None
    if scored:
        logit_LV = gpt.logits(x_1LD[0])
        logprob_L = sampling.logprob(logit_LV, target_1L[0])
        scores = jax.tree.map(lambda a: a[None], (logprob_L, decoding.likeliest_of(setup, logit_LV)))
    return gpt.lay_out(cache), sharding.constrain(logit_1V, "batch", "vocab"), scores


@functools.partial(compiling.jit, static_argnames=("setup", "size"))
def cut(setup, weights, cache, start, *, size: int):
    """What the cache of one row has of `size` places."""
    gpt = nnx.merge(setup.graph, weights.params)
    if not gpt.config.has_attention:
        return jax.tree.map(jnp.copy, cache)
    piece = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, size, axis=_places_dim(a)), cache)
    return gpt.lay_out(piece)


@functools.partial(compiling.jit, static_argnames="setup", donate_argnames="cache")
def pasted(setup, weights, cache, piece, start):
    """The cache of one row with a piece at its places start, start + 1, ..."""
    gpt = nnx.merge(setup.graph, weights.params)
    if not gpt.config.has_attention:
        return jax.tree.map(jnp.copy, piece)
    at = lambda into, new: jax.lax.dynamic_update_slice_in_dim(into, new, start, axis=_places_dim(into))  # noqa: E731
    return gpt.lay_out(jax.tree.map(at, cache, piece))


@functools.partial(compiling.jit, static_argnames="setup", donate_argnames="state")
def put(setup, weights, state: decoding.State, cache, logit_1V, counts, row, place) -> decoding.State:
    """The state with everything of a row replaced by a prompt of `place` tokens that was read into a cache of one row.

    counts: of its tokens, [1, V]; None: no row penalises."""
    gpt = nnx.merge(setup.graph, weights.params)
    one = decoding.State(place[None], jnp.zeros(1, jnp.int32), jnp.zeros(1, bool), logit_1V, None, counts)
    into = lambda a, new: a.at[row].set(new[0])  # noqa: E731
    cache = gpt.put_row(state.cache, cache, row, 0)
    return decoding.lay_out(gpt, jax.tree.map(into, state._replace(cache=None), one)._replace(cache=cache))


def _places_dim(cache) -> int:
    return cache_layout.order(cache).index("M")
