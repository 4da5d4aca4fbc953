"""How far a stage is, by what it leaves in its folder, and how long the road still takes."""

import json
import pathlib

from gptjax import schedule, terminal
from gptjax.road.road import Road, Stage

ENOUGH = 0.05  # of its steps, before a stage's own speed is trusted: its first call compiles
PRIOR_SECONDS = 120.0  # as if stages of so many had taken as long as expected
TAIL = 16_384  # bytes at the end of a log in which the newest step is looked for


def steps_done(run: pathlib.Path) -> int:
    """The newest step in the log of a training run; 0: there is none yet."""
    file = run / "metrics.jsonl"
    if not file.exists():
        return 0
    with open(file, "rb") as log:
        log.seek(max(0, file.stat().st_size - TAIL))
        lines = log.read().splitlines()
    steps = (_step(line) for line in reversed(lines))
    return next((step for step in steps if step is not None), 0)


def _step(line: bytes) -> int | None:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # the first line of the tail, or one that is being written
        return None


class Clock:
    """Seconds left, by the seconds that the road file expects and by how much slower or faster stages were so far."""

    def __init__(self, road: Road):
        self._road, self._expected, self._taken = road, 0.0, 0.0

    def took(self, stage: Stage, seconds: float) -> None:
        """A whole stage, from its beginning in this process."""
        self._expected += stage.seconds
        self._taken += seconds

    @property
    def pace(self) -> float:
        """Seconds for each that was expected; near 1 until stages of some length have told another."""
        return (self._taken + PRIOR_SECONDS) / (self._expected + PRIOR_SECONDS)

    def left(self, stage: Stage, seconds: float, share: float | None, waiting: list[Stage]) -> float:
        """Seconds that a stage which has run for so many, and those that wait, still take. share: of the stage's steps that
        this process has made, of those it had to make."""
        whole = seconds / share if share and share > ENOUGH else max(stage.seconds * self.pace, seconds)
        return whole - seconds + sum(each.seconds for each in waiting) * self.pace


class StageProgress:
    """The live line of one stage."""

    def __init__(self, road: Road, stage: Stage, folder: pathlib.Path):
        self._run = folder / stage.made
        self._total = _total_steps(road, stage)
        self._before = steps_done(self._run) if self._total else 0

    def share(self) -> float | None:
        """The part that is made of the steps that were left when this began; None: not known."""
        if not self._total or self._total <= self._before:
            return None
        return (steps_done(self._run) - self._before) / (self._total - self._before) or None

    def text(self) -> str:
        return f"step {steps_done(self._run):,} of {self._total:,}" if self._total else ""


def _total_steps(road: Road, stage: Stage) -> int | None:
    """None: it trains nothing, or for epochs, whose steps are known when its text is read."""
    if stage.config is None or (config := road.config(stage)).train.epochs is not None:
        return None
    return schedule.total_steps(config)


def line(number: int, of: int, stage: Stage, how_far: str, seconds: float, left: float) -> str:
    parts = [
        f"[{number}/{of}] {stage.name}",
        how_far,
        terminal.duration(seconds),
        f"road: {terminal.duration(left)} left",
    ]
    return "  ".join(filter(None, parts))
