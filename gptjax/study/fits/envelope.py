"""Approach 1 of Hoffmann et al. 2022 (section 3.1): at each compute the run whose loss is lowest, and a power law through those."""

import dataclasses

import numpy as np

from gptjax.study.fits.laws import Optimum, PowerLaw


@dataclasses.dataclass(frozen=True)
class Curve:
    """The training curve of one run: arrays over the steps at which it was evaluated."""

    run: str
    params: float
    flops: np.ndarray  # spent until then, growing
    tokens: np.ndarray
    loss: np.ndarray


@dataclasses.dataclass(frozen=True)
class Winner:
    flops: float
    run: str
    params: float
    tokens: float
    loss: float
    refused: str | None  # an edge winner: no smaller or no larger run was there to lose


@dataclasses.dataclass(frozen=True)
class EnvelopeFit:
    winners: list[Winner]  # at log-spaced compute, refused ones too
    params_law: PowerLaw
    tokens_law: PowerLaw
    loss_law: PowerLaw
    refused: list[str]

    @property
    def a(self) -> float:
        return self.params_law.exponent

    @property
    def b(self) -> float:
        return self.tokens_law.exponent

    @property
    def constants(self) -> dict[str, float]:
        return {"a": self.a, "b": self.b, "N_scale": self.params_law.scale, "D_scale": self.tokens_law.scale}

    def optimum(self, flops: float) -> Optimum:
        raise NotImplementedError


def fit(curves: list[Curve], *, budgets: int = 200) -> EnvelopeFit:
    raise NotImplementedError
