"""Power laws of Kaplan et al. 2020: L(N), L(D), L(C) (equations 1.1 to 1.3) and the joint form (1.5)."""

import dataclasses

import numpy as np

from gptjax.study.fits.laws import Optimum
from gptjax.study.points import Points


@dataclasses.dataclass(frozen=True)
class SingleLaw:
    """L(x) = (x_c / x)^alpha; NaN where refused. `points` are indices of what was fitted."""

    x_c: float
    alpha: float
    rms: float  # of what is left of ln L
    points: list[int]
    refused: list[str]

    def loss(self, x):
        return np.power(self.x_c / x, self.alpha)


@dataclasses.dataclass(frozen=True)
class JointLaw:
    """L(N, D) = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D (Kaplan et al. 2020, equation 1.5)."""

    N_c: float
    D_c: float
    alpha_N: float
    alpha_D: float
    objective: float
    converged: bool
    refused: list[str]

    def loss(self, params, tokens):
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class KaplanFit:
    L_N: SingleLaw
    L_D: SingleLaw
    L_C: SingleLaw
    joint: JointLaw
    points_used: int

    @property
    def constants(self) -> dict[str, float]:
        """N_c, alpha_N, D_c, alpha_D, C_c, alpha_C, and joint_N_c, joint_D_c, joint_alpha_N, joint_alpha_D, a, b."""
        raise NotImplementedError

    @property
    def refused(self) -> list[str]:
        """Those of all four, each with its law's name in front."""
        raise NotImplementedError

    def optimum(self, flops: float) -> Optimum:
        """Of the joint form: N* ~ C^(alpha_D/(alpha_N+alpha_D))."""
        raise NotImplementedError

    def strata(self, points: Points) -> np.ndarray:
        raise NotImplementedError

    def refits(self, points: Points, weight_RP: np.ndarray) -> list["KaplanFit"]:
        raise NotImplementedError


def fit(points: Points, *, delta: float = 1e-3) -> KaplanFit:
    raise NotImplementedError
