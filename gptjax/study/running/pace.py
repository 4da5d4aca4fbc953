"""How long a study still takes, by what was seen of its processes: each starts (imports, text, compilation), then it runs.

Starting makes no steps, so a study's first minutes say nothing about its speed: the two are timed apart, and what is left is
the FLOPs at the speed of processes that run, and a start for each process to come.
"""

import dataclasses
import typing

ENOUGH = 5.0  # seconds of running, over all processes, before a speed is told


@dataclasses.dataclass
class _Process:
    keys: tuple[str, ...]
    began: float
    flops_before: float  # of its runs, when it was started
    seen: tuple[float, float] | None = None  # (time, FLOPs) when it was last seen to have gone on; None: still starting


class Pace:
    """Times are seconds of one clock, FLOPs those that runs have done, by key."""

    def __init__(self):
        self._processes: dict[typing.Hashable, _Process] = {}
        self._flops, self._seconds = 0.0, 0.0  # while processes ran
        self._starts: list[float] = []  # seconds

    def look(self, now: float, flops: dict[str, float], jobs: dict[typing.Hashable, tuple[str, ...]]) -> None:
        """jobs: the keys of the runs of each process that goes on, by whatever tells it from others."""
        for job, keys in jobs.items():
            if job not in self._processes:
                self._processes[job] = _Process(keys, now, self._of(keys, flops))
        for job, process in list(self._processes.items()):
            done = self._of(process.keys, flops)
            if process.seen is None and (done > process.flops_before or job not in jobs):
                self._starts.append(now - process.began)
                process.seen = now, done
            elif process.seen is not None and (done > process.seen[1] or job not in jobs):
                self._seconds += now - process.seen[0]
                self._flops += done - process.seen[1]
                process.seen = now, done
            if job not in jobs:
                del self._processes[job]

    def seconds_left(self, now: float, flops: float, starts: int) -> float | None:
        """Of so many FLOPs in processes of which `starts` are to be started yet; None while too little was seen."""
        some_run = any(process.seen for process in self._processes.values())
        if not self._starts or (some_run and self._seconds < ENOUGH):
            return None
        start = sum(self._starts) / len(self._starts)
        starting = [max(0.0, start - (now - one.began)) for one in self._processes.values() if one.seen is None]
        running = flops * self._seconds / self._flops if self._flops else 0.0
        return (running + sum(starting) + starts * start) / max(1, len(self._processes))

    @staticmethod
    def _of(keys: tuple[str, ...], flops: dict[str, float]) -> float:
        return sum(flops.get(key, 0.0) for key in keys)
