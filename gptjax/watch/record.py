"""What a run has left in its metrics.jsonl: numbers as series, events in words, where the time went."""

import collections
import dataclasses
import math

from gptjax.watch.goodput import Goodput
from gptjax.watch.series import Series
from gptjax.watch.tail import Tail

OF_STEPS = ("loss", "learning_rate", "tokens_per_second", "mfu", "grad_norm", "param_norm", "update_norm", "memory_bytes",
            "tokens")  # fmt: skip
SPIKE_WINDOW, SPIKE_SIGMA = 50, 6.0  # logged losses; standard deviations above their mean
EVENTS_KEPT = 200
SAMPLES_KEPT = 20


@dataclasses.dataclass(frozen=True)
class Event:
    step: int
    time: float | None
    said: str
    bad: bool


def _reason(row: dict, before: str) -> str:
    return f"{before}: {row.get('reason', 'no reason is given')}"


def _above_uniform(row: dict) -> str:
    loss, limit = (
        f"{value:.4g}" if (value := number(row.get(name))) is not None else "?" for name in ("loss", "limit")
    )
    return f"the training loss stays above {limit}, worse than guessing, and is {loss}"


SAID = {  # event: (words, whether something went wrong)
    "resumed": lambda row: ("resumed", False),
    "branched": lambda row: ("branched from another run", False),
    "started_from": lambda row: ("started with the parameters of another run", False),
    "rolled_back": lambda row: (_reason(row, f"rolled back from step {row.get('failed_step')}"), True),
    "diverged": lambda row: (_reason(row, "diverged"), True),
    "update_skipped": lambda row: (_reason(row, "update skipped"), True),
    "loss_above_uniform": lambda row: (_above_uniform(row), True),
    "save_failed": lambda row: (_reason(row, "saving failed"), True),
    "checkpoint_gone": lambda row: (f"the checkpoint of step {row.get('checkpoint')} is gone", True),
    "checkpoint_incomplete": lambda row: (_reason(row, f"the checkpoint of step {row.get('checkpoint')} is incomplete"), True),
    "checkpoint_set_aside": lambda row: (_reason(row, f"the checkpoint of step {row.get('checkpoint')} is damaged"), True),
    "skips_begin_anew": lambda row: ("the statistics of skipped updates begin anew", False),
    "ended_early": lambda row: (_reason(row, "the run ended early"), False),
    "tasks_failed": lambda row: (_reason(row, "the evaluation tasks failed"), True),
    "alarm": lambda row: (_reason(row, "alarm"), True),
}  # fmt: skip
SILENT = ("first_call", "rows_read", "sample", "answer")


class Record:
    """file: metrics.jsonl. `update` reads what is new there."""

    def __init__(self, file):
        self._tail = Tail(file)
        self._clear()

    def _clear(self) -> None:
        self.train, self.held_out, self.tasks = (collections.defaultdict(Series) for _ in range(3))
        self.goodput, self._last_event = Goodput(), {}
        self.events, self.samples = collections.deque(maxlen=EVENTS_KEPT), collections.deque(maxlen=SAMPLES_KEPT)
        self.counts = collections.Counter()  # of events by name
        self.last = {}  # the newest training row
        self._ended_at = None
        self.devices = self.began = self.written = None  # times of the first and the newest row
        self._recent = Recent(SPIKE_WINDOW)
        self._in_spike = False

    @property
    def torn(self) -> int:
        return self._tail.torn

    @property
    def step(self) -> int:
        return max(self.train["loss"].last_step, self.held_out["loss"].last_step)

    @property
    def diverged(self) -> str:
        """Why the run ended, if it ended so; a resume comes after it."""
        return self._last_event.get("reason", "diverged") if self._last_event.get("event") == "diverged" else ""

    @property
    def ended_early(self) -> bool:
        """Whether the run has come to its end before its last step; what is trained after it takes that back."""
        return self._ended_at is not None and self._ended_at >= self.step

    def update(self) -> None:
        if self._tail.rewritten():
            self._clear()
        for row in self._tail.rows():
            self._add(row)

    def _add(self, row: dict) -> None:
        time = row["time"] if isinstance(row.get("time"), int | float) else None
        self.began, self.written = self.began or time, time or self.written
        self.goodput.add(row)
        kind = row["kind"]
        if kind == "train":
            self.last = row
            _into(self.train, row, OF_STEPS)
            self._look_for_spike(row, time)
        elif kind == "eval":
            _into(self.held_out, row, row.keys() - {"kind", "step", "time"})
        elif kind == "tasks":
            _into(self.tasks, row, row.keys() - {"kind", "step", "time"})
        elif kind == "event":
            self._event(row, time)

    def _event(self, row: dict, time: float | None) -> None:
        name = str(row.get("event"))
        self._last_event = row
        self.counts[name] += 1
        self._ended_at = row["step"] if name == "ended_early" else self._ended_at
        if name == "first_call":
            self.devices = row.get("devices", self.devices)
        elif name == "sample":
            self.samples.append(row)
        elif name not in SILENT:
            said, bad = SAID.get(name, lambda row: (name.replace("_", " "), False))(row)
            self.events.append(Event(row["step"], time, said, bad))

    def _look_for_spike(self, row: dict, time: float | None) -> None:
        """Adds an event where a loss stands out from those before it, once until it is back among them."""
        loss = number(row.get("loss"))
        if loss is None:
            return
        if not math.isfinite(loss):
            self.events.append(Event(row["step"], time, f"the training loss is {loss}", True))
            return
        mean, deviation, count = self._recent.mean, self._recent.deviation, len(self._recent)
        stands_out = count >= SPIKE_WINDOW // 2 and loss > mean + SPIKE_SIGMA * max(deviation, 1e-6 * abs(mean))
        if stands_out and not self._in_spike:
            self.counts["spike"] += 1
            said = f"loss spike: {loss:.4g}, where the last {count} rows have {mean:.4g} ± {deviation:.2g}"
            self.events.append(Event(row["step"], time, said, True))
        self._in_spike = stands_out
        self._recent.add(loss)


class Recent:
    """Mean and standard deviation of the last `size` numbers, by sums: a log can have a million."""

    def __init__(self, size: int):
        self._values, self._size, self._sum, self._squares = collections.deque(), size, 0.0, 0.0

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        self._values.append(value)
        gone = self._values.popleft() if len(self._values) > self._size else 0.0
        self._sum += value - gone
        self._squares += value**2 - gone**2

    @property
    def mean(self) -> float:
        return self._sum / max(1, len(self))

    @property
    def deviation(self) -> float:
        return math.sqrt(max(0.0, self._squares / max(1, len(self)) - self.mean**2))


def _into(series: dict[str, Series], row: dict, names) -> None:
    for name in names:
        if (value := number(row.get(name))) is not None:
            series[name].add(row["step"], value)


def number(value) -> float | None:
    """Of a row, where NaN and infinities are text; None of what is no number."""
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
