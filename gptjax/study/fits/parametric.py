"""Approach 3 of Hoffmann et al. 2022 (section 3.3): L(N, D) = E + A/N^alpha + B/D^beta through all points at once.

minimise  sum_i w_i Huber_delta(LSE(a - alpha ln N_i, b - beta ln D_i, e) - ln L_i),  A = e^a, B = e^b, E = e^e
"""

import dataclasses

import numpy as np

from gptjax.study.fits.laws import ParametricLaw
from gptjax.study.points import Points

DELTA = 1e-3  # Hoffmann et al. 2022, section 3.3
STARTS = 100


@dataclasses.dataclass(frozen=True)
class ParametricFit(ParametricLaw):
    """A law with how it was found. `.loss`, `.optimum`, `.a`, `.b` are the law's."""

    objective: float  # the sum at the optimum
    gradient: float  # largest component of its gradient, scaled: 0 at an exact optimum
    converged: bool
    starts: int
    starts_at_optimum: int  # how many ended there, to 1e-6 of the objective
    moved: bool  # the optimum is better than every start
    delta: float
    points_used: int
    refused: list[str]

    @property
    def constants(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("E", "A", "B", "alpha", "beta", "a", "b")}

    def strata(self, points: Points) -> np.ndarray:
        """Runs are drawn from one urn."""
        raise NotImplementedError

    def refits(self, points: Points, weight_RP: np.ndarray) -> list["ParametricFit"]:
        """One fit per row of weights, from this optimum on."""
        raise NotImplementedError


def fit(points: Points, *, delta: float = DELTA, starts: int | np.ndarray = STARTS, seed: int = 0) -> ParametricFit:
    """The best of many starts: `starts` drawn from Hoffmann's grid of 4500, or an array [S, 5] of (a, b, e, alpha, beta)."""
    raise NotImplementedError
