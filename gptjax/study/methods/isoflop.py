"""Approach 2 of Hoffmann et al. 2022: a parabola in ln N for each budget, whose law is of the best points alone."""

import dataclasses

import numpy as np

from gptjax.pages import palette
from gptjax.study.fits import isoflop
from gptjax.study.fits.points import Points
from gptjax.study.methods import checks
from gptjax.study.methods.method import Method
from gptjax.study.methods.section import is_at

WINDOWS = (2.0, 4.0, np.inf)  # of parabolas, beside the one the points choose


class IsoFlop(Method):
    title = "IsoFLOP (approach 2)"
    called = "isoFLOP parabolas"
    plural = True
    form = (
        "A parabola in ln N for each budget, through the points near its optimum; a power law through the vertices:"
        " N* = N_scale C^a, D* = D_scale C^b."
    )
    constants = ("a", "b", "N_scale", "D_scale", "loss_E")
    facts = ("loss_E", "window", "window_fits")
    figures = ("isoflop",)
    label = "isoFLOP (approach 2)"
    colour = palette.BLUE
    shows_vertices = True
    sees_flops = True

    def fit(self, points, options):
        return isoflop.fit(points, window=options.window)

    def predict(self, fit, points):
        return np.array([fit.optimum(flops).loss for flops in points.flops])

    def residual(self, fit, points):
        """What its parabolas leave, relative to the loss."""
        return fit.residual

    def residuals(self, fit, points):
        """By the parabola of each budget; NaN of a point outside its window."""
        residual, number = np.full(len(points), np.nan), isoflop.budgets(points)
        for one, vertex in enumerate(fit.optima):
            inside = (number == one) & isoflop.is_inside(vertex, points.params)
            expected = np.polynomial.Polynomial(vertex.coefficients)(np.log(points.params[inside]))
            residual[inside] = np.log(points.loss[inside]) - np.log(np.where(expected > 0, expected, np.nan))
        return residual

    def held_out(self, fit, points):
        """The vertices of held-out budgets as points, in the window the other budgets have."""
        vertices = [vertex for vertex in isoflop.fit(points, window=fit.window).optima if vertex.refused is None]
        if not vertices:
            return None
        names = ("params", "tokens", "flops", "loss")
        columns = {name: np.array([getattr(vertex, name) for vertex in vertices]) for name in names}
        runs = tuple(f"vertex at {vertex.flops:.3g} FLOPs" for vertex in vertices)
        return Points(**columns, weight=np.ones(len(vertices)), run=runs, seed=np.zeros(len(vertices), int))

    def variations(self, options):
        return {_window_name(ratio): dataclasses.replace(options, window=ratio) for ratio in WINDOWS}

    def left_out(self, found, points):
        """Those of budgets without a vertex, and those outside the window of their budget's parabola."""
        number, unused = isoflop.budgets(points), []
        for one in np.unique(number):
            of_budget = points.take(number == one)
            for vertex in found["optima"]:
                if vertex.get("window") and is_at(of_budget.flops, vertex["flops"]):
                    unused += _unused(vertex, of_budget)
        return unused

    def beside(self, found, case):
        """{"seed_noise", "optima"}: the noise between seeds of the points its parabolas go through, and each vertex with
        that of its own as "seed_deviation", nats; None without such seeds."""
        points, rows = case.points, case.gathered.rows
        number, used, optima = isoflop.budgets(points), np.zeros(len(points), bool), []
        for vertex in found["optima"]:
            if not vertex.get("window"):
                optima.append(vertex)
                continue
            own = [one for one in range(number.max() + 1) if is_at(points.flops[number == one], vertex["flops"])]
            inside = np.isin(number, own) & isoflop.between(points.params, *vertex["window"])
            noise = checks.seed_noise([row for row, chosen in zip(rows, inside) if chosen])
            optima.append(vertex | {"seed_deviation": noise and noise["standard_deviation"]})
            used |= inside & (vertex["refused"] is None)
        return {"seed_noise": checks.seed_noise([row for row, chosen in zip(rows, used) if chosen]), "optima": optima}


def _window_name(ratio: float) -> str:
    return "a parabola through all points" if np.isinf(ratio) else f"a window of x/{ratio:g}..x{ratio:g}"


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
