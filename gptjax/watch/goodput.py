"""Where the time of a run went, from the times in its metrics.jsonl alone.

From one training row to the next, steps took tokens / (tokens per second); what the recorder stopped its clock for stands
in the later row as `seconds/WHAT`. The event `rows_read` holds those since the last training row. It does not in logs of older
versions: there, and after that event, a row marks the end of what it is about. The time between the end of a run and the command
that makes it longer counts as nothing: nobody waited for it.
"""

import collections

TRAINING, STARTING, EVALUATING, SAVING = "training", "starting and compiling", "evaluating", "saving"
SAMPLING, ROLLED_BACK, STOPPED, OTHER = "sampling", "rolled back", "stopped, or steps lost", "other"
ORDER = (TRAINING, STARTING, EVALUATING, SAVING, SAMPLING, ROLLED_BACK, STOPPED, OTHER)
_PAUSES = {"evaluating": EVALUATING, "evaluating tasks": EVALUATING, "saving": SAVING, "compiling": STARTING}
_PAUSES |= {"sampling": SAMPLING}
_AFTER_THE_LAST_STEP = {"eval": EVALUATING, "tasks": EVALUATING, "rows_read": SAVING, "save_failed": SAVING}
_AFTER_THE_LAST_STEP |= {"sample": SAMPLING}


class Goodput:
    """Takes rows one by one."""

    def __init__(self):
        self._seconds = collections.Counter()
        self._time = None  # up to which all time is counted
        self._clock_step = None  # at which the recorder's clock was started; None: the first call is not over
        self._step = self._tokens = 0  # of the last training row
        self._open = []  # rows since then
        self._finished = False  # whether all steps that the run then had were taken

    def add(self, row: dict) -> None:
        event = row.get("event")
        if row.get("taken_over") or row.get("made_up") or not isinstance(row.get("time"), int | float):
            return
        if event == "resumed":
            self._close()
            self._clock_step = None
        elif event == "first_call":
            self._first_call(row)
        elif event == "rolled_back" and self._time is not None:
            self._count(ROLLED_BACK, row["time"])
            self._clock_step, self._open = row["step"], []
        elif row["kind"] == "train":
            self._train(row)
        elif self._clock_step is not None:
            self._open.append(row)
            self._finished = row.get("finished", self._finished)

    def seconds(self) -> dict[str, float]:
        """{what: seconds}, in ORDER, of what took any."""
        found = self._seconds + self._since_last_step()
        return {what: found[what] for what in ORDER if found[what] > 0}

    def _first_call(self, row: dict) -> None:
        """`seconds` of it count from the start of the command."""
        began = row["time"] - row["seconds"]
        if self._time is not None and not self._finished:
            self._count(STOPPED, began)
        self._time, self._finished = began, False
        self._count(STARTING, row["time"])
        self._clock_step = row["step"]

    def _train(self, row: dict) -> None:
        if self._clock_step is not None:
            gap = left = row["time"] - self._time
            paused = _paused(row)
            left -= paused.total()
            self._seconds += paused
            training = min(self._seconds_of_steps(row), gap)
            self._seconds[TRAINING] += training
            self._seconds[OTHER] += max(0.0, left - training)
            self._time, self._clock_step, self._open = row["time"], row["step"], []
        self._step, self._tokens = row["step"], row.get("tokens", 0)

    def _seconds_of_steps(self, row: dict) -> float:
        """Of the steps since the clock was started."""
        steps, rate = row["step"] - self._step, row.get("tokens_per_second")
        if not rate or steps < 1:
            return 0.0
        share = min(1.0, (row["step"] - self._clock_step) / steps)
        return (row["tokens"] - self._tokens) * share / rate

    def _count(self, what: str, until: float) -> None:
        self._seconds[what] += max(0.0, until - self._time)
        self._time = until

    def _since_last_step(self) -> collections.Counter:
        found, time = collections.Counter(), self._time
        for row in self._open:
            if paused := _paused(row):  # since the last training row, whatever rows stand between
                found = paused + collections.Counter({OTHER: row["time"] - self._time - paused.total()})
            else:
                what = _AFTER_THE_LAST_STEP.get(row.get("event", row["kind"]), OTHER)
                found[what] += max(0.0, row["time"] - time)
            time = row["time"]
        return found

    def _close(self) -> None:
        self._seconds += self._since_last_step()
        self._time, self._open = (self._open[-1]["time"] if self._open else self._time), []


def _paused(row: dict) -> collections.Counter:
    """Seconds by what the recorder's clock was stopped for, as a row says; empty where it says nothing."""
    paused = collections.Counter()
    for name, seconds in row.items():
        if name.startswith("seconds/"):
            paused[_PAUSES.get(name.removeprefix("seconds/"), OTHER)] += seconds
    return paused
