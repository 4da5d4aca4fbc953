"""Intervals by weighing runs anew (Efron 1979; Rubin 1981): all points of a run share one random weight, everything is refitted.

The weights are gamma variables of mean 1 and variance n/(n - p), n the runs of a stratum and p the constants fitted in it;
for the parabolas of isoFLOPs (n/(n - p))^2, since the outermost sizes bend a parabola toward themselves (docs/studies_fits.md).
Drawing n of n runs with replacement gives whole numbers of variance 1 - 1/n instead: budgets of five sizes then fall under
the four that a parabola needs, every second replicate fails, and those that do not fail are no sample. n/(n - p) is
what the residuals of p constants lack; without it 95% intervals from 25 runs cover 93%.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from gptjax.study.fits import identified
from gptjax.study.fits.fit import Fit
from gptjax.study.fits.laws import Optimum
from gptjax.study.fits.points import Points

Interval = tuple[float, float]
FEW_RUNS = 8
FAILED = 0.05  # of the replicates: from here on those that are left are no sample
LOGARITHMIC = ("A", "B", "N_scale", "D_scale", "N_c", "D_c", "C_c", "joint_N_c", "joint_D_c")


@dataclasses.dataclass(frozen=True)
class OptimumIntervals:
    """`interval80` and `interval95` have the keys params, tokens, loss."""

    optimum: Optimum
    interval80: dict[str, Interval]
    interval95: dict[str, Interval]


@dataclasses.dataclass(frozen=True)
class Intervals:
    """What the refits of weighed runs say about one fit."""

    fit: Fit  # of all points
    replicates: int
    failures: dict[str, int]  # reason -> replicates that gave no fit for it; they are in no interval
    interval80: dict[str, Interval]  # per name of fit.constants
    interval95: dict[str, Interval]
    correlation: dict[str, dict[str, float]]  # over replicates; of ln x for what spans magnitudes (LOGARITHMIC)
    optima: list[OptimumIntervals]  # at the asked budgets
    samples: dict[str, np.ndarray]  # [replicates that did not fail] per constant, to draw bands from
    refused: list[str]  # constants the points leave open; to be put beside fit.refused

    @property
    def failed(self) -> int:
        return sum(self.failures.values())


def intervals(
    fit_function: Callable[[Points], Fit],
    points: Points,
    *,
    replicates: int = 1000,
    seed: int = 0,
    budgets: Sequence[float] = (),
) -> Intervals:
    """Intervals for what `fit_function(points)` gives, such as functools.partial(parametric.fit, delta=1e-2).

    `points` are what that fit takes: Points, or a list of envelope.Curve.
    """
    fit = fit_function(points)
    names = [name for name, value in fit.constants.items() if np.isfinite(value)]
    if not names:
        return _none(fit, budgets)
    refits = fit.refits(points, weights(fit.runs(points), fit.strata(points), fit.spare, replicates, seed))
    split = [flops for flops in budgets if _is_finite(fit.optimum(flops))]
    reasons = [_failure(refit, names, split) for refit in refits]
    failures = dict(collections.Counter(filter(None, reasons)))
    kept = [refit for refit, reason in zip(refits, reasons) if not reason]
    if len(kept) < replicates / 2:
        left = {"replicates": replicates, "failures": failures, "refused": _left(failures, replicates)}
        return dataclasses.replace(_none(fit, budgets), **left)
    samples = {
        name: np.array([refit.constants[name] if name in names else np.nan for refit in kept]) for name in fit.constants
    }
    interval95 = {name: interval(values, 95) for name, values in samples.items()}
    return Intervals(
        fit=fit,
        replicates=replicates,
        failures=failures,
        interval80={name: interval(values, 80) for name, values in samples.items()},
        interval95=interval95,
        correlation=correlation(samples),
        optima=[_optimum(fit, kept, flops) for flops in budgets],
        samples=samples,
        refused=_left(failures, replicates) + _few(fit.runs(points)) + identified.of_intervals(interval95),
    )


def weights(run: Sequence[str], strata: np.ndarray, spare, replicates: int, seed: int) -> np.ndarray:
    """[replicates, P]: one random weight per run and replicate, of mean 1; a stratum's weights sum to its points.

    `spare(runs of a stratum)` is the variance's inverse: the share of the noise that the residuals still show.
    """
    rng = np.random.default_rng(seed)
    _, number = np.unique(np.asarray(run), return_inverse=True)
    weight = np.empty((replicates, len(number)))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        runs, position = np.unique(number[members], return_inverse=True)
        drawn = rng.gamma(spare(len(runs)), size=(replicates, len(runs)))[:, position]
        weight[:, members] = drawn * (len(members) / np.sum(drawn, 1, keepdims=True))
    return weight


def interval(values: np.ndarray, percent: float) -> Interval:
    """The middle `percent` of the replicates."""
    low, high = np.percentile(values, [50 - percent / 2, 50 + percent / 2])
    return float(low), float(high)


def correlation(samples: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Of each constant with each; NaN where one does not vary."""
    names = [name for name, values in samples.items() if np.all(np.isfinite(values))]
    rows = np.stack([np.log(samples[name]) if name in LOGARITHMIC else samples[name] for name in names])
    with np.errstate(invalid="ignore", divide="ignore"):
        matrix = np.atleast_2d(np.corrcoef(rows))
    return {name: dict(zip(names, map(float, row))) for name, row in zip(names, matrix)}


def _failure(refit, names: list[str], budgets: Sequence[float]) -> str | None:
    """Why a replicate gives no number for a constant the fit has, or for a budget's best split; a reason to refuse a headline
    is none to drop it."""
    if not all(np.isfinite(refit.constants[name]) for name in names):
        return next(iter(refit.refused), "a constant is not finite")
    if not all(_is_finite(refit.optimum(flops)) for flops in budgets):
        return "there is no best split, because an exponent is not above 0"
    return refit.failure


def _is_finite(best: Optimum) -> bool:
    return bool(np.isfinite([best.params, best.tokens, best.loss]).all())


def _optimum(fit, kept, flops: float) -> OptimumIntervals:
    optima = [refit.optimum(flops) for refit in kept]
    samples = {name: np.array([getattr(optimum, name) for optimum in optima]) for name in ("params", "tokens", "loss")}
    both = ({name: interval(values, percent) for name, values in samples.items()} for percent in (80, 95))
    return OptimumIntervals(fit.optimum(flops), *both)


def _none(fit, budgets) -> Intervals:
    """Of a fit that cannot be computed: NaN for every number."""
    nothing = {name: (np.nan, np.nan) for name in fit.constants}
    there = {name: (np.nan, np.nan) for name in ("params", "tokens", "loss")}
    optima = [OptimumIntervals(Optimum(flops, np.nan, np.nan, np.nan), there, there) for flops in budgets]
    samples = {name: np.empty(0) for name in fit.constants}
    return Intervals(fit, 0, {}, nothing, nothing, {}, optima, samples, ["no intervals: there is no fit"])


def _left(failures, replicates: int) -> list[str]:
    failed = sum(failures.values())
    if failed <= FAILED * replicates:
        return []
    often = max(failures, key=failures.get)
    return [f"{failed} of {replicates} replicates gave no fit, most often: {often}"]


def _few(run: Sequence[str]) -> list[str]:
    runs = len(set(run))
    return [f"intervals from {runs} runs are only a hint; use {FEW_RUNS} runs or more"] if runs < FEW_RUNS else []
