"""What the train step takes, call after call, ready on the devices while the call before is running.

rows of text  --reading.py, in a thread or in processes-->  this process's part  --here, in a thread-->  global arrays
"""

import contextlib
import typing

import numpy as np

from gptjax import schedule
from gptjax.data.rows import reading
from gptjax.parallel import placement


class Inputs(typing.NamedTuple):
    """Of one dispatch of S steps."""

    batch: dict  # arrays [S, B, ...] on the devices
    learning_rate_S: np.ndarray
    hash_S: list[int]  # the sum of hashes over this process's rows of each step
    rows_read: int  # of this process


class Feed:
    """`next()` is the Inputs of one call after the other, from `step` on. Use it in a `with`. rewinds: of the run."""

    def __init__(self, session, rewinds, step: int):
        self._config, self._sharding = session.config, session.program.train_batch_sharding
        self._calls = _calls(session, rewinds)
        self._first = step // self._config.train.steps_per_call
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Feed":
        with contextlib.ExitStack() as stack:
            workers = self._config.data.prefetch_workers
            reader = stack.enter_context(reading.Reader(self._calls, self._first, workers))
            ahead = reading.Prefetcher(lambda call: self._place(call, reader.get(call)), self._first)
            self._ahead = stack.enter_context(ahead)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    def next(self) -> Inputs:
        return self._ahead.next()

    def _place(self, call: int, read: dict) -> Inputs:
        parts = dict(zip(self._calls.local_ranges(call), read["batch"]))
        batch = placement.device_batch(
            lambda start, stop: parts[start, stop], self._calls.padded(call), self._sharding, dim=1
        )
        rates = learning_rates(self._config, call)
        return Inputs(batch, rates, [int(h) for h in read["hash_S"]], int(read["rows_read"]))


def learning_rates(config, call: int) -> np.ndarray:
    """float32 [S], of the steps of one dispatch."""
    count = config.train.steps_per_call
    return np.array([schedule.learning_rate(config, s) for s in range(call * count, (call + 1) * count)], np.float32)


def _calls(session, rewinds) -> reading.Calls:
    config, place = session.config, session.program.train_batch_sharding
    unit = config.train.microbatches * session.batch_unit
    sizes = {reading.padded_to(size, unit) for size in schedule.batch_sizes(config)}
    local = {size: placement.local_rows(size, place, dim=1) for size in sizes}
    own = {size: placement.own_rows(size, place, dim=1) for size in sizes}
    return reading.Calls(session.rows, config, unit, local, own, rewinds)
