"""A stage against the one before it: what the files of evaluating.py hold, as means with errors, and pair by pair.

Two stages were judged on the same windows, rows and exercises, so that their difference is one of pairs: Student's t for losses
and rewards (evaluation/differences.py), and for shares the exact test of McNemar 1947, which asks of the pairs in which the two
differ how often a fair coin would be so one-sided.

Axes: P pairs (windows, rows of conversations, exercises).
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Callable

import numpy as np

from gptjax.errors import UserError
from gptjax.evaluation import differences, held_out

LEVEL = 0.05  # of p, below which a difference is one


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number of an evaluation. values: of one, (sum of each pair, size of each pair)."""

    name: str
    unit: str
    higher_is_better: bool | None  # None: neither is
    values: Callable[[dict], tuple[np.ndarray, np.ndarray]]
    is_share: bool = False


@dataclasses.dataclass(frozen=True)
class Value:
    mean: float
    standard_error: float
    pairs: int


@dataclasses.dataclass(frozen=True)
class Change:
    """A number of a stage less that of the one before it."""

    measure: Measure
    difference: float
    standard_error: float
    p_value: float
    gained: int | None = None  # shares: pairs of 0 before and 1 now
    lost: int | None = None

    @property
    def verdict(self) -> str:
        if not self.p_value < LEVEL:
            return "not shown"
        if self.measure.higher_is_better is None:
            return "longer" if self.difference > 0 else "shorter"
        return "better" if (self.difference > 0) == self.measure.higher_is_better else "worse"


def read(file: pathlib.Path) -> dict:
    """An evaluation. Raises UserError: it is missing or damaged."""
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}, the evaluation of a stage, cannot be read ({error}); move it and run again."
        ) from error


def measures(evaluation: dict) -> list[Measure]:
    """Those that an evaluation has."""
    tasks = dict.fromkeys(exercise["task"] for exercise in evaluation["exercises"])
    found = [
        Measure("loss of text", "nats/token", False, lambda one: _sums(one["text"])),
        Measure("loss of held-out answers", "nats/token", False, lambda one: _sums(one["conversations"])),
        Measure("right answers", "share", True, lambda one: _of(one, "likeliest", "right"), True),
    ]
    if len(tasks) > 1:
        found += [_of_task(task) for task in tasks]
    found += [
        Measure("answers that end", "share", True, lambda one: _of(one, "likeliest", "ended"), True),
        Measure("right answers, drawn", "share", True, lambda one: _of(one, "drawn", "right"), True),
        Measure("length, drawn", "tokens", None, lambda one: _of(one, "drawn", "tokens")),
    ]
    if evaluation["exercises"][0]["drawn"]["reward"] is not None:
        found.append(Measure("model reward, drawn", "score", True, lambda one: _of(one, "drawn", "reward")))
    return found


def _of_task(task: str) -> Measure:
    return Measure(f"right answers, {task}", "share", True, lambda one: _of(one, "likeliest", "right", task), True)


def _sums(losses: dict) -> tuple[np.ndarray, np.ndarray]:
    return np.float64(losses["nats"]), np.float64(losses["tokens"])


def _of(evaluation: dict, answer: str, field: str, task: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    value_P = np.float64(
        [exercise[answer][field] for exercise in evaluation["exercises"] if task in (None, exercise["task"])]
    )
    return value_P, np.ones(len(value_P))


def value(measure: Measure, evaluation: dict) -> Value:
    value_P, size_P = measure.values(evaluation)
    return Value(*held_out.ratio_of_means(value_P, size_P), len(size_P))


def change(measure: Measure, before: dict, now: dict) -> Change:
    """Raises UserError: the two were not judged on the same pairs."""
    (before_P, size_P), (now_P, size_now_P) = measure.values(before), measure.values(now)
    if not np.array_equal(size_P, size_now_P):
        raise UserError(
            f"{before['run']} and {now['run']} were not judged on the same {measure.name}; evaluate both anew."
        )
    found = differences.difference(before_P, now_P, size_P, measure.unit)
    if not measure.is_share:
        return Change(measure, found.difference, found.standard_error, found.p_value)
    gained, lost = int(((before_P == 0) & (now_P == 1)).sum()), int(((before_P == 1) & (now_P == 0)).sum())
    return Change(measure, found.difference, found.standard_error, mcnemar(gained, lost), gained, lost)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided, exact: how often of gained + lost tosses of a fair coin so many or more are on one side."""
    tosses, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(tosses, k) for k in range(fewer + 1)) / 2**tosses
    return min(1.0, 2 * tail)


@dataclasses.dataclass(frozen=True)
class WinRate:
    """How often a drawn answer of the stage is right where that of the one before is not; ties count half."""

    share: float
    standard_error: float
    wins: int
    ties: int
    losses: int


def win_rate(before: dict, now: dict) -> WinRate:
    """By the gold check, on the drawn answers."""
    (before_P, _), (now_P, _) = _of(before, "drawn", "right"), _of(now, "drawn", "right")
    score_P = (now_P - before_P + 1) / 2
    share, error = held_out.ratio_of_means(score_P, np.ones(len(score_P)))
    return WinRate(share, error, *(int((score_P == one).sum()) for one in (1, 0.5, 0)))
