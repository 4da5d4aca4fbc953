"""Rows as slots: texts begin and end while others are in the middle of theirs, as serving and rollouts need.

    slots = Slots(engine, 8)
    while waiting or slots.rows:
        while waiting and slots.free:
            slots.admit(waiting.pop())
        for row in slots.step():
            ...  # row.new has its tokens so far, row.finished says whether that is all of them

Every shape is fixed: the state has so many rows, each with a cache of the whole context, and each with settings of its own.
Rows that come and go compile nothing but, once for each power of two of its length, the prefill of a prompt. A row says
what it says alone in the engine, which reads a shorter cache and is the faster for a batch that is known at its start.
"""

import numpy as np

from gptjax.generation import decoding
from gptjax.generation.engine import Engine, Row, wanted_of
from gptjax.parallel import numerics


class Slots:
    """A fixed number of places for rows, with the parameters, mesh and cache dtype of an engine."""

    @numerics.settings()
    def __init__(self, engine: Engine, count: int):
        self._engine = engine
        self._rows: list[Row | None] = [None] * count
        self._full = np.zeros(count, np.int64)  # new tokens of each row with which it fills its cache
        self._state = decoding.empty(engine.setup, engine.weights(count), rows=count)

    @property
    def free(self) -> int:
        """How many rows can be admitted."""
        return self._rows.count(None)

    @property
    def rows(self) -> list[Row]:
        """Those that have a slot."""
        return [row for row in self._rows if row is not None]

    @numerics.settings()
    def admit(self, row: Row) -> None:
        """Puts a row into a free slot, and reads its prompt. Raises UserError: an empty prompt."""
        assert self.free, "no slot is free; look at .free first"
        row.check()
        slot = self._rows.index(None)
        self._fill(slot, row)
        self._rows[slot] = row

    def cancel(self, row: Row, reason: str = "cancelled") -> None:
        """Ends a row where it is, and frees its slot."""
        slot = next(i for i, held in enumerate(self._rows) if held is row)
        row.finished, self._rows[slot] = reason, None

    @numerics.settings()
    def step(self, tokens: int = 1, watch=None) -> list[Row]:
        """Extends all rows by so many tokens, at most decoding.COLUMNS, or fewer where a row ends or fills its cache.

        Returns the rows that were extended; those that are finished have left their slots. watch: see `Engine.run`.
        """
        stepped = self.rows
        if not stepped:
            return []
        count = min(tokens, decoding.COLUMNS)
        self._state = self._engine.decode(self._rows, self._wanted(), self._state, count, watch, logprobs=True)
        for slot, row in enumerate(self._rows):
            if row is not None and row.finished is not None:
                self._rows[slot] = None
            elif row is not None and len(row.new) == self._full[slot]:
                self._fill(slot, row)
        return stepped

    def _fill(self, slot: int, row: Row) -> None:
        """Replaces all that a slot has with what the model is shown of a row."""
        one, pad_B = self._engine.prefill([row], places_for=0, with_counts=True)
        self._full[slot] = len(row.new) + self._engine.config.context_length - len(self._engine.shown(row))
        which = np.int32(slot), np.int32(pad_B[0])
        self._state = decoding.put(self._engine.setup, self._engine.weights(len(self._rows)), self._state, one, *which)

    def _wanted(self) -> decoding.Wanted:
        nobody = Row(np.zeros(0, np.int32), seed=0)
        wanted = wanted_of([row or nobody for row in self._rows], len(self._rows))
        return wanted._replace(limit_B=np.minimum(wanted.limit_B, self._full).astype(np.int32))
