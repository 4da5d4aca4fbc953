"""How far a fitted law is to be believed: beyond the points it saw, under other choices, against the noise of seeds."""

import dataclasses

import numpy as np

from gptjax.study.fits import isoflop
from gptjax.study.fits.points import Points, Row

STARTS = 12  # of a parametric fit that checks another one
OUTLIER = 3.0  # robust standard deviations of a residual
RATIOS = (2.0, 5.0, 10.0)  # tokens a parameter under which runs are left out
NEAR = 1.02  # times that the exact FLOPs of a budget's runs may lie below the round number it is called by
SETTINGS = ("size", "learning_rate", "batch_size")  # of a run, beside N, D and what the grid varies
CLOUD = 0.2  # of points that are no budgets are held out


def holdout(method, points: Points, options) -> dict:
    """{"holdout_error", "holdout"}: the law of the points below C0, on those above. options: method.Options.

    The error is the mean over held-out points of |predicted / measured - 1|, or over what the method holds its law against.
    """
    above = held_out(points, options.holdout)
    runs = {run for run, out in zip(points.run, above) if out}  # whole: what a run was on its way says where it ends
    below, held = points.take([run not in runs for run in points.run]), points.take(above)
    facts = {"above_flops": float(held.flops.min()) if len(held) else options.holdout, "points_fitted": len(below)}
    if not len(held) or not len(below):
        return _no_holdout("the held-out budget has no points on one side", facts)
    options = dataclasses.replace(options, starts=STARTS)
    fit = method.fit(below, options)
    target = method.held_out(fit, held)
    if target is None:
        return _no_holdout("no held-out budget has a vertex", facts)
    predicted = method.predict(fit, target)
    if not np.isfinite(predicted).all():
        return _no_holdout("; ".join(fit.refused) or "the law that was fitted below gives no loss for them", facts)
    columns = zip(target.run, target.params, target.tokens, target.flops, target.loss, predicted)
    intervals = method.held_out_intervals(below, target, options)
    shown = [
        {"run": run, "params": n, "tokens": d, "flops": c, "loss": loss, "predicted": value, **interval}
        for (run, n, d, c, loss, value), interval in zip(columns, intervals)
    ]
    error = float(np.mean(np.abs(predicted / target.loss - 1)))
    return {"holdout_error": error, "holdout": facts | {"points": shown, "refused": fit.refused}}


def held_out(points: Points, asked: float | None) -> np.ndarray:
    """Mask [P] of the points that are held out, budgets whole: from `asked` FLOPs on (NEAR it is there), or, below 1, the
    largest budgets with so large a part of the points; None: the largest one. All False where there is but one.

    Points that are no budgets, since their FLOPs form a cloud, are held out one by one, a fifth of them for None.
    """
    number = isoflop.budgets(points)
    mean = np.array([np.exp(np.mean(np.log(points.flops[number == one]))) for one in range(number.max() + 1)])
    spread = max(np.ptp(np.log(points.flops[number == one])) for one in range(len(mean)))
    near = NEAR
    if spread > np.log(isoflop.SPAN):
        mean, number = np.unique(points.flops, return_inverse=True)
        near, asked = 1.0, CLOUD if asked is None else asked
    if asked is None:
        return number == number.max() if len(mean) > 1 else np.zeros(len(points), bool)
    if asked >= 1:
        return (mean >= asked / near)[number]
    part = np.array([np.mean(number >= one) for one in range(len(mean))])
    return number >= np.flatnonzero(part >= asked)[-1]


def _no_holdout(reason: str, facts: dict) -> dict:
    return {"holdout_error": None, "holdout": facts | {"points": [], "refused": [reason]}}


def sensitivity(method, case) -> list[dict]:
    """The law under other choices: outliers dropped, runs of few tokens left out, each convention, and the method's own.

    case: method.Case."""
    options = dataclasses.replace(case.options, starts=STARTS)
    others = _fewer_points(method, case.points, options) | _conventions(method, case)
    changes = {change: (points, options) for change, points in others.items()}
    changes |= {change: (case.points, chosen) for change, chosen in method.variations(options).items()}
    found = []
    for change, (points, chosen) in changes.items():
        if not len(points):
            found.append({"change": change, "points_used": 0, "refused": ["no points are left"]})
            continue
        fit = method.fit(points, chosen)
        found.append({"change": change, **fit.constants, "points_used": fit.points_used, "refused": fit.refused})
    return found


def _fewer_points(method, points: Points, options) -> dict[str, Points]:
    ratio = points.tokens / points.params
    cut = {f"runs of D/N >= {least:g} only": points.take(ratio >= least) for least in RATIOS}
    residual = method.residuals(method.fit(points, options), points)
    known = residual[np.isfinite(residual)]
    if not len(known):  # without a law nothing lies beside it
        return {"outliers dropped (only a law shows which)": points.take([])} | cut
    spread = 1.4826 * np.median(np.abs(known - np.median(known)))
    with np.errstate(invalid="ignore"):
        outlying = np.abs(residual - np.median(known)) > OUTLIER * spread
    name = f"{np.sum(outlying)} outliers beyond {OUTLIER:g} robust standard deviations dropped"
    return {name: points.take(~outlying)} | cut


def _conventions(method, case) -> dict[str, Points]:
    row, gathered = case.gathered.rows[0], case.gathered
    changes = {f"N {other}": gathered.points(other, case.flops) for other in row.params if other != case.params}
    if method.sees_flops:
        changes |= {f"C {other}": gathered.points(case.params, other) for other in row.flops if other != case.flops}
    return changes


def seed_noise(rows: list[Row]) -> dict | None:
    """Pooled standard deviation of the loss over runs that differ in their seed alone; None without such runs."""
    groups = {}
    for row in rows:
        setting = sorted((name, str(value)) for name, value in row.facts.items() if name in SETTINGS or _is_field(name))
        groups.setdefault((*row.params.values(), row.tokens, *setting), {})[row.seed] = row.loss
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


def _is_field(name: str) -> bool:
    """Of a config, such as optim.weight_decay: what a study's grid varies."""
    return "." in name and not name.startswith("loss/")
