"""Speculative decoding: several tokens of a text are guessed cheaply, the model reads them all at once, and as many are kept
as leave the distribution of its texts what it is (Leviathan et al. 2023, algorithm 1; Chen et al. 2023, algorithm 2).

    engine = Speculative(engine, Ngrams(8))     # guesses what followed the same tokens earlier in the text
    engine = Speculative(engine, DraftModel(small_engine, 4))       # guesses what a small model says
    engine.run(rows)

A guess d, drawn from q, is kept with probability min(1, p(d) / q(d)), p being what the model draws from, with the row's own
settings; at the first that is not, the token comes from max(p - q, 0), normalised. Guesses of n-grams are certain: q(d) = 1.
Greedy rows are those with p(likeliest) = 1: they say what they say without guesses, but for logits so close that reading
several tokens at once rounds them the other way. Rows keep guesses each for itself, and a row's text depends on its prompt,
settings, seed and guesses alone. It is another text than that of the same seed without guesses, from the same distribution.

Axes: B rows, K guesses, T = K + 1 tokens read at once (the row's last one, and the guesses), V vocabulary.
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptjax.errors import UserError
from gptjax.generation import decoding, sampling
from gptjax.generation.engine import Engine, Row, wanted_of
from gptjax.hosts import compiling
from gptjax.models import loss
from gptjax.parallel import sharding

MOST = 15  # guesses at a time: with the token before them they fit into the shortest cache
LONGEST_NGRAM = 3  # tokens that are looked for in the text before
# Streams of the key of a token's number: whether a guess is kept, what comes instead, what a draft guesses.
KEEPING, INSTEAD, GUESSING = 1, 2, 3


class Ahead(typing.NamedTuple):
    """Rows whose last token is chosen and not yet read: places before `place_B` of the cache hold all tokens but it."""

    place_B: jax.Array
    made_B: jax.Array  # new tokens, with the last
    last_B: jax.Array
    cache: typing.Any
    counts: sampling.Counts | None  # with the last


class Guesses(typing.NamedTuple):
    token_BK: typing.Any
    count_B: typing.Any  # how many of the K are guesses; what follows is not looked at
    probability_BKV: typing.Any = None  # of what each was drawn from; None: each was certain


class Kept(typing.NamedTuple):
    """New tokens of one reading, in the first `count_B` columns: the guesses that are kept, and one more."""

    token_BT: jax.Array
    logprob_BT: jax.Array | None  # as the model gives them, before any setting
    count_B: jax.Array
    guessed_B: jax.Array  # how many guesses there were


# ---- the programs, as pure functions


def probabilities(setup: decoding.Setup, value_B: dict, logit_BV, counts: sampling.Counts | None):
    """What a row's next token is drawn from, [B, V] float32; at temperature 0 the likeliest has 1."""
    if setup.entries < logit_BV.shape[-1]:
        logit_BV = loss.mask_padding(logit_BV, setup.entries)
    if counts is not None:
        logit_BV = sampling.apply([named for named in setup.options if not named[1].drawing], logit_BV, value_B, counts)
    certain_BV = jax.nn.one_hot(jnp.argmax(logit_BV, -1), logit_BV.shape[-1], dtype=jnp.float32)
    is_greedy_B = value_B["temperature"] == 0

    def drawn(_):
        shaped_BV = sampling.apply([named for named in setup.options if named[1].drawing], logit_BV, value_B)
        return jnp.where(is_greedy_B[:, None], certain_BV, jax.nn.softmax(shaped_BV, -1))

    return jax.lax.cond(is_greedy_B.all(), lambda _: certain_BV, drawn, None)


def draw(probability_BV, key_B, value_B: dict):
    """A token of each row from (unnormalised) probabilities."""

    def drawn(_):
        return jax.vmap(jax.random.categorical)(key_B, jnp.log(probability_BV))

    likeliest = lambda _: jnp.argmax(probability_BV, -1)  # noqa: E731
    return jax.lax.cond((value_B["temperature"] == 0).all(), likeliest, drawn, None).astype(jnp.int32)


def keys_of(wanted: decoding.Wanted, made_B, stream: int):
    """A key of each row for its token of number made_B."""
    key_B = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(wanted.seed_B2), made_B)
    return jax.vmap(jax.random.fold_in, (0, None))(key_B, stream)


