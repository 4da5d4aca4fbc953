"""Intervals by drawing runs again (Efron 1979): all points of a run come and go together."""

import dataclasses
import typing
from collections.abc import Callable, Sequence

import numpy as np

from gptjax.study.fits.laws import Optimum
from gptjax.study.points import Points

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class OptimumIntervals:
    """`interval80` and `interval95` have the keys params, tokens, loss."""

    optimum: Optimum
    interval80: dict[str, Interval]
    interval95: dict[str, Interval]


@dataclasses.dataclass(frozen=True)
class Intervals:
    """What the fits of drawn runs say about one fit."""

    fit: typing.Any  # of all points
    replicates: int
    failures: dict[str, int]  # reason -> replicates that gave no fit for it; they are in no interval
    interval80: dict[str, Interval]  # per name of fit.constants
    interval95: dict[str, Interval]
    correlation: dict[
        str, dict[str, float]
    ]  # over replicates, of ln x for the constants that span magnitudes (A, B, scales)
    optima: list[OptimumIntervals]  # at the asked budgets
    samples: dict[str, np.ndarray]  # [replicates that did not fail] per constant, to draw bands from
    refused: list[str]  # constants the points leave open; to be put beside fit.refused

    @property
    def failed(self) -> int:
        return sum(self.failures.values())


def intervals(
    fit_function: Callable[[Points], typing.Any],
    points: Points,
    *,
    replicates: int = 1000,
    seed: int = 0,
    budgets: Sequence[float] = (),
) -> Intervals:
    """Intervals for what `fit_function(points)` gives, such as functools.partial(parametric.fit, delta=1e-2)."""
    raise NotImplementedError
