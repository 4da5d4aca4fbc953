"""What every fit is, to those that draw intervals about it and report it."""

import typing

import numpy as np

from gptjax.study.fits.laws import Optimum, PowerLaw


class Fit:
    """A fit has what is declared here; what is computed here is as for constants that all points share.

    `refused` says why it is to get no headline, [] when nothing speaks against it. A fit that cannot be computed has NaN
    constants, and says why.
    """

    constants: dict[str, float]  # a and b among them: the exponents of N* and D* in C, where the fit has them
    refused: list[str]
    points_used: int
    num_constants: int  # that the points have to give, as far as they share them

    def optimum(self, flops: float) -> Optimum:
        """The best split of a budget; NaN where there is none."""
        raise NotImplementedError

    def refits(self, points, weight_RP: np.ndarray) -> list[typing.Self]:
        """One fit for each row of weights, which come on top of those that points have."""
        raise NotImplementedError

    @property
    def failure(self) -> str | None:
        """Why a refit is no sample of the constants."""
        return self.refused[0] if self.refused else None

    def spare(self, runs: int) -> float:
        """Share of the noise that is left after the constants, for the weights of a bootstrap."""
        return max(runs - self.num_constants, 1) / runs

    def runs(self, points) -> tuple[str, ...]:
        """The run of each point: those of one run are not independent."""
        return points.run

    def strata(self, points) -> np.ndarray:
        """Int [P]: runs are weighed within a stratum; all are in one."""
        return np.zeros(len(points), int)


class BudgetLaws(Fit):
    """What is common to fits of the best split of each budget: power laws in C."""

    num_constants = 2  # of a power law
    params_law: PowerLaw
    tokens_law: PowerLaw
    loss_law: PowerLaw
    loss_E: float

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
        loss = self.loss_E + self.loss_law(flops)
        return Optimum(flops, float(self.params_law(flops)), float(self.tokens_law(flops)), float(loss))
