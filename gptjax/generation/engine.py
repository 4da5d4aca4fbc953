"""Tokens to tokens: prompts of unequal length go through the model once (prefill), then it makes a token of each row at a
time (decode), with a cache of keys and values. Both are compiled once for each bucket of rows, prompt and new tokens.

Rows are padded on the left, so that all end at the same place of the cache; a row sees nothing of its padding, its
positions count from its own start, and it draws with a key of its own: what it says depends on its prompt and seed, not
on its neighbours. A text longer than the context goes on from its last half, which becomes the prompt of a new cache.

On a CPU the layers are taken apart: one by one they are read where they lie, while slices of the stack would be copied
for every token. That costs a second copy of them.
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptjax.errors import UserError
from gptjax.generation import sampling
from gptjax.models import loss
from gptjax.models.layers import DTYPES
from gptjax.parallel import compiling, numerics, sharding

CHUNK = 64  # tokens of a dispatch at most, when nobody waits for them
MAX_ROWS = 64  # in one batch


@dataclasses.dataclass
class Row:
    """One text that is being made."""

    prompt: np.ndarray
    seed: int
    new: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)  # of new, natural logarithms
    prompt_logprobs: np.ndarray | None = None  # of prompt[1:]; of a prompt longer than the context, of its end
    finished: str | None = None  # eot | length | stop, or what the watcher said

    @property
    def tokens(self) -> np.ndarray:
        return np.concatenate([self.prompt, np.array(self.new, np.int32)])


class _State(typing.NamedTuple):
    """What a decode loop carries. M places, of which `place` are filled."""

    place: jax.Array
    logit_BV: jax.Array  # of the token that comes next
    token_BM: jax.Array
    logprob_BM: jax.Array | None
    cache: typing.Any
    done_B: jax.Array
    seen_BV: jax.Array | None
    count_BV: jax.Array | None


class Engine:
    """Makes texts with the parameters of one model, in the mesh in context. cache_dtype: None: the compute dtype.

    entries: of the vocabulary that can be said; None: all. A tokenizer may have fewer than the model.
    """

    def __init__(self, graph, params, cache_dtype: str | None = None, entries: int | None = None):
        self.graph, self.params = graph, params
        self.config = nnx.merge(graph, params).config
        self.cache_dtype = cache_dtype or self.config.dtype
        self.entries = min(entries or self.config.vocab_size, self.config.vocab_size)
        if self.config.context_length < 2:
            raise UserError("model.context_length=1 has no room for a token after another; text needs at least 2.")
        if self.cache_dtype not in DTYPES:
            raise UserError(f"cache_dtype={cache_dtype!r} is not known; expected one of: {', '.join(DTYPES)}.")

    @functools.cached_property
    def layers(self):
        """The layers apart; None where the stack is as good."""
        leaf = jax.tree.leaves(self.params)[0]
        devices = leaf.devices()
        if len(devices) > 1 or next(iter(devices)).platform != "cpu":
            return None
        return _apart(self.graph, self.params)

    @numerics.settings()
    def run(
        self, rows: list[Row], settings: sampling.Settings, eot_id: int | None = None, watch=None, chunk=None
    ) -> None:
        """Goes on with rows until each is finished.

        watch(row, new tokens) is told what came, and may return a reason to end the row, as (reason, tokens to keep), or
        None; it is called after every `chunk` tokens.
        """
        for first in range(0, len(rows), MAX_ROWS):
            batch = rows[first : first + MAX_ROWS]
            for row in batch:
                if row.prompt.size == 0:
                    raise UserError(
                        "the prompt is empty, and this tokenizer has no end-of-text token to start from; give --prompt."
                    )
            while any(row.finished is None for row in batch):
                self._round(batch, settings, eot_id, watch, chunk or CHUNK)

    def _round(self, rows, settings, eot_id, watch, chunk: int) -> None:
        """Until all are finished or the longest has filled the context."""
        context = self.config.context_length
        shown = [self._shown(row) for row in rows]
        longest = max(len(tokens) for tokens in shown)
        left = settings.max_tokens - min(len(row.new) for row in rows if row.finished is None)
        new = min(left, context - longest)
        length, batch = _bucket(longest), _bucket(len(rows), least=1)
        pad_B = np.full(batch, length - 1, np.int32)
        token_BL = np.zeros((batch, length), np.int32)
        for i, tokens in enumerate(shown):
            pad_B[i] = length - len(tokens)
            token_BL[i, pad_B[i] :] = tokens
        done_B = np.array([row.finished is not None for row in rows] + [True] * (batch - len(rows)))
        state, prompt_logprob_BL = self._prefill(rows, token_BL, pad_B, done_B, _bucket(new), settings)
        if prompt_logprob_BL is not None:
            for row, pad, logprob_L in zip(rows, pad_B, sharding.on_host(prompt_logprob_BL)):
                if not row.new and row.prompt_logprobs is None:
                    row.prompt_logprobs = logprob_L[pad:]
        self._decode(rows, state, pad_B, length, length + new, settings, eot_id, watch, chunk)

    def _shown(self, row: Row) -> np.ndarray:
        """What of a row the model sees at the start of a round: of a finished one a token, that it keeps none of the others
        from filling the context."""
        context, tokens = self.config.context_length, row.tokens
        if row.finished is not None:
            return tokens[-1:]
        if not row.new:
            return tokens[-(context - 1) :] if context > 1 else tokens[-1:]
        if len(row.prompt[-(context - 1) :]) + len(row.new) < context:
            return tokens[-(context - 1) :]
        half = max(1, context // 2)
        held = min(len(row.prompt), context - 1) + len(row.new)
        return tokens[-(half + (held - context) % (context - half)) :]

    def _prefill(self, rows, token_BL, pad_B, done_B, new: int, settings):
        seen_BV = count_BV = None
        if settings.penalises:
            seen_BV, count_BV = self._counts(rows, len(done_B))
        arguments = (self.graph, self.params, self.layers, token_BL, pad_B, done_B, seen_BV, count_BV)
        wants = settings.logprobs and any(not row.new for row in rows)
        return _prefill(
            *arguments,
            places=token_BL.shape[1] + new,
            dtype=self.cache_dtype,
            logprobs=settings.logprobs,
            of_prompt=wants,
        )

    def _counts(self, rows, batch: int):
        seen_BV = np.zeros((batch, self.config.vocab_size), bool)
        count_BV = np.zeros(seen_BV.shape, np.int32)
        for i, row in enumerate(rows):
            seen_BV[i, row.tokens] = True
            np.add.at(count_BV[i], np.array(row.new, np.int64), 1)
        return seen_BV, count_BV

    def _decode(self, rows, state, pad_B, place: int, stop: int, settings, eot_id, watch, chunk: int) -> None:
        arrays = settings.arrays(len(pad_B), self.config.vocab_size)
        key_B = jax.vmap(jax.random.key)(
            np.array([row.seed for row in rows] + [0] * (len(pad_B) - len(rows)), np.uint32)
        )
        taken_B = np.array([len(row.new) for row in rows] + [0] * (len(pad_B) - len(rows)), np.int32)
        flags = {"restricts": settings.restricts, "penalises": settings.penalises, "entries": self.entries}
        eot = -1 if eot_id is None else eot_id
        while place < stop and any(row.finished is None for row in rows):
            until = min(stop, place + chunk)
            state = _decode(
                self.graph, self.params, self.layers, state, pad_B, key_B, taken_B, arrays, until, eot, **flags
            )
            end, token_BM, logprob_BM = sharding.on_host((state.place, state.token_BM, state.logprob_BM))
            for i, row in enumerate(rows):
                if row.finished is None:
                    logprobs = None if logprob_BM is None else logprob_BM[i, place:end]
                    _take(row, token_BM[i, place:end], logprobs, settings.max_tokens, eot_id, watch)
            taken_B = taken_B + (end - place)
            done = [row.finished is not None for row in rows] + [True] * (len(pad_B) - len(rows))
            place, state = int(end), state._replace(done_B=jnp.array(done))


def _take(row: Row, token_L, logprob_L, max_tokens: int, eot_id, watch) -> None:
    """The next tokens of a row, up to where it ends."""
    token_L = token_L[: max_tokens - len(row.new)]
    ends = np.flatnonzero(token_L == eot_id) if eot_id is not None else []
    kept = token_L[: ends[0]] if len(ends) else token_L
    row.new += kept.tolist()
    if logprob_L is not None:
        row.logprobs += logprob_L[: len(kept)].tolist()
    if len(ends):
        row.finished = "eot"
    elif len(row.new) >= max_tokens:
        row.finished = "length"
    verdict = watch(row, kept) if watch is not None else None
    if verdict is not None:
        row.finished, keep = verdict
        del row.new[keep:], row.logprobs[keep:]


def _bucket(n: int, least: int = 16) -> int:
    """The next power of two."""
    return max(least, 1 << max(0, n - 1).bit_length())


@functools.partial(compiling.jit, static_argnames="graph")
def _apart(graph, params):
    return nnx.merge(graph, params).apart()


@functools.partial(compiling.jit, static_argnames=("graph", "places", "dtype", "logprobs", "of_prompt"))
def _prefill(graph, params, layers, token_BL, pad_B, done_B, seen_BV, count_BV, *, places, dtype, logprobs, of_prompt):
    """The state after the prompts, and the log-probabilities of their tokens but the first, [B, L - 1], if wanted."""
    gpt = nnx.merge(graph, params)
    batch, length = token_BL.shape
    cache = gpt.empty_cache(batch, places, DTYPES[dtype], apart=layers is not None)
    x_BLD, cache = gpt.extend(token_BL, cache, 0, pad_B, layers)
    token_BM = jnp.zeros((batch, places), jnp.int32).at[:, :length].set(token_BL)
    logprob_BM = jnp.zeros((batch, places), jnp.float32) if logprobs else None
    logit_BV = gpt.logits(x_BLD[:, -1])
    state = _State(jnp.int32(length), logit_BV, token_BM, logprob_BM, cache, done_B, seen_BV, count_BV)
    if not of_prompt:
        return state, None
    options = {"vocab_size": gpt.config.vocab_size, "softcap": gpt.config.logit_softcap}
    chunks = 8 if gpt.config.padded_vocab_size > 4096 else 1
    loss_BL, _ = loss.cross_entropy(x_BLD[:, :-1], gpt.head_VD, token_BL[:, 1:], chunks=chunks, **options)
    return state, -loss_BL


@functools.partial(
    compiling.jit, static_argnames=("graph", "restricts", "penalises", "entries"), donate_argnames="state"
)
def _decode(
    graph, params, layers, state, pad_B, key_B, taken_B, arrays, until, eot_id, *, restricts, penalises, entries
):
    """The state with tokens up to the place `until`, or until all rows are done. taken_B: new tokens before."""
    gpt = nnx.merge(graph, params)
    row_B, start = jnp.arange(len(pad_B)), state.place

    def unfinished(s: _State):
        return (s.place < until) & ~s.done_B.all()

    def step(s: _State) -> _State:
        logit_BV = sampling.penalise(s.logit_BV, s.seen_BV, s.count_BV, arrays) if penalises else s.logit_BV
        logit_BV = loss.mask_padding(logit_BV, entries) if entries < logit_BV.shape[-1] else logit_BV
        number_B = taken_B + s.place - start
        token_B = sampling.draw(logit_BV, jax.vmap(jax.random.fold_in)(key_B, number_B), arrays, restricts)
        token_BM = jax.lax.dynamic_update_slice(s.token_BM, token_B[:, None], (0, s.place))
        logprob_BM, seen_BV, count_BV = s.logprob_BM, s.seen_BV, s.count_BV
        if logprob_BM is not None:
            logprob_B = s.logit_BV[row_B, token_B] - jax.nn.logsumexp(s.logit_BV, axis=-1)
            logprob_BM = jax.lax.dynamic_update_slice(logprob_BM, logprob_B[:, None], (0, s.place))
        if penalises:
            seen_BV, count_BV = seen_BV.at[row_B, token_B].set(True), count_BV.at[row_B, token_B].add(1)
        x_B1D, cache = gpt.extend(token_B[:, None], s.cache, s.place, pad_B, layers)
        next_BV = gpt.logits(x_B1D[:, 0])
        done_B = s.done_B | (token_B == eot_id)
        return _State(s.place + 1, next_BV, token_BM, logprob_BM, cache, done_B, seen_BV, count_BV)

    return jax.lax.while_loop(unfinished, step, state)
