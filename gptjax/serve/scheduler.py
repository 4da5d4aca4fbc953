"""What is worked on next: a few chunks of the prompts that are being read, then a few tokens of every row.

All of it runs on one thread and waits for nobody: the batcher gives it rows, and calls `turn` while there are some. Prompts
are read in the order in which they came, so that one row's cache is enough for those that are not yet whole.
"""

import collections
import dataclasses
import time

from gptjax.generation.reading import Reader, Reading
from gptjax.generation.slots import Slots
from gptjax.serve.row import JobRow

ENDS = 8  # of a row that a program has room for; a row with more has a program of its own
CALL_SECONDS = 0.02  # that a call of decode may take: nobody joins, leaves, or is heard before it returns
MOST_TOKENS = 8  # in a call of decode, however fast: a stream that gets more at a time stutters


@dataclasses.dataclass
class Totals:
    """Since the start."""

    prompt_tokens: int = 0  # of the rows whose prompt was read or copied
    cached_tokens: int = 0  # of these, copied
    new_tokens: int = 0
    steps: int = 0  # calls of decode


class Scheduler:
    """Rows that have a slot, and turns of work on them. options: BatcherOptions; places: of each row's cache."""

    def __init__(self, engine, options, places: int, totals: Totals):
        self._totals, self._prefill_tokens = totals, options.prefill_tokens
        self._slots = Slots(engine, options.slots, places=places, ends=ENDS)
        chunk = options.chunk(places)
        self._reader = Reader(engine, places=places, chunk=chunk, prefix_tokens=options.kept(places))
        self._unread: collections.deque[JobRow] = collections.deque()
        self._reading: Reading | None = None  # of the first of unread
        self._seconds_per_token = CALL_SECONDS

    @property
    def free(self) -> int:
        """How many rows can be admitted."""
        return self._slots.free - len(self._unread)

    @property
    def rows(self) -> list[JobRow]:
        """Those that were admitted and are not finished."""
        return [*self._slots.rows, *self._unread]

    def admit(self, row: JobRow) -> None:
        assert self.free > 0, "no slot is free; look at .free first"
        self._unread.append(row)

    def cancel(self, row: JobRow) -> None:
        """Ends an admitted row where it is, and frees its slot."""
        at = next((i for i, unread in enumerate(self._unread) if unread is row), None)
        if at is None:
            self._slots.cancel(row)
        else:
            row.finished = "cancelled"
            del self._unread[at]
            self._reading = None if at == 0 else self._reading
        row.end()

    def turn(self, others_wait: bool) -> list[JobRow]:
        """Some prompt, some tokens. others_wait: for a slot, so that one that becomes free is given up at once. Returns the rows
        that were finished, which were told so."""
        finished = self._read()
        if self._slots.rows:
            finished += self._decode(others_wait or bool(self._unread))
        return finished

    def _read(self) -> list[JobRow]:
        """Reads prefill_tokens of prompts. Returns the rows of which no token is made."""
        left, finished = self._prefill_tokens, []
        while self._unread and left > 0:
            row = self._unread[0]
            if self._reading is None:
                self._reading = self._reader.begin(row.prompt, scored=row.job.prompt_scores)
            if not self._reading.finished:
                left -= self._reader.advance(self._reading)
            if self._reading.finished:
                self._begin(row, self._reading)
                self._unread.popleft()
                self._reading = None
                finished += [row] * (row.finished is not None)
        return finished

    def _begin(self, row: JobRow, reading: Reading) -> None:
        """Puts a row whose prompt was read into a slot, or ends it where no token is to be made."""
        row.begin(reading)
        self._totals.prompt_tokens += len(row.prompt)
        self._totals.cached_tokens += reading.cached_tokens
        if row.finished is None:
            self._slots.place(row, reading)
        else:
            row.end()

    def _decode(self, others_wait: bool) -> list[JobRow]:
        rows = self._slots.rows
        before = sum(len(row.new) for row in rows)
        is_constrained = any(row.job.constraint is not None for row in rows)
        tokens = 1 if is_constrained else round(min(max(1, CALL_SECONDS / self._seconds_per_token), MOST_TOKENS))
        started = time.perf_counter()
        until_free = self._slots.free + 1 if others_wait else None
        self._slots.step(tokens, watch=JobRow.hear, until_free=until_free)
        self._seconds_per_token = (time.perf_counter() - started) / tokens
        self._totals.steps += 1
        self._totals.new_tokens += sum(len(row.new) for row in rows) - before
        finished = [row for row in rows if row.finished is not None]
        for row in finished:
            row.end()
        return finished
