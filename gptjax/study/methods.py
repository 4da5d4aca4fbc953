"""Each way to fit a law, as what `gptjax study fit` reports of it: constants, intervals, optima, and why it is refused.

To add one, write a function of (Points, Options) and name it in METHODS.
"""

import dataclasses
import functools
import math
import typing

import numpy as np

from gptjax.study.fits import bootstrap, envelope, isoflop, kaplan, parametric
from gptjax.study.fits.points import Points


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line asks of every fit."""

    methods: tuple[str, ...] = ("parametric", "isoflop", "kaplan", "envelope")
    budgets: tuple[float, ...] = ()  # FLOPs to give the best split of, beside those of the points
    replicates: int = 1000  # of the bootstrap
    delta: float = parametric.DELTA  # of the Huber loss
    starts: int = parametric.STARTS  # of the parametric fit; checks of it use fewer
    seed: int = 0  # of starts and replicates
    window: float | None = None  # of isoFLOPs: ratio to the optimum within which points count; None: the points choose
    holdout: float | None = None  # FLOPs from which points are held out; below 1: their part; None: the largest budget


@dataclasses.dataclass(frozen=True)
class Method:
    """fit(points): one of `fits`. predict(fit, points): the loss of each point by that law."""

    fit: typing.Callable[[Points, Options], typing.Any]
    predict: typing.Callable[[typing.Any, Points], np.ndarray]
    facts: tuple[str, ...]  # attributes of the fit that are reported beside its constants
    constants: int  # that the points have to give
    has_delta: bool


def _parametric(points: Points, options: Options):
    return parametric.fit(points, delta=options.delta, starts=options.starts, seed=options.seed)


def _isoflop(points: Points, options: Options):
    return isoflop.fit(points, window=options.window)


def _kaplan(points: Points, options: Options):
    return kaplan.fit(points, delta=options.delta)


METHODS = {
    "parametric": Method(
        _parametric,
        lambda fit, points: fit.loss(points.params, points.tokens),
        ("objective", "converged", "starts", "starts_at_optimum", "delta"),
        constants=5,
        has_delta=True,
    ),
    "isoflop": Method(
        _isoflop,
        lambda fit, points: np.array([fit.optimum(flops).loss for flops in points.flops]),
        ("loss_E", "window", "window_fits", "residual"),
        constants=5,
        has_delta=False,
    ),
    "kaplan": Method(_kaplan, lambda fit, points: fit.joint.loss(points.params, points.tokens), (), 4, has_delta=True),
}


def section(name: str, points: Points, options: Options) -> dict:
    """What is reported of a method, but for what `checks` adds."""
    method = METHODS[name]
    ratio = flops_per_param_token(points)
    # The fits split C = 6 N D: a budget in another convention is turned into the one that buys as much N D.
    budgets = _budgets_of(points)
    budgets = sorted([*budgets, *(one for one in set(options.budgets) if not any(_same(one, own) for own in budgets))])
    asked = tuple(flops * 6 / ratio for flops in budgets) if name != "isoflop" else budgets
    found = _intervals(functools.partial(method.fit, options=options), points, options, tuple(asked))
    facts = {fact: getattr(found.fit, fact) for fact in method.facts}
    return _reported(found, budgets) | {"residual": _residual(name, found.fit, points)} | facts


def left_out(name: str, section: dict, points: Points) -> list[dict]:
    """{"run", "reason", ...} of points that a method alone does not use: those of budgets without a vertex, and those
    outside the window of their budget's parabola."""
    if name != "isoflop":
        return []
    number, found = isoflop.budgets(points), []
    for one in np.unique(number):
        of_budget = points.take(number == one)
        for vertex in section["optima"]:
            if vertex.get("window") and is_at(of_budget.flops, vertex["flops"]):
                found += _unused(vertex, of_budget)
    return found


def _unused(vertex: dict, points: Points) -> list[dict]:
    """Those of a budget's points that isoFLOPs do not use."""
    if vertex["refused"]:
        reason = f"no vertex at {vertex['flops']:.3g} FLOPs: {vertex['refused']}"
    else:
        low, high = vertex["window"]
        reason = f"outside the window at {vertex['flops']:.3g} FLOPs, N from {low:.3g} to {high:.3g}"
        points = points.take(~isoflop.between(points.params, low, high))
    columns = zip(points.run, points.params, points.tokens, points.loss)
    return [{"run": run, "reason": reason, "params": n, "tokens": d, "loss": loss} for run, n, d, loss in columns]


def _residual(name: str, fit, points: Points) -> float | None:
    """Standard deviation of what a law leaves of ln L; None of isoFLOPs, whose parabolas say what they leave."""
    free = len(points) - METHODS[name].constants
    if name == "isoflop" or free < 1:
        return None
    left = np.log(points.loss) - np.log(METHODS[name].predict(fit, points))
    return float(np.sqrt(np.sum(left**2) / free))


def envelope_section(curves: list[envelope.Curve], options: Options) -> dict:
    """Of approach 1, which takes training curves instead of points."""
    budgets = options.budgets or (max(float(curve.flops[-1]) for curve in curves),)
    found = _intervals(envelope.fit, curves, options, budgets)
    return _reported(found, budgets) | {"winners": [dataclasses.asdict(winner) for winner in found.fit.winners]}


def _intervals(fit_function, points, options: Options, budgets) -> bootstrap.Intervals:
    return bootstrap.intervals(
        fit_function, points, replicates=options.replicates, seed=options.seed, budgets=tuple(budgets)
    )


def _reported(found: bootstrap.Intervals, budgets) -> dict:
    fit = found.fit
    return {
        **fit.constants,
        "interval80": found.interval80,
        "interval95": found.interval95,
        "correlation": found.correlation,
        "replicates": found.replicates,
        "failures": found.failures,
        "optima": [_optimum(one, flops, _vertex(fit, flops)) for one, flops in zip(found.optima, budgets)],
        "refused": list(dict.fromkeys([*fit.refused, *found.refused])),
        "points_used": fit.points_used,
    }


def _optimum(one: bootstrap.OptimumIntervals, flops: float, vertex: dict) -> dict:
    """The best split of a budget: its vertex, where its points have one, else the law's. The intervals are of "law"."""
    law = {name: getattr(one.optimum, name) for name in ("params", "tokens", "loss")}
    return {**law, "flops": flops, **vertex, "law": law, "interval80": one.interval80, "interval95": one.interval95}


def _vertex(fit, flops: float) -> dict:
    """Of an isoFLOP fit at the budget nearest to `flops`; {} for another law, or where it was not run at."""
    near = [vertex for vertex in getattr(fit, "optima", ()) if _same(vertex.flops, flops)]
    return dataclasses.asdict(near[0]) if near else {}


def _same(one: float, other: float) -> bool:
    """Two budgets, up to rounding."""
    return abs(math.log(one / other)) < 1e-6


def is_at(flops_of_budget: np.ndarray, flops: float) -> bool:
    """Whether that is the budget which is called by its geometric mean."""
    return _same(math.exp(np.mean(np.log(flops_of_budget))), flops)


def _budgets_of(points: Points) -> list[float]:
    """The geometric mean of the FLOPs of each budget the points were run at."""
    number = isoflop.budgets(points)
    return [math.exp(np.mean(np.log(points.flops[number == one]))) for one in np.unique(number)]


def flops_per_param_token(points: Points) -> float:
    """C / (N D), the geometric mean over points: 6 where C was counted so."""
    ratio = math.exp(np.mean(np.log(points.flops / (points.params * points.tokens))))
    return 6.0 if abs(ratio / 6 - 1) < 1e-3 else ratio
