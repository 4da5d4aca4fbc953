"""Approach 3 of Hoffmann et al. 2022: a form with an irreducible loss through all points."""

import dataclasses

import numpy as np

from gptjax.pages import palette
from gptjax.study.fits import bootstrap, parametric
from gptjax.study.fits.points import Points
from gptjax.study.methods.method import Method, Options


class Parametric(Method):
    title = "Parametric law (approach 3)"
    called = "the parametric law"
    form = (
        "L(N, D) = E + A / N^alpha + B / D^beta; a = beta / (alpha + beta), b = alpha / (alpha + beta) are the"
        " exponents of N* and D* in C."
    )
    constants = ("E", "A", "B", "alpha", "beta", "a", "b")
    facts = ("objective", "converged", "starts", "starts_at_optimum", "delta")
    figures = ("frontier", "residuals")
    label = "parametric (approach 3)"
    colour = palette.VERMILION
    line_width = 2.6

    def fit(self, points, options):
        return parametric.fit(points, delta=options.delta, starts=options.starts, seed=options.seed)

    def predict(self, fit, points):
        return fit.loss(points.params, points.tokens)

    def held_out_intervals(self, below, target, options):
        """Of the law below, and of what its points scatter about it."""
        found = bootstrap.intervals(
            lambda some: self.fit(some, options), below, replicates=options.replicates, seed=options.seed
        )
        if not len(found.samples["E"]):
            return super().held_out_intervals(below, target, options)
        spread = residual_spread(found.fit, below)
        return [
            prediction_intervals(found.samples, params, tokens, spread)
            for params, tokens in zip(target.params, target.tokens)
        ]

    def variations(self, options):
        return other_deltas(options)


def other_deltas(options: Options) -> dict[str, Options]:
    """Ten times the Huber delta, and a tenth of it."""
    changed = [dataclasses.replace(options, delta=options.delta * factor) for factor in (10.0, 0.1)]
    return {f"Huber delta {one.delta:g}": one for one in changed}


def residual_spread(law, points: Points) -> float:
    """Standard deviation of what a parametric law leaves of ln L."""
    residual = np.log(points.loss) - np.log(law.loss(points.params, points.tokens))
    return float(np.sqrt(np.sum(residual**2) / max(1, len(points) - 5)))


def prediction_intervals(samples: dict[str, np.ndarray], params: float, tokens: float, spread: float) -> dict:
    """Of one run's loss: over replicates of the parametric law, each with a draw of what runs scatter about it."""
    losses = samples["E"] + samples["A"] / params ** samples["alpha"] + samples["B"] / tokens ** samples["beta"]
    scattered = losses * np.exp(spread * np.random.default_rng(0).standard_normal(len(losses)))
    return {f"interval{percent}": bootstrap.interval(scattered, percent) for percent in (80, 95)}
