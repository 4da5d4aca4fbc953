"""Reading ahead: what one process needs of each call of the train step, as a Grain dataset, in a thread or in processes.

Element i of the dataset is a function of i alone. So who reads it, and how many others read beside, changes nothing; and
resuming at a call needs no iterator's state.
"""

import collections
import concurrent.futures
import contextlib
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import threading
from collections.abc import Callable

import numpy as np

from gptjax import schedule
from gptjax.schedule import NO_REWINDS, Rewinds

Ranges = tuple[tuple[int, int], ...]  # (first, stop) of rows of a batch


class Calls:
    """A random-access source for Grain: one element for each call, train.steps_per_call steps.

    unit: batches are padded to a multiple of it, with rows of weight 0: a ramp's first ones may be smaller than the mesh.
    rows: a data.pipeline.TrainRows.
    local, own: {rows in a batch: Ranges}, of the rows that this process needs, and of those it answers for.
    rewinds: what text the run leaves out.
    """

    def __init__(
        self,
        rows,
        config,
        unit: int,
        local: dict[int, Ranges],
        own: dict[int, Ranges],
        rewinds: Rewinds = NO_REWINDS,
    ):
        self._rewinds = rewinds
        self._rows, self._config, self._unit, self._local, self._own = rows, config, unit, local, own

    def __len__(self) -> int:
        return schedule.total_steps(self._config) // self._config.train.steps_per_call

    def __getitem__(self, call: int) -> dict:
        """batch: for each of the local Ranges, arrays [S, rows, ...]. hash_S: the sum of the hashes of this process's own
        rows, for each step. rows_read: how many rows of text they were."""
        config, count = self._config, self._config.train.steps_per_call
        first_rows = [self._rewinds.first_row(config, step) for step in range(call * count, (call + 1) * count)]
        size = schedule.batch_size(config, call * count)
        padded = self.padded(call)
        own = [(start, min(stop, size)) for start, stop in self._own[padded] if start < size]
        hash_S = [
            np.sum([self._rows.hashes(first + start, first + stop).sum() for start, stop in own], dtype=np.uint64)
            for first in first_rows
        ]
        return {
            "batch": [self._read(first_rows, size, start, stop) for start, stop in self._local[padded]],
            "hash_S": np.array(hash_S, np.uint64),
            "rows_read": count * sum(stop - start for start, stop in own),
        }

    def padded(self, call: int) -> int:
        """Rows of each batch of a call, with those of weight 0."""
        return padded_to(schedule.batch_size(self._config, call * self._config.train.steps_per_call), self._unit)

    def local_ranges(self, call: int) -> Ranges:
        return self._local[self.padded(call)]

    def _read(self, first_rows: list[int], size: int, start: int, stop: int) -> dict[str, np.ndarray]:
        parts = [self._rows.rows(first + start, first + stop) for first in first_rows]
        batch = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
        for weight in (array for name, array in batch.items() if name.startswith("weight")):
            weight[:, max(0, size - start) :] = 0
        return batch


def padded_to(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _parse_flags() -> None:
    """Grain's processes ask absl for flags that no command line of ours has."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _end_with_parent(worker: int, workers: int) -> None:
    """In a process that reads: it ends when the one that trains does, also when that is killed."""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(0)), daemon=True).start()


@contextlib.contextmanager
def _quiet_tracker():
    """Python's tracker of shared memory, if it is started meanwhile, frees what was read ahead and not used at the end of a
    run without a warning of leaks."""
    before = os.environ.get("PYTHONWARNINGS")
    quiet = "ignore:resource_tracker:UserWarning"
    os.environ["PYTHONWARNINGS"] = quiet if before is None else f"{before},{quiet}"
    try:
        yield
    finally:
        del os.environ["PYTHONWARNINGS"]
        os.environ |= {} if before is None else {"PYTHONWARNINGS": before}


@contextlib.contextmanager
def _signals_kept_from_children():
    """Processes started meanwhile never see Ctrl-C and SIGTERM, which a terminal or Slurm sends to all of a job: they
    are for the one that trains, which reads on until it has saved."""
    with _quiet_tracker():
        multiprocessing.resource_tracker.ensure_running()  # which would let signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Reader:
    """`get(call)` of Calls, call after call from `first` on. Use it in a `with`. workers: processes that read ahead."""

    def __init__(self, calls: Calls, first: int, workers: int):
        self._calls, self._iterator, self._started = calls, None, False
        if workers:
            import grain  # a quarter of a second that a reader without processes does not need

            _parse_flags()
            dataset = grain.MapDataset.source(calls)
            ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
            processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
            self._iterator = iter(dataset[first:].to_iter_dataset(ahead).mp_prefetch(processes, _end_with_parent))

    def get(self, call: int) -> dict:
        if self._iterator is None:
            return self._calls[call % len(self._calls)]  # as Grain reads ahead of the last one
        with contextlib.nullcontext() if self._started else _signals_kept_from_children():
            read = self._next()
            self._started = True
        # Copied, so that the memory shared with the process that read it goes back now, whoever keeps the arrays.
        return read | {"batch": [{name: np.array(array) for name, array in part.items()} for part in read["batch"]]}

    def _next(self) -> dict:
        """Raises ChildProcessError: a process died; the same command may well succeed later."""
        try:
            return next(self._iterator)
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise ChildProcessError(
                "a process that reads ahead died (killed, or out of memory); run the same command again, or set"
                " data.prefetch_workers=0"
            ) from error

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error) -> None:
        """Ends the processes."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None  # at the interpreter's end Grain's destructors fail with a traceback


AHEAD = 2  # values: one that waits, and one that is computed


class Prefetcher:
    """The values of function(first), function(first + 1), ... in order, `prefetch` of them computed ahead in a thread.

    What the function raises, `next` raises in its place, and the prefetcher is closed. Use it in a `with`, or close it.
    """

    def __init__(self, function: Callable, first: int, prefetch: int = AHEAD):
        self._function = function
        self._step = first
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "prefetch")
        self._pending = collections.deque()
        self._closed = False
        for _ in range(prefetch):
            self._submit()

    def next(self):
        assert not self._closed, "next() of a closed Prefetcher"
        try:
            self._submit()
            return self._pending.popleft().result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Waits for the value being computed, drops those not begun."""
        self._closed = True
        self._pending.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _submit(self) -> None:
        self._pending.append(self._pool.submit(self._function, self._step))
        self._step += 1