def with_some(counts: sampling.Counts | None, token_B, which_B) -> sampling.Counts | None:
    """Counts after a token more of some rows."""
    if counts is None:
        return None
    row_B = jnp.arange(len(token_B))
    seen_BV = counts.seen_BV.at[row_B, token_B].max(which_B)
    return sampling.Counts(seen_BV, counts.count_BV.at[row_B, token_B].add(which_B.astype(jnp.int32)))


def judge(setup: decoding.Setup, wanted: decoding.Wanted, logit_TBV, guesses: Guesses, made_B, counts):
    """(the token that follows the guesses that are kept, [B]; how many are kept, [B]; counts with these). logit_TBV: of what
    follows the row's last token, of what follows the first guess, ..."""
    T, B, V = logit_TBV.shape

    def look(carry, of_place):
        made_B, going_B, left_BV, counts = carry
        i, logit_BV, token_B, q_BV = of_place
        p_BV = probabilities(setup, wanted.value_B, logit_BV, counts)
        is_guess_B = i < guesses.count_B
        certain_BV = jax.nn.one_hot(token_B, V, dtype=jnp.float32)
        q_BV = jnp.where(is_guess_B[:, None], certain_BV if q_BV is None else q_BV, 0.0)
        uniform_B = jax.vmap(jax.random.uniform)(keys_of(wanted, made_B, KEEPING))
        row_B = jnp.arange(B)
        keeps_B = is_guess_B & (uniform_B * q_BV[row_B, token_B] < p_BV[row_B, token_B])
        rest_BV = jnp.maximum(p_BV - q_BV, 0)
        rest_BV = jnp.where(rest_BV.sum(-1, keepdims=True) > 0, rest_BV, p_BV)  # p = q, but for their rounding
        left_BV = jnp.where((going_B & ~keeps_B)[:, None], rest_BV, left_BV)
        going_B = going_B & keeps_B
        return (made_B + going_B, going_B, left_BV, with_some(counts, token_B, going_B)), None

    token_TB = jnp.concatenate([guesses.token_BK.T, jnp.zeros((1, B), jnp.int32)])
    q_TBV = guesses.probability_BKV
    if q_TBV is not None:
        q_TBV = jnp.concatenate([q_TBV.transpose(1, 0, 2), jnp.zeros((1, B, V))])
    start = made_B, jnp.ones(B, bool), jnp.zeros((B, V)), counts
    (after_B, _, left_BV, counts), _ = jax.lax.scan(look, start, (jnp.arange(T), logit_TBV, token_TB, q_TBV))
    token_B = draw(left_BV, keys_of(wanted, after_B, INSTEAD), wanted.value_B)
    return token_B, after_B - made_B, with_some(counts, token_B, jnp.ones(B, bool))


@functools.partial(compiling.jit, static_argnames=("setup", "logprobs"), donate_argnames="rows")
def verify(
    setup: decoding.Setup, weights: decoding.Weights, wanted: decoding.Wanted, rows: Ahead, guesses: Guesses, live_B, *,
    logprobs: bool,
) -> tuple[Ahead, Kept]:  # fmt: skip
    """Rows after those of their guesses that are kept and one token more, and these tokens. Rows that are not live stay where
    they are."""
    gpt = nnx.merge(setup.graph, weights.params)
    read_BT = jnp.concatenate([rows.last_B[:, None], guesses.token_BK], 1)
    x_BTD, cache = gpt.extend(read_BT, rows.cache, rows.place_B, wanted.pad_B, weights.layers)
    logit_TBV = gpt.logits(x_BTD, setup.columns).transpose(1, 0, 2)
    last_B, kept_B, counts = judge(setup, wanted, logit_TBV, guesses, rows.made_B, rows.counts)
    row_B, T = jnp.arange(len(kept_B)), len(logit_TBV)
    token_BT = jnp.pad(guesses.token_BK, ((0, 0), (0, 1))).at[row_B, kept_B].set(last_B)
    logprob_BT = None
    if logprobs:
        logprob_BT = jnp.stack([sampling.logprob(logit_TBV[i], token_BT[:, i]) for i in range(T)], 1)
    new = live_B * (kept_B + 1)
    last_B = jnp.where(live_B, last_B, rows.last_B)
    after = Ahead(rows.place_B + new, rows.made_B + new, last_B, gpt.lay_out(cache), counts)
    return after, Kept(token_BT, logprob_BT, kept_B + 1, jnp.asarray(guesses.count_B))


