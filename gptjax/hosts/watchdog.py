"""A run that no longer gets on ends, and leaves word where it stood: stacks of all threads, and exit code STALLED.

A step may take FACTOR times the median step, and in any case LEAST_SECONDS; whatever else the run does (compiling,
evaluating, saving, resuming, the first steps) may take train.stall_seconds, of which both follow on a slower machine. Waiting for other processes to compile counts as neither: that has a limit of
its own (compiling.py). A thread watches; the C thread of faulthandler watches that one, in case a call never gives Python's
lock back: then the stacks go to stderr and the exit code is 1, all that it can do.
"""

import collections
import contextlib
import faulthandler
import os
import statistics
import sys
import tempfile
import threading
import time

from gptjax.errors import STALLED
from gptjax.hosts import coordination

LOOK_SECONDS = 0.5
STEPS_KNOWN = 5  # before there are so many, no median is trusted
FACTOR = 20  # times the median
LEAST_SECONDS = 300.0  # of a step: a disk or network may stand still for minutes
SHARE = 1 / 12  # of stall_seconds, where that is more


class Watchdog:
    """Watches while the `with` lasts. directory: epath of the run; leave(why, code) tells peers."""

    def __init__(self, directory, index: int, config, leave=lambda why, code: None):
        self._file = directory / f"watchdog-{index}.txt"
        self._allowed, self._leave = config.train.stall_seconds, leave
        self._seconds = collections.deque(maxlen=101)  # of the last steps
        self._doing = "starting"
        self._since = time.monotonic()
        self._closed = threading.Event()
        self._stack = contextlib.ExitStack()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._stack.enter_context(coordination.kept_alive(self.alive))
        if self._allowed is not None:
            self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def alive(self) -> None:
        """A sign of life during something that is not a step."""
        self._since = time.monotonic()

    def stepped(self) -> None:
        """A call has come to its end: the next one may take as long as these did, times the factor."""
        now = time.monotonic()
        if self._doing == "training":
            self._seconds.append(now - self._since)
        self._doing, self._since = "training", now

    @contextlib.contextmanager
    def doing(self, what: str):
        """Something that may take train.stall_seconds; the time it takes is no step's."""
        before, self._doing = self._doing, what
        self.alive()
        try:
            yield
        finally:
            self._doing = before
            self.alive()

    @property
    def now_doing(self) -> str:
        return self._doing

    def call_seconds(self) -> float | None:
        """Of a call of the train step, the median of the last ones; None before there are STEPS_KNOWN."""
        seconds = list(self._seconds)
        return statistics.median(seconds) if len(seconds) >= STEPS_KNOWN else None

    def limit(self) -> float:
        """Seconds that may pass from the last sign of life."""
        if self._doing != "training" or len(self._seconds) < STEPS_KNOWN:
            return self._allowed
        return max(FACTOR * statistics.median(self._seconds), self._least())

    def _least(self) -> float:
        """Seconds that a step may take whatever the median: never more than anything else."""
        return min(self._allowed, max(LEAST_SECONDS, SHARE * self._allowed))

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            longest = self._allowed + self._least()
            faulthandler.dump_traceback_later(longest, exit=True, file=2)  # sys.stderr may be no file, as in a notebook
            silent, limit = time.monotonic() - self._since, self.limit()
            if silent > limit:
                self._end(silent, limit)

    def _end(self, silent: float, limit: float) -> None:
        """Writing may hang where the run directory's disk is what hangs: it gets ten seconds."""
        timer = threading.Timer(10, os._exit, (STALLED,))
        timer.daemon = True
        timer.start()
        why = f"{self._doing}: no progress for {silent:.0f} s, allowed are {limit:.0f} s"
        print(f"\ngptjax: {why}; stacks in {self._file}", file=sys.stderr, flush=True)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {why}\n\n{_stacks()}")
            self._leave(why, STALLED)
        finally:
            os._exit(STALLED)


def _stacks() -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
