"""Approach 3 of Hoffmann et al. 2022 (section 3.3): L(N, D) = E + A/N^alpha + B/D^beta through all points at once.

    minimise  sum_i w_i Huber_delta(LSE(a - alpha ln N_i, b - beta ln D_i, e) - ln L_i),  A = e^a, B = e^b, E = e^e

The sum, not the mean, and to the last digit: a mean under default tolerances is below them at the start, and the
published constants stopped short of the optimum for it (Besiroglu et al. 2024).
"""

import dataclasses
import itertools

import numpy as np

from gptjax.errors import UserError
from gptjax.study.fits import huber, identified
from gptjax.study.fits.fit import Fit
from gptjax.study.fits.laws import ParametricLaw, checked
from gptjax.study.fits.points import Points

DELTA = 1e-3  # Hoffmann et al. 2022, section 3.3
STARTS = 100  # of the grid's 4500; nearly all end at the same optimum
NOT_CONVERGED = "the fit did not converge"
CONSTANTS = ("E", "A", "B", "alpha", "beta")


class Terms(huber.Objective):
    """ln law = LSE(a - alpha n, b - beta d, e); x = (a, b, e, alpha, beta)."""

    def centred(self, x):
        """(a, b, e, alpha, beta) as published -> the same law in centred logarithms. Last axis 5."""
        a, b, e, alpha, beta = np.moveaxis(np.asarray(x, float), -1, 0)
        return np.stack([a - alpha * self.n_centre, b - beta * self.d_centre, e, alpha, beta], -1)

    def published(self, x):
        """The way back."""
        a, b, e, alpha, beta = np.moveaxis(np.asarray(x, float), -1, 0)
        return np.stack([a + alpha * self.n_centre, b + beta * self.d_centre, e, alpha, beta], -1)

    def terms(self, x_R5):
        """(ln law, the three terms' shares in it), each [R, P]."""
        a, b, e, alpha, beta = x_R5.T[:, :, None]
        size, data = a - alpha * self.n, b - beta * self.d
        top = np.maximum(np.maximum(size, data), e)
        size, data, rest = np.exp(size - top), np.exp(data - top), np.exp(e - top)
        total = size + data + rest
        return top + np.log(total), (size / total, data / total, rest / total)

    def log_law(self, x_R5):
        return self.terms(x_R5)[0]

    def jacobian(self, x_R5):
        size, data, rest = self.terms(x_R5)[1]
        return np.stack([size, data, rest, -size * self.n, -data * self.d], 1)

    def bend(self, x_R5, pull):
        """LSE's second derivatives: shares times outer products of the terms' gradients, less that of the mean gradient."""
        shares = self.terms(x_R5)[1]
        jacobian = self.jacobian(x_R5)
        bend = -(jacobian * pull[:, None]) @ jacobian.swapaxes(1, 2)
        bend[:, 2, 2] += np.sum(pull * shares[2], -1)
        for share, log_x, level, exponent in ((shares[0], self.n, 0, 3), (shares[1], self.d, 1, 4)):
            constant, linear, square = ((pull * share) @ np.stack([np.ones_like(log_x), -log_x, log_x**2], -1)).T
            bend[:, level, level] += constant
            bend[:, exponent, exponent] += square
            bend[:, level, exponent] += linear
            bend[:, exponent, level] += linear
        return bend


@dataclasses.dataclass(frozen=True)
class ParametricFit(ParametricLaw, Fit):
    """A law with how it was found. `.loss`, `.optimum`, `.a`, `.b` are the law's."""

    objective: float  # the sum at the optimum
    converged: bool  # the gradient is 0 to rounding, and the optimum no saddle
    starts: int
    starts_at_optimum: int  # how many ended there, to 1e-6 of the objective
    delta: float
    points_used: int  # with a weight above 0
    refused: list[str]

    num_constants = len(CONSTANTS)

    @property
    def constants(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in (*CONSTANTS, "a", "b")}

    @property
    def failure(self) -> str | None:
        """Why a refit is no sample of the constants."""
        return None if self.converged else NOT_CONVERGED

    def refits(self, points: Points, weight_RP: np.ndarray) -> list["ParametricFit"]:
        """One fit per row of weights, from this optimum on."""
        objective, weight_RP = Terms.of(points, self.delta), weight_RP * points.weight
        published = np.array([np.log(self.A), np.log(self.B), np.log(self.E), self.alpha, self.beta])
        start = np.tile(objective.centred(published), (len(weight_RP), 1))
        found = zip(*huber.descend(objective, start, weight_RP), weight_RP)
        return [_found(objective, x, value, tight, weight, 1, 1) for x, value, tight, weight in found]


def fit(points: Points, *, delta: float = DELTA, starts: int | np.ndarray = STARTS, seed: int = 0) -> ParametricFit:
    """The best of many starts: so many drawn from Hoffmann's grid, or an array [S, 5] of (a, b, e, alpha, beta)."""
    checked(points)
    too_few = identified.too_few(points)
    if too_few:
        return ParametricFit(*[np.nan] * 6, False, 0, 0, delta, len(points), too_few)
    objective = Terms.of(points, delta)
    begin = draw(starts, seed) if isinstance(starts, int) else np.asarray(starts, float)
    x, value, tight, there = huber.minimise(objective, objective.centred(begin), points.weight)
    found = _found(objective, x, value, tight, points.weight, len(begin), there)
    open_ = identified.of_optimum(objective, x, found, points.loss, points.weight)
    return dataclasses.replace(found, refused=found.refused + open_)


def grid() -> np.ndarray:
    """[4500, 5]: the starts (a, b, e, alpha, beta) of Hoffmann et al. 2022, section 3.3."""
    level, power = np.arange(0, 30, 5.0), np.arange(0, 2.5, 0.5)
    return np.array(list(itertools.product(level, level, np.arange(-1, 1.5, 0.5), power, power)))


def draw(starts: int, seed: int) -> np.ndarray:
    """[starts, 5] of the grid, none twice."""
    if not 1 <= starts <= len(grid()):
        raise UserError(f"starts={starts}: the grid has {len(grid())}; ask for 1 to {len(grid())}")
    return grid()[np.random.default_rng(seed).permutation(len(grid()))[:starts]]


def _found(objective, x, value, tight, weight, starts: int, there: int) -> ParametricFit:
    a, b, e, alpha, beta = objective.published(x)
    with np.errstate(over="ignore"):
        law = (float(c) for c in (np.exp(e), np.exp(a), np.exp(b), alpha, beta))
    refused = [] if tight else [NOT_CONVERGED]
    used = int(np.sum(weight > 0))
    return ParametricFit(*law, float(value), bool(tight), starts, there, objective.delta, used, refused)
