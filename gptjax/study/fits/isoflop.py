"""Approach 2 of Hoffmann et al. 2022 (section 3.2): a parabola per budget, loss against ln N, and a power law through the vertices."""

import dataclasses

import numpy as np

from gptjax.study.fits.laws import Optimum, PowerLaw
from gptjax.study.points import Points


@dataclasses.dataclass(frozen=True)
class Vertex:
    """The bottom of one budget's parabola; `refused` says why it is not used, None where it is."""

    flops: float  # geometric mean of the budget's points
    params: float
    tokens: float
    loss: float
    curvature: float  # of the loss in ln N; positive: a minimum
    coefficients: tuple[float, float, float]  # loss = c0 + c1 x + c2 x^2 with x = ln N, to draw it
    window: tuple[float, float]  # smallest and largest N that were run
    n_points: int
    n_sizes: int  # distinct N
    refused: str | None


@dataclasses.dataclass(frozen=True)
class IsoflopFit:
    """N* = params_law(C), D* = tokens_law(C), L* = loss_E + loss_law(C)."""

    optima: list[Vertex]  # one per budget, refused ones too, by growing flops
    params_law: PowerLaw
    tokens_law: PowerLaw
    loss_law: PowerLaw
    loss_E: float  # 0 with fewer than four vertices: an offset takes three constants
    points_used: int
    refused: list[str]

    @property
    def a(self) -> float:
        return self.params_law.exponent

    @property
    def b(self) -> float:
        return self.tokens_law.exponent

    @property
    def constants(self) -> dict[str, float]:
        """a, b and the scales: N* = N_scale C^a, D* = D_scale C^b."""
        return {"a": self.a, "b": self.b, "N_scale": self.params_law.scale, "D_scale": self.tokens_law.scale}

    def optimum(self, flops: float) -> Optimum:
        raise NotImplementedError

    def strata(self, points: Points) -> np.ndarray:
        """Runs are drawn within their budget, so that none disappears."""
        raise NotImplementedError

    def refits(self, points: Points, weight_RP: np.ndarray) -> list["IsoflopFit"]:
        raise NotImplementedError


def budgets(points: Points) -> np.ndarray:
    """Int [P]: which budget a point belongs to, 0 the smallest; points are split where ln C has a gap."""
    raise NotImplementedError


def fit(points: Points) -> IsoflopFit:
    raise NotImplementedError
