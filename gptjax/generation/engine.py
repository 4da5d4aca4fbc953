"""Tokens to tokens: prompts of unequal length go through the model once (prefill), then it makes a token of each row at a
time (decode), with a cache of keys and values. Both are compiled once for each bucket of rows, prompt and new tokens.

Rows are padded on the left, so that all end at the same place of the cache; a row sees nothing of its padding, its
positions count from its own start, and it draws with a key and settings of its own: what it says depends on its prompt,
settings and seed, not on its neighbours. A text longer than the context goes on from its last half, which becomes the
prompt of a new cache.

The engine runs a batch from its start to its end, with a cache no longer than its texts. Rows that come and go, each with
a cache of the whole context, are slots.py's; both have the programs of decoding.py.

On a CPU the layers are taken apart: one by one they are read where they lie, while slices of the stack would be copied
for every token. That costs a second copy of them, in which each matrix lies as its product with few rows is fastest.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gptjax.errors import UserError
from gptjax.generation import decoding, sampling
from gptjax.generation.settings import Settings
from gptjax.models.layers import DTYPES
from gptjax.parallel import numerics, sharding

MAX_ROWS = 64  # in one batch


@dataclasses.dataclass
class Row:
    """One text that is being made."""

    prompt: np.ndarray
    seed: int  # below 2 ** 64
    settings: Settings = dataclasses.field(default_factory=Settings)
    eot_id: int | None = None  # the token that ends the text, and is no part of it
    stop_ids: tuple[int, ...] = ()  # others that do, such as the end of a turn in a conversation
    new: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)  # of new, natural logarithms; if settings ask
    prompt_logprobs: np.ndarray | None = None  # of prompt[1:]; of a prompt longer than the context, of its end
    finished: str | None = None  # eot | length | stop, or what the watcher said
    altered: bool = False  # whether it has other new tokens than those that were drawn: it is then read anew
    bias_V: np.ndarray | None = None  # float32, added to the logits of its next token; replaced, never changed
    top: int = 0  # how many of the likeliest tokens it names at each new one, at most decoding.LIKELIEST
    likeliest: list[tuple] = dataclasses.field(
        default_factory=list
    )  # at each of new: (token, log-probability) of these

    @property
    def limit(self) -> int:
        """New tokens at most."""
        return self.settings.max_tokens

    @property
    def tokens(self) -> np.ndarray:
        return np.concatenate([self.prompt, np.array(self.new, np.int32)])

    @property
    def ends(self) -> tuple[int, ...]:
        """eot_id and stop_ids, each once."""
        return tuple(dict.fromkeys(i for i in (self.eot_id, *self.stop_ids) if i is not None))

    def check(self) -> None:
        """Raises UserError: an empty prompt."""
        if self.prompt.size == 0:
            raise UserError(
                "the prompt is empty, and this tokenizer has no end-of-text token to start from; give --prompt."
            )

    def take(self, token_L, logprob_L, watch=None) -> None:
        """Appends its next tokens, of which the last may be the end-of-text. watch: see `Engine.run`."""
        ended = len(token_L) > 0 and int(token_L[-1]) in self.ends
        kept = token_L[:-1] if ended else token_L
        self.new += kept.tolist()
        del self.likeliest[len(self.new) :]
        if self.settings.logprobs:
            self.logprobs += logprob_L[: len(kept)].tolist()
        if ended:
            self.finished = "eot"
        elif len(self.new) >= self.limit:
            self.finished = "length"
        verdict = watch(self, kept) if watch is not None else None
        if verdict is not None:
            self.finished, keep = verdict
            del self.new[keep:], self.logprobs[keep:], self.likeliest[keep:]


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

    @property
    def _on_one_cpu(self) -> bool:
        devices = jax.tree.leaves(self.params)[0].devices()
        return len(devices) == 1 and next(iter(devices)).platform == "cpu"

    @functools.cached_property
    def layers(self):
        """The layers apart; None where the stack is as good."""
        return decoding.layers_apart(self.graph, self.params) if self._on_one_cpu else None

    @property
    def weights(self) -> decoding.Weights:
        """The parameters, laid out as they are read fastest."""
        return decoding.Weights(self.params, self.layers)

    @property
    def setup(self) -> decoding.Setup:
        """What programs are compiled for, with the options that there are now."""
        return decoding.Setup(self.graph, self.cache_dtype, self.entries, sampling.table(), self._on_one_cpu)

    @numerics.settings()
    def run(self, rows: list[Row], watch=None, chunk: int = decoding.COLUMNS) -> None:
        """Extends rows until each is finished.

        watch(row, new tokens) is called after every `chunk` tokens, at most decoding.COLUMNS. It may end the row by
        returning (reason, tokens to keep); None lets it go on. Raises ValueError: rows with a bias, which is of one token.
        """
        if any(row.bias_V is not None for row in rows):
            raise ValueError("rows with bias_V change it from token to token, as slots do; run them in slots.")
        for first in range(0, len(rows), MAX_ROWS):
            batch = rows[first : first + MAX_ROWS]
            for row in batch:
                row.check()
            while any(row.finished is None for row in batch):
                self._round(batch, watch, min(chunk, decoding.COLUMNS))

    def _round(self, rows, watch, chunk: int) -> None:
        """Until all are finished or the longest has filled the context."""
        left = max(row.limit - len(row.new) for row in rows if row.finished is None)
        longest = max(len(self.shown(row)) for row in rows)
        new = min(left, self.config.context_length - longest)
        penalises = any(row.settings.penalties for row in rows)
        state, pad_B = self.prefill(rows, places_for=new, with_counts=penalises)
        wanted = wanted_of(rows, len(pad_B))._replace(pad_B=pad_B)
        logprobs, made = decoding.MODEL if any(row.settings.logprobs for row in rows) else None, 0
        while made < new and any(row.finished is None for row in rows):
            count = min(new - made, chunk)
            state = self.decode(rows, wanted, state, count, watch, logprobs=logprobs)
            made += count

    def prefill(self, rows: list[Row], *, places_for: int, with_counts: bool) -> tuple[decoding.State, np.ndarray]:
        """The state after what is shown of rows, in a cache with places for so many tokens more, and pad_B.

        The rows are padded to a power of two with rows that are done. prompt_logprobs is set in rows that ask for it.
        """
        shown = [self.shown(row) for row in rows]
        length, batch = _bucket(max(len(tokens) for tokens in shown)), _bucket(len(rows), least=1)
        pad_B = np.full(batch, length - 1, np.int32)
        token_BL = np.zeros((batch, length), np.int32)
        for i, tokens in enumerate(shown):
            pad_B[i] = length - len(tokens)
            token_BL[i, pad_B[i] :] = tokens
        made_B = np.array([len(row.new) for row in rows] + [0] * (batch - len(rows)), np.int32)
        counts = self._counts(rows, batch) if with_counts else None
        prompts = decoding.Prompts(token_BL, pad_B, made_B, done(rows, batch), counts)
        asking = [i for i, row in enumerate(rows) if row.settings.logprobs and not row.new]
        places = length + (_bucket(places_for) if places_for else 0)
        options = {"places": places, "of_prompt": bool(asking)}
        state, logprob_BL = decoding.prefill(self.setup, self.weights, prompts, **options)
        if asking:
            logprob_BL = sharding.on_host(logprob_BL)
        for i in asking:
            if rows[i].prompt_logprobs is None:
                rows[i].prompt_logprobs = logprob_BL[i, pad_B[i] :]
        return state, pad_B

    def decode(self, rows, wanted, state, count: int, watch=None, *, logprobs, done_rows=None) -> decoding.State:
        """The state after `count` tokens more, which are appended to the rows. rows: None for one that is not in use.

        logprobs: whose, see decoding. done_rows: fewer tokens where so many are done or not in use; None: all. A row's bias
        is of one token: where it changes from token to token, count is 1.
        """
        made_B = np.array([0 if row is None else len(row.new) for row in rows])
        batch = len(wanted.seed_B2)
        state = state._replace(done_B=jnp.array(done(rows, batch)))
        numbers = np.int32(count), np.int32(batch if done_rows is None else done_rows)
        options = {"logprobs": logprobs, "likeliest": any(row is not None and row.top for row in rows)}
        state, new = decoding.decode(self.setup, self.weights, wanted, state, *numbers, **options)
        made_after_B, (token_BC, logprob_BC, top) = sharding.on_host((state.made_B, new))
        for i, row in enumerate(rows):
            if row is not None and row.finished is None:
                columns = made_after_B[i] - made_B[i]
                if row.top:
                    row.likeliest += named(top.token_BCK[i, :columns], top.logprob_BCK[i, :columns], row.top)
                row.take(token_BC[i, :columns], None if logprob_BC is None else logprob_BC[i, :columns], watch)
        return state

    def shown(self, row: Row) -> np.ndarray:
        """The tokens of a row that the model sees at the start of a round. Of a finished row it is one, so that it does not
        keep the others from filling the context."""
        context, tokens = self.config.context_length, row.tokens
        if row.finished is not None:
            return tokens[-1:]
        if not row.new:
            return tokens[-(context - 1) :]
        if len(row.prompt[-(context - 1) :]) + len(row.new) < context:
            return tokens[-(context - 1) :]
        half = max(1, context // 2)
        held = min(len(row.prompt), context - 1) + len(row.new)
        return tokens[-(half + (held - context) % (context - half)) :]

    def _counts(self, rows, batch: int) -> sampling.Counts:
        seen_BV = np.zeros((batch, self.config.vocab_size), bool)
        count_BV = np.zeros(seen_BV.shape, np.int32)
        for i, row in enumerate(rows):
            seen_BV[i, row.tokens] = True
            np.add.at(count_BV[i], np.array(row.new, np.int64), 1)
        return sampling.Counts(seen_BV, count_BV)


def wanted_of(rows: list[Row], batch: int, least_ends: int = 1) -> decoding.Wanted:
    """Settings, seeds and ends of rows, as arrays of `batch` rows. least_ends: of the ends that there is room for in a row."""
    blank = [0] * (batch - len(rows))
    most_ends = max([least_ends, *(len(row.ends) for row in rows)])
    stop_BE = np.full((batch, most_ends), decoding.NO_TOKEN, np.int32)
    for i, row in enumerate(rows):
        stop_BE[i, : len(row.ends)] = row.ends
    return decoding.Wanted(
        seed_B2=np.array([divmod(row.seed, 2**32) for row in rows] + [(0, 0)] * len(blank), np.uint32),
        limit_B=np.array([row.limit for row in rows] + blank, np.int32),
        stop_BE=stop_BE,
        value_B=sampling.values([row.settings for row in rows], batch),
    )


def named(token_CK, logprob_CK, count: int) -> list[tuple[tuple[int, float], ...]]:
    """At each place the first `count` of the likeliest tokens with their log-probabilities; such as cannot be said, left out."""
    pairs_of_places = (zip(*place) for place in zip(token_CK[:, :count].tolist(), logprob_CK[:, :count].tolist()))
    return [tuple((token, logprob) for token, logprob in pairs if logprob > -np.inf) for pairs in pairs_of_places]


def done(rows: list[Row | None], batch: int) -> np.ndarray:
    """Which of so many rows need no token more."""
    unfinished = [row is not None and row.finished is None for row in rows]
    return np.array([not each for each in unfinished] + [True] * (batch - len(rows)))


def _bucket(n: int, least: int = 16) -> int:
    """The next power of two."""
    return max(least, 1 << max(0, n - 1).bit_length())
