"""Approach 3 of Hoffmann et al. 2022 (section 3.3): L(N, D) = E + A/N^alpha + B/D^beta through all points at once.

    minimise  sum_i w_i Huber_delta(LSE(a - alpha ln N_i, b - beta ln D_i, e) - ln L_i),  A = e^a, B = e^b, E = e^e

The sum, not the mean, and to the last digit: a mean under default tolerances is below them at the start, and the
published constants stopped short of the optimum for it (Besiroglu et al. 2024, section 3).
"""

import dataclasses
import itertools

import numpy as np

from gptjax.study.fits import huber, identified
from gptjax.study.fits.laws import ParametricLaw, checked
from gptjax.study.points import Points

DELTA = 1e-3  # Hoffmann et al. 2022, section 3.3
STARTS = 100  # of the grid's 4500; nearly all end at the same optimum
SAME = 1e-6  # of the objective: two starts that ended this near are at one optimum
LBFGS = {"maxiter": 5000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 20}
CONSTANTS = ("E", "A", "B", "alpha", "beta")


@dataclasses.dataclass(frozen=True)
class ParametricFit(ParametricLaw):
    """A law with how it was found. `.loss`, `.optimum`, `.a`, `.b` are the law's."""

    objective: float  # the sum at the optimum
    converged: bool  # the gradient is 0 to rounding, and the optimum no saddle
    starts: int
    starts_at_optimum: int  # how many ended there, to SAME
    delta: float
    points_used: int
    refused: list[str]

    @property
    def constants(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in (*CONSTANTS, "a", "b")}

    def strata(self, points: Points) -> np.ndarray:
        """Int [P]: all runs are drawn from one urn."""
        return np.zeros(len(points), int)

    def refits(self, points: Points, weight_RP: np.ndarray) -> list["ParametricFit"]:
        """One fit per row of weights, from this optimum on."""
        cloud = huber.Cloud.of(points, self.delta)
        published = np.array([np.log(self.A), np.log(self.B), np.log(self.E), self.alpha, self.beta])
        start = np.tile(cloud.centred(published), (len(weight_RP), 1))
        ends, values, tight = huber.descend(cloud, start, weight_RP * points.weight)
        held = np.sum(weight_RP * points.weight > 0, -1)
        return [_fit(cloud, points, *end, 1, 1, int(n)) for *end, n in zip(ends, values, tight, held)]


def fit(points: Points, *, delta: float = DELTA, starts: int | np.ndarray = STARTS, seed: int = 0) -> ParametricFit:
    """The best of many starts: so many drawn from Hoffmann's grid, or an array [S, 5] of (a, b, e, alpha, beta)."""
    checked(points)
    too_few = identified.too_few(points)
    if too_few:
        return ParametricFit(*[np.nan] * 5, np.nan, False, 0, 0, delta, len(points), too_few)
    cloud = huber.Cloud.of(points, delta)
    begin = cloud.centred(draw(starts, seed) if isinstance(starts, int) else starts)
    ends = np.stack([_lbfgs(cloud, x, points.weight) for x in begin])
    ends, values, tight = huber.descend(cloud, ends, points.weight[None])
    best = int(np.argmin(np.where(tight, values, np.inf) if tight.any() else values))
    rounding = np.sum(points.weight) * 1e-20  # the objective of a law met exactly is 0 but for it
    there = int(np.sum(values <= values[best] * (1 + SAME) + rounding))
    return _fit(cloud, points, ends[best], values[best], tight[best], len(begin), there, len(points))


def grid() -> np.ndarray:
    """[4500, 5]: the starts (a, b, e, alpha, beta) of Hoffmann et al. 2022, section 3.3."""
    level, power = np.arange(0, 30, 5.0), np.arange(0, 2.5, 0.5)
    return np.array(list(itertools.product(level, level, np.arange(-1, 1.5, 0.5), power, power)))


def draw(starts: int, seed: int) -> np.ndarray:
    """[starts, 5] of the grid, none twice."""
    chosen = np.random.default_rng(seed).permutation(len(grid()))[:starts]
    return grid()[chosen]


def _lbfgs(cloud: huber.Cloud, start: np.ndarray, weight: np.ndarray) -> np.ndarray:
    from scipy.optimize import minimize

    def objective(x):
        value, gradient = cloud.value_and_gradient(x[None], weight[None])
        return value[0], gradient[0]

    return minimize(objective, start, jac=True, method="L-BFGS-B", options=LBFGS).x


def _fit(cloud, points, x, value, tight, starts, there, used) -> ParametricFit:
    a, b, e, alpha, beta = cloud.published(x)
    with np.errstate(over="ignore"):
        constants = [float(c) for c in (np.exp(e), np.exp(a), np.exp(b), alpha, beta)]
    refused = [] if tight else ["the optimizer did not converge: the objective has no optimum it could reach"]
    refused += identified.of_optimum(cloud, points, x, constants)
    return ParametricFit(*constants, float(value), bool(tight), starts, there, cloud.delta, used, refused)
