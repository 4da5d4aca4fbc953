"""The forms that are fitted, and the best split of a budget under them. N parameters, D tokens, C = 6 N D FLOPs."""

import dataclasses
import math

import numpy as np

from gptjax.errors import UserError

FLOPS_PER_PARAM_TOKEN = 6.0  # Kaplan et al. 2020, section 2.1: forward 2, backward 4


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best split of `flops`, and the loss it gives in nats per token."""

    flops: float
    params: float
    tokens: float
    loss: float


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = scale * x^exponent; `rms` is what is left of ln y."""

    scale: float
    exponent: float
    rms: float = 0.0

    def __call__(self, x):
        return self.scale * np.power(x, self.exponent)

    @classmethod
    def through(cls, x, y, weight=None) -> "PowerLaw":
        """Least squares of ln y on ln x."""
        log_x, log_y = np.log(x), np.log(y)
        weight = np.ones_like(log_x) if weight is None else np.asarray(weight, float)
        centre = np.average(log_x, weights=weight)
        exponent = np.sum(weight * (log_x - centre) * log_y) / np.sum(weight * (log_x - centre) ** 2)
        level = np.average(log_y, weights=weight)
        rms = math.sqrt(np.average((log_y - level - exponent * (log_x - centre)) ** 2, weights=weight))
        return cls(math.exp(level - exponent * centre), float(exponent), rms)


@dataclasses.dataclass(frozen=True)
class ParametricLaw:
    """L(N, D) = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, section 3.3)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    @property
    def a(self) -> float:
        """Exponent of N* in C."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """Exponent of D* in C."""
        return self.alpha / (self.alpha + self.beta)

    def loss(self, params, tokens):
        """Nats per token."""
        return self.E + self.A / np.power(params, self.alpha) + self.B / np.power(tokens, self.beta)

    def optimum(self, flops: float, flops_per_param_token: float = FLOPS_PER_PARAM_TOKEN) -> Optimum:
        """N* = G (C/6)^a with G = (alpha A / (beta B))^(1/(alpha+beta)) (Hoffmann et al. 2022, equation 4).

        In logarithms, for small exponents make powers that float64 does not hold; NaN where there is no best split.
        """
        product = flops / flops_per_param_token
        with np.errstate(all="ignore"):
            log_scale = np.log([self.alpha, self.A]).sum() - np.log([self.beta, self.B]).sum()
            params = float(np.exp((log_scale + self.beta * np.log(product)) / np.float64(self.alpha + self.beta)))
            tokens = float(product / np.float64(params))
            return Optimum(flops, params, tokens, float(self.loss(params, tokens)))


def saturating(x, y) -> tuple[float, PowerLaw]:
    """(E, law) of least squares of y = E + scale x^exponent, 0 <= E < min y: for each E the line through ln(y - E)."""
    from scipy.optimize import minimize_scalar

    def law(E):
        return PowerLaw.through(x, y - E, (y - E) ** 2)

    def squares(E):
        return float(np.sum((E + law(E)(x) - y) ** 2))

    candidates = float(np.min(y)) * np.linspace(0, 0.995, 40)
    nearest = int(np.argmin([squares(E) for E in candidates]))
    around = candidates[max(nearest - 1, 0)], candidates[min(nearest + 1, len(candidates) - 1)]
    found = minimize_scalar(squares, bounds=around, method="bounded", options={"xatol": 1e-9}).x
    E = float(min((found, candidates[nearest]), key=squares))
    return E, law(E)


def checked(points):
    """`points` as they are; UserError for a number no logarithm can be taken of, with the run that holds it."""
    for name in ("params", "tokens", "flops", "loss"):
        values = getattr(points, name)
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise UserError(
                f"run {points.run[bad[0]]}: {name} is {values[bad[0]]}, a fit needs a finite number above 0"
                f" ({len(bad)} of {len(values)} points); leave diverged and unfinished runs out"
            )
    bad = np.flatnonzero(~(np.isfinite(points.weight) & (points.weight >= 0)))
    if len(bad):
        raise UserError(f"run {points.run[bad[0]]}: weight is {points.weight[bad[0]]}, a fit needs one of 0 or more")
    return points