@functools.partial(compiling.jit, static_argnames=("setup", "logprobs"))
def first(
    setup: decoding.Setup, wanted: decoding.Wanted, state: decoding.State, *, logprobs: bool
) -> tuple[Ahead, Kept]:
    """Rows after the first token of a state that decoding made, whose cache is left out; and that token."""
    p_BV = probabilities(setup, wanted.value_B, state.logit_BV, state.counts)
    token_B = draw(p_BV, keys_of(wanted, state.made_B, INSTEAD), wanted.value_B)
    place_B, zero_B = jnp.broadcast_to(state.place, token_B.shape), jnp.zeros_like(token_B)
    counts = with_some(state.counts, token_B, jnp.ones(len(token_B), bool))
    logprob_B1 = sampling.logprob(state.logit_BV, token_B)[:, None] if logprobs else None
    rows = Ahead(place_B, state.made_B + 1, token_B, state.cache, counts)
    return rows, Kept(token_B[:, None], logprob_B1, zero_B + 1, zero_B)


@functools.partial(compiling.jit, static_argnames=("setup", "count", "vocab_size"), donate_argnames="cache")
def propose(setup, weights, wanted, cache, rows: Ahead, *, count: int, vocab_size: int) -> tuple[typing.Any, Guesses]:
    """(the cache of a draft with all that the rows may keep in it, its guesses). rows: of the model, whose cache is left out.
    vocab_size: of the model, whose entries that can be said the draft has too."""
    gpt = nnx.merge(setup.graph, weights.params)

    def step(carry, i):
        cache, token_B, counts = carry
        x_B1D, cache = gpt.extend(token_B[:, None], cache, rows.place_B + i, wanted.pad_B, weights.layers)
        logit_BV = gpt.logits(x_B1D[:, 0], setup.columns)[:, :vocab_size]
        missing = vocab_size - logit_BV.shape[-1]
        logit_BV = jnp.pad(logit_BV, ((0, 0), (0, missing)), constant_values=-jnp.inf)
        probability_BV = probabilities(setup, wanted.value_B, logit_BV, counts)
        token_B = draw(probability_BV, keys_of(wanted, rows.made_B + i, GUESSING), wanted.value_B)
        return (cache, token_B, with_some(counts, token_B, jnp.ones(len(token_B), bool))), (token_B, probability_BV)

    # The last guess is read too, for the cache, and what would follow it is not looked at.
    start = cache, rows.last_B, rows.counts
    (cache, _, _), (token_TB, probability_TBV) = jax.lax.scan(step, start, jnp.arange(count + 1))
    all_B = jnp.full(len(rows.last_B), count, jnp.int32)
    return gpt.lay_out(cache), Guesses(token_TB[:-1].T, all_B, probability_TBV[:-1].transpose(1, 0, 2))


# ---- who guesses


def continuation(token_L: np.ndarray, count: int, longest: int = LONGEST_NGRAM) -> np.ndarray:
    """At most `count` tokens that followed the last tokens of a text where these stood before: the longest run of them that did,
    the last time it did. None, if the last token is new. What would go on beyond the end begins again, as a period does."""
    for n in range(min(longest, len(token_L) - 1), 0, -1):
        before = np.lib.stride_tricks.sliding_window_view(token_L[:-1], n)
        starts = np.flatnonzero((before == token_L[-n:]).all(1))
        if starts.size:
            return np.resize(token_L[starts[-1] + n :], count)
    return token_L[:0]


@dataclasses.dataclass(frozen=True)
class Ngrams:
    """Guesses what followed the last tokens of a row where they stood earlier in it (prompt lookup)."""

    count: int

    def check(self, engine: Engine) -> None:
        """Nothing: it fits every model."""

    def begin(self, engine: Engine, rows: list[Row], places: int):
        """Nothing: the rows have their texts."""

    def guess(self, state, wanted, rows: list[Row], ahead: Ahead, vocab_size: int) -> tuple[None, Guesses]:
        token_BK, count_B = np.zeros((len(ahead.last_B), self.count), np.int32), np.zeros(len(ahead.last_B), np.int32)
        for i, row in enumerate(rows):
            if row.finished is None:
                tokens = continuation(row.tokens, self.count)
                token_BK[i, : len(tokens)], count_B[i] = tokens, len(tokens)
        return None, Guesses(token_BK, count_B)


