"""How far a fitted law is to be believed: beyond the points it saw, under other choices, against the noise of seeds."""

import dataclasses

import numpy as np

from gptjax.study.fits import bootstrap, isoflop
from gptjax.study.fits.points import Gathered, Points, Row
from gptjax.study.methods import METHODS, Options, is_at

STARTS = 12  # of a parametric fit that checks another one
OUTLIER = 3.0  # robust standard deviations of a residual
RATIOS = (2.0, 5.0, 10.0)  # tokens a parameter under which runs are left out
NEAR = 1.02  # times that the exact FLOPs of a budget's runs may lie below the round number it is called by
SETTINGS = ("size", "learning_rate", "batch_size")  # of a run, beside N, D and what the grid varies
WINDOWS = (2.0, 4.0, np.inf)  # of parabolas, beside the one the points choose
CLOUD = 0.2  # of points that are no budgets are held out


def holdout(name: str, points: Points, options: Options) -> dict:
    """{"holdout_error", "holdout"}: the law of the points below C0, on those above.

    The error is the mean over held-out points of |predicted / measured - 1|; for the isoFLOP method, whose law is of
    the best runs alone, of the loss at the best of each held-out budget.
    """
    above = held_out(points, options.holdout)
    runs = {run for run, out in zip(points.run, above) if out}  # whole: what a run was on its way says where it ends
    below, held = points.take([run not in runs for run in points.run]), points.take(above)
    facts = {"above_flops": float(held.flops.min()) if len(held) else options.holdout, "points_fitted": len(below)}
    if not len(held) or not len(below):
        return _no_holdout("no points on one side of the held-out budget", facts)
    fit = METHODS[name].fit(below, dataclasses.replace(options, starts=STARTS))
    target = _best_of_each(held, fit.window) if name == "isoflop" else held
    if target is None:
        return _no_holdout("no held-out budget has a vertex", facts)
    predicted = METHODS[name].predict(fit, target)
    if not np.isfinite(predicted).all():
        return _no_holdout("; ".join(fit.refused) or "the law below has no loss for them", facts)
    shown = [
        {"run": run, "params": n, "tokens": d, "flops": c, "loss": loss, "predicted": value}
        for run, n, d, c, loss, value in zip(
            target.run, target.params, target.tokens, target.flops, target.loss, predicted
        )
    ]
    if name == "parametric":
        for point, intervals in zip(shown, _intervals(below, target, options)):
            point |= intervals
    error = float(np.mean(np.abs(predicted / target.loss - 1)))
    return {"holdout_error": error, "holdout": facts | {"points": shown, "refused": fit.refused}}


def _intervals(below: Points, target: Points, options: Options) -> list[dict]:
    """{"interval80", "interval95"} of each held-out loss: of the law below, and of what its points scatter about it."""
    chosen = dataclasses.replace(options, starts=STARTS)
    found = bootstrap.intervals(
        lambda some: METHODS["parametric"].fit(some, chosen), below, replicates=options.replicates, seed=options.seed
    )
    if not len(found.samples["E"]):
        return [{} for _ in target.loss]
    spread = residual_spread(found.fit, below)
    return [
        prediction_intervals(found.samples, params, tokens, spread)
        for params, tokens in zip(target.params, target.tokens)
    ]


def residual_spread(law, points: Points) -> float:
    """Standard deviation of what a parametric law leaves of ln L."""
    residual = np.log(points.loss) - np.log(law.loss(points.params, points.tokens))
    return float(np.sqrt(np.sum(residual**2) / max(1, len(points) - 5)))


def prediction_intervals(samples: dict[str, np.ndarray], params: float, tokens: float, spread: float) -> dict:
    """Of one run's loss: over replicates of the parametric law, each with a draw of what runs scatter about it."""
    losses = samples["E"] + samples["A"] / params ** samples["alpha"] + samples["B"] / tokens ** samples["beta"]
    scattered = losses * np.exp(spread * np.random.default_rng(0).standard_normal(len(losses)))
    return {f"interval{percent}": bootstrap.interval(scattered, percent) for percent in (80, 95)}


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


def _best_of_each(held: Points, window: float) -> Points | None:
    """The vertices of held-out budgets as points, in the window the other budgets have; None where there is none."""
    vertices = [vertex for vertex in isoflop.fit(held, window=window).optima if vertex.refused is None]
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
    if name == "isoflop":
        changes |= {_window_name(ratio): (points, dataclasses.replace(options, window=ratio)) for ratio in WINDOWS}
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


def _window_name(ratio: float) -> str:
    return "a parabola through all points" if np.isinf(ratio) else f"a window of x/{ratio:g}..x{ratio:g}"


def _fewer_points(method, points: Points, options: Options) -> dict[str, Points]:
    ratio = points.tokens / points.params
    cut = {f"runs of D/N >= {least:g} only": points.take(ratio >= least) for least in RATIOS}
    residual = _residuals(method, method.fit(points, options), points)
    known = residual[np.isfinite(residual)]
    if not len(known):  # without a law nothing lies beside it
        return {"outliers dropped, which only a law shows": points.take([])} | cut
    spread = 1.4826 * np.median(np.abs(known - np.median(known)))
    with np.errstate(invalid="ignore"):
        outlying = np.abs(residual - np.median(known)) > OUTLIER * spread
    name = f"{np.sum(outlying)} outliers beyond {OUTLIER:g} robust standard deviations dropped"
    return {name: points.take(~outlying)} | cut


def _residuals(method, fit, points: Points) -> np.ndarray:
    """ln of measured over expected: by the law, or, for isoFLOP, whose law is of the best points alone, by the parabola of
    each budget; NaN of a point outside its parabola's window, for which it says nothing."""
    if method is not METHODS["isoflop"]:
        return np.log(points.loss) - np.log(method.predict(fit, points))
    residual, number = np.full(len(points), np.nan), isoflop.budgets(points)
    for one, vertex in enumerate(fit.optima):
        inside = (number == one) & isoflop.is_inside(vertex, points.params)
        expected = np.polynomial.Polynomial(vertex.coefficients)(np.log(points.params[inside]))
        residual[inside] = np.log(points.loss[inside]) - np.log(np.where(expected > 0, expected, np.nan))
    return residual


def seeds_beside_parabolas(section: dict, rows: list[Row], points: Points) -> dict:
    """{"seed_noise", "optima"} of an isoFLOP section: the noise between seeds of the points its parabolas go through,
    and each vertex with that of its own as "seed_deviation", nats; None without such seeds. rows: those of the points."""
    number, used, optima = isoflop.budgets(points), np.zeros(len(points), bool), []
    for vertex in section["optima"]:
        if not vertex.get("window"):
            optima.append(vertex)
            continue
        own = [one for one in range(number.max() + 1) if is_at(points.flops[number == one], vertex["flops"])]
        inside = np.isin(number, own) & isoflop.between(points.params, *vertex["window"])
        noise = seed_noise([row for row, chosen in zip(rows, inside) if chosen])
        optima.append(vertex | {"seed_deviation": noise and noise["standard_deviation"]})
        used |= inside & (vertex["refused"] is None)
    return {"seed_noise": seed_noise([row for row, chosen in zip(rows, used) if chosen]), "optima": optima}


def _conventions(name: str, gathered: Gathered, params: str, flops: str) -> dict[str, Points]:
    row = gathered.rows[0]
    changes = {f"N {other}": gathered.points(other, flops) for other in row.params if other != params}
    if name == "isoflop":  # the other laws do not see C
        changes |= {f"C {other}": gathered.points(params, other) for other in row.flops if other != flops}
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
