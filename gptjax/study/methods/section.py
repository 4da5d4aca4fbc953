"""What is reported of a fit: constants, intervals, the best split of each budget, why it is refused."""

import dataclasses
import functools
import math

import numpy as np

from gptjax.study.fits import bootstrap, isoflop
from gptjax.study.fits.points import Points


def of(method, points: Points, options) -> dict:
    """What is reported of a method's fit through points, before it is checked. options: method.Options."""
    ratio = flops_per_param_token(points)
    # The fits split C = 6 N D: a budget in another convention is turned into the one that buys as much N D.
    budgets = _budgets_of(points)
    budgets = sorted([*budgets, *(one for one in set(options.budgets) if not any(_same(one, own) for own in budgets))])
    split = budgets if method.sees_flops else [flops * 6 / ratio for flops in budgets]
    found = intervals(functools.partial(method.fit, options=options), points, options, split)
    facts = {fact: getattr(found.fit, fact) for fact in method.facts}
    return shown(found, budgets) | {"residual": method.residual(found.fit, points)} | facts


def intervals(fit_function, points, options, budgets) -> bootstrap.Intervals:
    """Of a fit and its best splits of budgets, with the replicates and the seed that options say."""
    return bootstrap.intervals(
        fit_function, points, replicates=options.replicates, seed=options.seed, budgets=tuple(budgets)
    )


def shown(found: bootstrap.Intervals, budgets) -> dict:
    """A fit as JSON but for NumPy's numbers."""
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