@dataclasses.dataclass(frozen=True)
class DraftModel:
    """Guesses what a smaller model says, with the settings of the row."""

    engine: Engine
    count: int

    def check(self, engine: Engine) -> None:
        """Raises UserError: it can't guess for this model."""
        _check_rewinds(self.engine, "the draft's")
        here, there = self.engine.config.context_length, engine.config.context_length
        if here < there:
            raise UserError(
                f"the draft has a context of {here} tokens, and the model of {there}; use a draft with at least as many."
            )
        if self.engine.entries != engine.entries:
            raise UserError(
                f"the draft can say {self.engine.entries} tokens and the model {engine.entries}; use a draft with the same"
                " tokenizer."
            )

    def begin(self, engine: Engine, rows: list[Row], places: int):
        """A cache with what the model is shown of rows."""
        shown = [Row(engine.shown(row), seed=0) for row in rows]
        return self.engine.prefill(shown, places_for=places, with_counts=False)[0].cache

    def guess(self, cache, wanted, rows: list[Row], ahead: Ahead, vocab_size: int) -> tuple[typing.Any, Guesses]:
        arguments = self.engine.setup, self.engine.weights, wanted, cache, ahead._replace(cache=None)
        return propose(*arguments, count=self.count, vocab_size=vocab_size)


def _check_rewinds(engine: Engine, whose: str) -> None:
    if not engine.config.has_attention:
        raise UserError(
            f"{whose} model.architecture={engine.config.architecture!r} cannot take back what it has read, as guesses need;"
            " use a model with attention."
        )


class Speculative(Engine):
    """An engine that says what another says, faster where its guesses are right. draft: Ngrams or DraftModel.

    Raises UserError: the draft does not fit the model."""

    def __init__(self, engine: Engine, draft):
        self.graph, self.params, self.config = engine.graph, engine.params, engine.config
        self.cache_dtype, self.entries, self.layers = engine.cache_dtype, engine.entries, engine.layers
        self.draft = draft
        self.guessed = self.kept = 0  # tokens, of all rows so far
        _check_rewinds(engine, "the run's")
        if not 1 <= draft.count <= MOST:
            raise UserError(f"--draft_tokens={draft.count} is out of range; use 1 to {MOST}.")
        draft.check(engine)

    def run(self, rows: list[Row], watch=None, chunk: int = decoding.COLUMNS) -> None:
        """As Engine's. Raises ValueError: rows that name the likeliest tokens, which are not kept of tokens read at once."""
        if any(row.top for row in rows):
            raise ValueError(
                "rows with top name the likeliest tokens, which guesses have not; use an engine without them."
            )
        super().run(rows, watch, chunk)

    def _round(self, rows, watch, chunk: int) -> None:
        """Until each is finished or has filled the context, by its own tokens: where a row begins again from its last half
        decides what it draws, and may not depend on its neighbours."""
        context = self.config.context_length
        rooms = [0 if row.finished else context - len(self.shown(row)) for row in rows]
        limits = [min(len(row.new) + room, row.limit) for row, room in zip(rows, rooms)]
        places = max(limit - len(row.new) for row, limit in zip(rows, limits))
        penalises = any(row.settings.penalties for row in rows)
        state, pad_B = self.prefill(rows, places_for=places, with_counts=penalises)
        of_draft = self.draft.begin(self, rows, places)
        wanted = wanted_of(rows, len(pad_B))._replace(pad_B=pad_B)
        logprobs = any(row.settings.logprobs for row in rows)
        ahead, kept = first(self.setup, wanted, state._replace(cache=None), logprobs=logprobs)
        ahead = ahead._replace(cache=state.cache)
        while True:
            self._take(rows, limits, sharding.on_host(kept), watch)
            live = [row.finished is None and len(row.new) < limit for row, limit in zip(rows, limits)]
            if not any(live):
                return
            live_B = np.array(live + [False] * (len(pad_B) - len(rows)))
            of_draft, guesses = self.draft.guess(of_draft, wanted, rows, ahead, self.config.vocab_size)
            arguments = self.setup, self.weights, wanted, ahead, guesses, live_B
            ahead, kept = verify(*arguments, logprobs=logprobs)

    def _take(self, rows: list[Row], limits: list[int], kept: Kept, watch) -> None:
        """Appends what is kept to the rows, each up to its end or limit."""
        for i, row in enumerate(rows):
            left = limits[i] - len(row.new)
            if row.finished is not None or left <= 0:
                continue
            self.guessed += int(kept.guessed_B[i])
            self.kept += int(kept.count_B[i]) - 1
            token_L = kept.token_BT[i, : min(kept.count_B[i], left)]
            ends = np.flatnonzero(np.isin(token_L, row.ends))
            token_L = token_L[: ends[0] + 1] if ends.size else token_L
            row.take(token_L, None if kept.logprob_BT is None else kept.logprob_BT[i, : len(token_L)], watch)
