"""How far a fitted law is to be believed: beyond the points it saw, under other choices, against the noise of seeds."""

import dataclasses

import numpy as np

from gptjax.study.fits import isoflop
from gptjax.study.methods import METHODS, Options
from gptjax.study.points import Gathered, Points

STARTS = 12  # of a parametric fit that checks another one
OUTLIER = 3.0  # robust standard deviations of a residual
RATIOS = (2.0, 5.0, 10.0)  # tokens a parameter under which runs are left out


def holdout(name: str, points: Points, options: Options) -> dict:
    """{"holdout_error", "holdout"}: the law of the points below C0, on those above.

    The error is the mean over held-out points of |predicted / measured - 1|; for the isoFLOP method, whose law is of
    the best runs alone, of the loss at the best of each held-out budget.
    """
    above = held_out(points, options.holdout)
    below = points.take(points.flops < above) if above else points
    held = points.take(points.flops >= above) if above else points.take([])
    if not len(held) or not len(below):
        return _no_holdout("no points on one side of the held-out budget")
    fit = METHODS[name].fit(below, dataclasses.replace(options, starts=STARTS))
    target = _best_of_each(held) if name == "isoflop" else held
    if target is None:
        return _no_holdout("no held-out budget has a vertex", above)
    predicted = METHODS[name].predict(fit, target)
    if not np.isfinite(predicted).all():
        return _no_holdout("; ".join(fit.refused) or "the law below has no loss for them", above)
    shown = [
        {"run": run, "params": n, "tokens": d, "flops": c, "loss": loss, "predicted": value}
        for run, n, d, c, loss, value in zip(
            target.run, target.params, target.tokens, target.flops, target.loss, predicted
        )
    ]
    error = float(np.mean(np.abs(predicted / target.loss - 1)))
    return {"holdout_error": error, "holdout": {"above_flops": above, "points": shown, "refused": fit.refused}}


def held_out(points: Points, asked: float | None) -> float | None:
    """FLOPs from which points are held out: as asked, or those of the largest budget; None: there is only one budget."""
    if asked is not None:
        return asked
    number = isoflop.budgets(points)
    return None if number.max() == 0 else float(points.flops[number == number.max()].min())


def _no_holdout(reason: str, above: float | None = None) -> dict:
    return {"holdout_error": None, "holdout": {"above_flops": above, "points": [], "refused": [reason]}}


def _best_of_each(held: Points) -> Points | None:
    """The vertices of held-out budgets as points; None where there is none."""
    vertices = [vertex for vertex in isoflop.fit(held).optima if vertex.refused is None]
    if not vertices:
        return None
    columns = {name: np.array([getattr(v, name) for v in vertices]) for name in ("params", "tokens", "flops", "loss")}
    names = tuple(f"vertex at {vertex.flops:.3g} FLOPs" for vertex in vertices)
    return Points(**columns, weight=np.ones(len(vertices)), run=names, seed=np.zeros(len(vertices), int))


def sensitivity(name: str, gathered: Gathered, params: str, flops: str, options: Options) -> list[dict]:
    """The law under other choices: outliers dropped, runs of few tokens left out, each convention, other Huber deltas."""
    options = dataclasses.replace(options, starts=STARTS)
    points, method = gathered.points(params, flops), METHODS[name]
    changes = {**_fewer_points(method, points, options), **_conventions(name, gathered, params, flops)}
    changes = {change: (other, options) for change, other in changes.items()}
    if method.has_delta:
        for factor in (10.0, 0.1):
            delta = options.delta * factor
            changes[f"Huber delta {delta:g}"] = (points, dataclasses.replace(options, delta=delta))
    found = []
    for change, (other, chosen) in changes.items():
        if not len(other):
            found.append({"change": change, "points_used": 0, "refused": ["no points are left"]})
            continue
        fit = method.fit(other, chosen)
        found.append({"change": change, **fit.constants, "points_used": fit.points_used, "refused": fit.refused})
    return found


def _fewer_points(method, points: Points, options: Options) -> dict[str, Points]:
    residual = np.log(points.loss) - np.log(method.predict(method.fit(points, options), points))
    spread = 1.4826 * np.median(np.abs(residual - np.median(residual)))
    inside = np.abs(residual - np.median(residual)) <= OUTLIER * spread
    outliers = int(np.sum(~inside & np.isfinite(residual)))
    changes = {f"{outliers} outliers beyond {OUTLIER:g} robust standard deviations dropped": points.take(inside)}
    if method is METHODS["isoflop"]:  # whose law is of the best points alone: the others' residuals say nothing
        changes = {}
    ratio = points.tokens / points.params
    return changes | {f"runs of D/N >= {least:g} only": points.take(ratio >= least) for least in RATIOS}


def _conventions(name: str, gathered: Gathered, params: str, flops: str) -> dict[str, Points]:
    row = gathered.rows[0]
    changes = {f"N {other}": gathered.points(other, flops) for other in row.params if other != params}
    if name == "isoflop":  # the other laws do not see C
        changes |= {f"C {other}": gathered.points(params, other) for other in row.flops if other != flops}
    return changes


def seed_noise(points: Points) -> dict | None:
    """Pooled standard deviation of the loss over runs that differ in their seed alone; None without such runs."""
    groups = {}
    for i, key in enumerate(zip(points.params, points.tokens)):
        groups.setdefault(key, {})[points.seed[i]] = points.loss[i]
    groups = [np.array(list(losses.values())) for losses in groups.values() if len(losses) > 1]
    if not groups:
        return None
    freedom = sum(len(losses) - 1 for losses in groups)
    variance = sum(float(np.sum((losses - losses.mean()) ** 2)) for losses in groups) / freedom
    relative = sum(float(np.sum((losses / losses.mean() - 1) ** 2)) for losses in groups) / freedom
    return {
        "standard_deviation": variance**0.5,
        "relative": relative**0.5,
        "groups": len(groups),
        "runs": sum(map(len, groups)),
    }
