"""Rows as slots: texts begin and end while others are in the middle of theirs, as serving and rollouts need.

    slots = Slots(engine, 8)
    while waiting or slots.rows:
        while waiting and slots.free:
            slots.admit(waiting.pop())
        for row in slots.step():
            ...  # row.new has its tokens so far, row.finished says whether that is all of them

Every shape is fixed: the state has so many rows, each with a cache of the whole context, or of `places`, and each with settings
of its own. Rows that come and go compile nothing but, once for each power of two of its rows and its length, a prefill. Rows
that are admitted together are read together, and those of one prompt are read once. A row says what it says alone in the
engine, which reads a cache no longer than its texts and is the faster for a batch that is known at its start.
"""

import typing

import jax.numpy as jnp
import numpy as np

from gptjax.generation import decoding, sampling
from gptjax.generation.engine import Engine, Row, wanted_of
from gptjax.generation.reading import Reading, put
from gptjax.parallel import numerics


class Prefilled(typing.NamedTuple):
    """Texts that were read last, of which more rows may come."""

    index_of: dict  # {text and how much of it is new, of the row: its row in the state}
    state: decoding.State
    pad_B: np.ndarray


class Slots:
    """A fixed number of places for rows, with the parameters, mesh and cache dtype of an engine.

    places: of each row's cache; None: the whole context. logprobs: whose a row gets, see decoding. penalises: whether rows
    may have penalties, which count all tokens of a row. ends: of each row that there is room for without another program.
    """

    @numerics.settings()
    def __init__(
        self,
        engine: Engine,
        count: int,
        *,
        places: int | None = None,
        logprobs=decoding.MODEL,
        penalises: bool = True,
        ends: int = 1,
    ):
        self._engine, self._logprobs, self._penalises, self._ends = engine, logprobs, penalises, ends
        self._rows: list[Row | None] = [None] * count
        self._places = places or engine.config.context_length
        self._full = np.zeros(count, np.int64)  # new tokens of each row with which it fills its cache
        options = {"rows": count, "places": self._places, "with_counts": penalises}
        self._state = decoding.empty(engine.setup, engine.weights, **options)
        self._prefilled: Prefilled | None = None
        self._bias = (), None  # (those of the rows, the same as one array)

    @property
    def places(self) -> int:
        """How many tokens each row's cache has room for."""
        return self._places

    @property
    def free(self) -> int:
        """How many rows can be admitted."""
        return self._rows.count(None)

    @property
    def rows(self) -> list[Row]:
        """Those that have a slot."""
        return [row for row in self._rows if row is not None]

    @numerics.settings()
    def admit(self, *rows: Row) -> None:
        """Puts rows into free slots, and reads their prompts. Raises UserError: an empty prompt."""
        free = [slot for slot, row in enumerate(self._rows) if row is None]
        assert len(rows) <= len(free), "not so many slots are free; look at .free first"
        for row in rows:
            row.check()
        for slot, row in zip(free, rows):
            self._rows[slot] = row
        self._fill(free[: len(rows)])

    @numerics.settings()
    def place(self, row: Row, reading: Reading) -> None:
        """Puts a row whose prompt was read to its end into a free slot."""
        slot, counts = self._rows.index(None), None
        if self._penalises:
            seen_1V = np.zeros((1, self._engine.config.vocab_size), bool)
            seen_1V[0, row.prompt] = True
            counts = sampling.Counts(seen_1V, np.zeros(seen_1V.shape, np.int32))
        arguments = reading.cache, reading.logit_1V, counts, np.int32(slot), np.int32(len(row.prompt))
        self._state = put(self._engine.setup, self._engine.weights, self._state, *arguments)
        self._rows[slot], self._full[slot] = row, self._places - len(row.prompt)

    def cancel(self, row: Row, reason: str = "cancelled") -> None:
        """Ends a row where it is, and frees its slot."""
        slot = next(i for i, held in enumerate(self._rows) if held is row)
        row.finished, self._rows[slot] = reason, None

    @numerics.settings()
    def step(self, tokens: int = 1, watch=None, until_free: int | None = None) -> list[Row]:
        """Extends all rows by so many tokens, at most decoding.COLUMNS, or fewer where a row ends or fills its cache.

        until_free: fewer for all where so many slots are free, or have a row that ended; None: all slots.
        Returns the rows that were extended; those that are finished have left their slots. watch: see `Engine.run`.
        """
        stepped = self.rows
        if not stepped:
            return []
        options = {"watch": watch, "logprobs": self._logprobs, "done_rows": until_free}
        count = min(tokens, decoding.COLUMNS)
        self._state = self._engine.decode(self._rows, self._wanted(), self._state, count, **options)
        for slot, row in enumerate(self._rows):
            if row is not None and row.finished is not None:
                self._rows[slot] = None
            elif row is not None and (row.altered or len(row.new) == self._full[slot]):
                row.altered = False
                self._fill([slot])  # alone, so that no bit of it depends on who else is read anew
        return stepped

    def _fill(self, slots: list[int]) -> None:
        """Replaces all that slots have with what the model is shown of their rows."""
        slot_of = {}  # {text: its slots}
        for slot in slots:
            row = self._rows[slot]
            shown = self._engine.shown(row)
            self._full[slot] = len(row.new) + self._places - len(shown)
            slot_of.setdefault(_text(row), []).append(slot)
        held = set(slot_of) & set(self._prefilled.index_of if self._prefilled else ())
        self._put({text: slot_of[text] for text in held})
        unread = {text: at for text, at in slot_of.items() if text not in held}
        if unread:
            rows = [self._rows[at[0]] for at in unread.values()]
            prefilled = self._engine.prefill(rows, places_for=0, with_counts=self._penalises)
            self._prefilled = Prefilled({text: i for i, text in enumerate(unread)}, *prefilled)
            self._put(unread)

    def _put(self, slots_of: dict) -> None:
        """Copies what was read of texts into their slots."""
        moves = [(self._prefilled.index_of[text], slot) for text, slots in slots_of.items() for slot in slots]
        if not moves:
            return
        from_N, to_N = np.zeros((2, len(self._rows)), np.int32)
        from_N[: len(moves)], to_N[: len(moves)] = np.transpose(moves)
        move, weights = decoding.Move(from_N, to_N, np.int32(len(moves))), self._engine.weights
        read = self._prefilled
        self._state = decoding.put(self._engine.setup, weights, self._state, read.state, read.pad_B, move)

    def _wanted(self) -> decoding.Wanted:
        nobody = Row(np.zeros(0, np.int32), seed=0)
        wanted = wanted_of([row or nobody for row in self._rows], len(self._rows), self._ends)
        limit_B = np.minimum(wanted.limit_B, self._full).astype(np.int32)
        return wanted._replace(limit_B=limit_B, bias_BV=self._bias_of_rows())

    def _bias_of_rows(self):
        """[B, V], the array of the call before where no row has another bias than then; None: no row has one."""
        biases = tuple(None if row is None else row.bias_V for row in self._rows)
        if all(bias_V is None for bias_V in biases):
            return None
        before, bias_BV = self._bias
        if len(before) != len(biases) or any(old is not new for old, new in zip(before, biases)):
            host_BV = np.zeros((len(biases), self._engine.config.vocab_size), np.float32)
            for slot, bias_V in enumerate(biases):
                if bias_V is not None:
                    host_BV[slot] = bias_V
            bias_BV = jnp.asarray(host_BV)
            self._bias = biases, bias_BV
        return bias_BV


def _text(row: Row) -> tuple[bytes, int]:
    """What decides the state after a row was read."""
    return row.tokens.tobytes(), len(row.new)
