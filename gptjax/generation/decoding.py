"""The two programs that make text, as pure functions: prefill reads prompts into a cache of keys and values, and decode
makes tokens from it, one of each row at a time. The engine calls them with a rectangle of rows, slots with rows that come
and go.

Each row has its own prompt, settings and seed, and its tokens depend on these alone. Axes: B rows, L tokens of a prompt,
C columns of new tokens, V vocabulary.
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.generation import sampling
from gptjax.hosts import compiling
from gptjax.models import loss
from gptjax.models.layers import DTYPES
from gptjax.parallel import sharding

COLUMNS = 64  # new tokens that a call of decode makes at most
NO_TOKEN = -1  # the end-of-text of a row that has none
# Whose log-probabilities of new tokens are returned: the model's own, before any setting, or what they were drawn from.
MODEL, DRAWN = "model", "drawn"
LIKELIEST = 20  # tokens that are named at each place, where somebody asks: what OpenAI's API allows


@dataclasses.dataclass(frozen=True)
class Setup:
    """What programs are compiled for."""

    graph: typing.Any  # of the model
    cache_dtype: str
    entries: int  # of the vocabulary that can be said
    options: tuple  # sampling.table()
    columns: bool = False  # whether few rows are multiplied as layers.by_columns does


class Weights(typing.NamedTuple):
    params: dict
    layers: tuple | None = None  # apart, see model.apart


class Prompts(typing.NamedTuple):
    """Padded in front, so that all end at one place."""

    token_BL: typing.Any
    pad_B: typing.Any  # places before a prompt
    made_B: typing.Any  # how many of a row's tokens are new ones, also of those that are no longer in the prompt
    done_B: typing.Any
    counts: sampling.Counts | None  # None: no row penalises


class Wanted(typing.NamedTuple):
    """What was asked for in each row."""

    seed_B2: typing.Any  # uint32: the higher and the lower half of each row's seed
    limit_B: typing.Any  # new tokens at most, those of earlier calls included
    stop_BE: typing.Any  # the tokens that end it, each alone; NO_TOKEN where there are fewer
    value_B: dict  # sampling.values()
    pad_B: typing.Any = None  # places of the cache before the row; None: none
    bias_BV: typing.Any = None  # added to the logits before anything else; None: no row has one


class State(typing.NamedTuple):
    """Rows between two tokens."""

    place: jax.Array  # of the cache where the next token goes: one for all rows, or one for each, [B]
    made_B: jax.Array
    done_B: jax.Array
    logit_BV: jax.Array  # of the token that comes next
    cache: typing.Any
    counts: sampling.Counts | None


class Likeliest(typing.NamedTuple):
    """The likeliest tokens at each new one, K = LIKELIEST of them, the likeliest first."""

    token_BCK: jax.Array
    logprob_BCK: jax.Array  # as the model gives them, before any setting; -inf: the tokens that can be said are fewer


class New(typing.NamedTuple):
    """Tokens of one call. A row has those of its first columns, up to where it was done."""

    token_BC: jax.Array
    logprob_BC: jax.Array | None  # of the distribution that the caller names; None: nobody asks
    likeliest: Likeliest | None = None


@functools.partial(compiling.jit, static_argnames="graph")
def layers_apart(graph, params):
    return nnx.merge(graph, params).apart(columns=True)


@functools.partial(compiling.jit, static_argnames=("setup", "places", "of_prompt"))
def prefill(setup: Setup, weights: Weights, prompts: Prompts, *, places: int, of_prompt: bool):
    """The state after the prompts, in a cache of so many places, and the log-probabilities of their tokens but the first,
    [B, L - 1], if wanted."""
    gpt = nnx.merge(setup.graph, weights.params)
    batch, length = prompts.token_BL.shape
    cache = gpt.empty_cache(batch, places, DTYPES[setup.cache_dtype], apart=weights.layers is not None)
    x_BLD, cache = gpt.extend(prompts.token_BL, cache, 0, prompts.pad_B, weights.layers)
    logit_BV = gpt.logits(x_BLD[:, -1], setup.columns)
    state = State(jnp.int32(length), prompts.made_B, prompts.done_B, logit_BV, cache, prompts.counts)
    state = lay_out(gpt, state)
    if not of_prompt:
        return state, None
    options = {"vocab_size": gpt.config.vocab_size, "softcap": gpt.config.logit_softcap}
    chunks = 8 if gpt.config.padded_vocab_size > 4096 else 1
    loss_BL, _ = loss.cross_entropy(x_BLD[:, :-1], gpt.head_VD, prompts.token_BL[:, 1:], chunks=chunks, **options)
    return state, -loss_BL


@functools.partial(compiling.jit, static_argnames=("setup", "logprobs", "likeliest"), donate_argnames="state")
def decode(
    setup: Setup, weights: Weights, wanted: Wanted, state: State, count, done, *, logprobs: str | None, likeliest=False
) -> tuple[State, New]:
    """The state after `count` tokens more, or fewer where `done` of the rows are; and these tokens.

    logprobs: MODEL, DRAWN or None. likeliest: whether these are named."""
    new = _blank(len(state.done_B), logprobs, likeliest)
    gpt = nnx.merge(setup.graph, weights.params)
    key_B = jax.random.wrap_key_data(wanted.seed_B2)

    def unfinished(carry):
        column, s, _ = carry
        return (column < count) & (s.done_B.sum() < done)

    def step(carry):
        column, s, new = carry
        token_B, logprob_B = _choose(setup, wanted, key_B, s, logprobs)
        new = jax.tree.map(
            lambda into_BC, a_B: jax.lax.dynamic_update_slice_in_dim(into_BC, a_B[:, None], column, axis=1),
            new,
            New(token_B, logprob_B, likeliest_of(setup, s.logit_BV) if likeliest else None),
        )
        live_B = ~s.done_B
        x_B1D, cache = gpt.extend(token_B[:, None], s.cache, s.place, wanted.pad_B, weights.layers)
        made_B = s.made_B + live_B
        stopped_B = (token_B[:, None] == wanted.stop_BE).any(1)
        done_B = s.done_B | stopped_B | (made_B >= wanted.limit_B)
        place = s.place + (live_B if s.place.ndim else 1)
        counts = None if s.counts is None else s.counts.with_tokens(token_B)
        return column + 1, State(place, made_B, done_B, gpt.logits(x_B1D[:, 0], setup.columns), cache, counts), new

    _, state, new = jax.lax.while_loop(unfinished, step, (jnp.int32(0), state, new))
    return lay_out(gpt, state), new


def _blank(batch: int, logprobs: str | None, likeliest: bool) -> New:
    zeros = lambda dtype, *shape: jnp.zeros((batch, COLUMNS, *shape), dtype)  # noqa: E731
    top = Likeliest(zeros(jnp.int32, LIKELIEST), zeros(jnp.float32, LIKELIEST)) if likeliest else None
    return New(zeros(jnp.int32), zeros(jnp.float32) if logprobs else None, top)


def likeliest_of(setup: Setup, logit_BV) -> Likeliest:
    """The likeliest tokens of logits [..., V]: both arrays [..., K]."""
    normaliser_B1 = jax.nn.logsumexp(logit_BV, axis=-1, keepdims=True)
    logit_BV = loss.mask_padding(logit_BV, setup.entries)
    logit_BK, token_BK = jax.lax.top_k(logit_BV, min(LIKELIEST, logit_BV.shape[-1]))
    lacking = [(0, 0)] * (logit_BK.ndim - 1) + [(0, LIKELIEST - logit_BK.shape[-1])]
    return Likeliest(jnp.pad(token_BK, lacking), jnp.pad(logit_BK - normaliser_B1, lacking, constant_values=-jnp.inf))


def lay_out(gpt, state: State) -> State:
    """The state, always in one layout on a mesh: a program would be compiled again for another."""
    by_row = lambda a: sharding.constrain(a, "batch", "vocab")  # noqa: E731
    whole = lambda a: sharding.constrain(a, *(None,) * a.ndim)  # noqa: E731
    return State(
        place=whole(state.place),
        made_B=whole(state.made_B),
        done_B=whole(state.done_B),
        logit_BV=by_row(state.logit_BV),
        cache=gpt.lay_out(state.cache),
        counts=jax.tree.map(by_row, state.counts),
    )


def _choose(setup: Setup, wanted: Wanted, key_B, s: State, logprobs: str | None):
    """(the next token of each row, its log-probability or None), by a key of its own that goes by the number of the token."""
    logit_BV = s.logit_BV
    if setup.entries < logit_BV.shape[-1]:
        logit_BV = loss.mask_padding(logit_BV, setup.entries)
    if wanted.bias_BV is not None:
        logit_BV = logit_BV + wanted.bias_BV
    key_B = jax.vmap(jax.random.fold_in)(key_B, s.made_B)
    arguments = (setup.options, logit_BV, key_B, wanted.value_B, s.counts)
    token_B, logprob_B = sampling.draw(*arguments, logprobs=logprobs == DRAWN)
    return token_B, sampling.logprob(s.logit_BV, token_B) if logprobs == MODEL else logprob_B


# ---- rows that come and go


@functools.partial(compiling.jit, static_argnames=("setup", "rows", "places", "with_counts"))
def empty(setup: Setup, weights: Weights, *, rows: int, places: int, with_counts: bool) -> State:
    """Rows that are done, each with a cache of so many places."""
    gpt = nnx.merge(setup.graph, weights.params)
    vocab_size, dtype = gpt.config.vocab_size, DTYPES[setup.cache_dtype]
    zero_B, blank_BV = jnp.zeros(rows, jnp.int32), jnp.zeros((rows, vocab_size), jnp.float32)
    cache = gpt.empty_cache(rows, places, dtype, apart=weights.layers is not None)
    counts = sampling.Counts(blank_BV.astype(bool), blank_BV.astype(jnp.int32)) if with_counts else None
    return lay_out(gpt, State(zero_B, zero_B, jnp.ones(rows, bool), blank_BV, cache, counts))


class Move(typing.NamedTuple):
    """Rows of a prefill that are put into rows of a state, the first `count` of each array; one may be put into several."""

    from_N: typing.Any
    to_N: typing.Any
    count: typing.Any


@functools.partial(compiling.jit, static_argnames="setup", donate_argnames="state")
def put(setup: Setup, weights: Weights, state: State, prefilled: State, pad_B, move: Move) -> State:
    """The state with everything of some rows replaced by that of a prefill, whose rows have so much padding."""
    gpt = nnx.merge(setup.graph, weights.params)
    prefilled = prefilled._replace(place=prefilled.place - pad_B)

    def put_one(i, state: State) -> State:
        source, row = move.from_N[i], move.to_N[i]
        cache = gpt.put_row(state.cache, gpt.take_rows(prefilled.cache, source[None]), row, pad_B[source])
        others = state._replace(cache=None), prefilled._replace(cache=None)
        return jax.tree.map(lambda into, new: into.at[row].set(new[source]), *others)._replace(cache=cache)

    return lay_out(gpt, jax.lax.fori_loop(0, move.count, put_one, state))
