"""Rates of rotary positions for contexts longer than those that a model was trained on first: `model.rope_scaling`.

A rate is the angle in radians by which a pair of dimensions turns from one token to the next; plain ones are
theta^(-i / half), i from 0 to half - 1 (Su et al. 2021). Each class here is one way to slow them down, a choice of
`rotary.SCALINGS`, with `rates(theta, half)` and `gain`, a factor of what was rotated. Rates are computed in
float64 and rounded once. The texts of theirs that transformers computes other rates for as they grow are longer than
model.context_length, and never come here.
"""

import dataclasses
import math

import numpy as np

from gptjax.errors import UserError


def plain_rates(theta: float, half: int) -> np.ndarray:
    """Radians per token, float64 [half]."""
    return theta ** (-np.arange(half) / half)


class _Scaling:
    gain = 1.0  # of rotated queries and keys

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if type(value) in (int, float) and value <= 0:
                raise UserError(f"{field.name}={value} must be positive.")


@dataclasses.dataclass(frozen=True)
class Linear(_Scaling):
    """Positions divided by a factor (Chen et al. 2023, position interpolation)."""

    factor: float

    def rates(self, theta: float, half: int) -> np.ndarray:
        return np.float32(plain_rates(theta, half) / self.factor)


@dataclasses.dataclass(frozen=True)
class Dynamic(_Scaling):
    """Plain rates up to model.context_length, as dynamic NTK scaling has them (Peng et al. 2023, section 3.4).

    In longer texts, which gptjax refuses, transformers takes a larger theta, and the more tokens it has seen the larger.
    """

    factor: float

    def rates(self, theta: float, half: int) -> np.ndarray:
        return np.float32(plain_rates(theta, half))


@dataclasses.dataclass(frozen=True)
class Llama3(_Scaling):
    """Slow rates divided by a factor, fast ones kept, those between blended (Llama Team 2024, in their released code).

    A rate is slow that turns less than low_freq_factor times in original_context_length tokens, and fast if it turns more
    than high_freq_factor times.
    """

    factor: float
    original_context_length: int
    low_freq_factor: float
    high_freq_factor: float

    def __post_init__(self):
        super().__post_init__()
        if self.high_freq_factor <= self.low_freq_factor:
            raise UserError(
                f"high_freq_factor={self.high_freq_factor} is not above low_freq_factor={self.low_freq_factor}."
            )

    def rates(self, theta: float, half: int) -> np.ndarray:
        rate_K = plain_rates(theta, half)
        turns_K = self.original_context_length * rate_K / (2 * math.pi)
        kept_K = (turns_K - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return _blend(rate_K, self.factor, np.clip(kept_K, 0, 1))


@dataclasses.dataclass(frozen=True)
class Yarn(_Scaling):
    """YaRN (Peng et al. 2023, sections 3.2 and 3.3): slow rates divided by a factor, fast ones kept, and between them a
    ramp over the dimensions, from the one that turns beta_fast times in original_context_length tokens to the one that
    turns beta_slow times. truncate: whether the ends of the ramp are rounded outwards to whole dimensions.

    attention_factor: of rotated queries and keys; None: 0.1 ln(factor) + 1.
    """

    factor: float
    original_context_length: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    @property
    def gain(self) -> float:
        return yarn_gain(self.factor) if self.attention_factor is None else self.attention_factor

    def rates(self, theta: float, half: int) -> np.ndarray:
        if theta <= 1:
            raise UserError(f"model.rope_scaling of yarn needs a base period above 1, but model.rope_theta={theta}.")
        first, last = (self._dim_that_turns(turns, theta, half) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * half - 1)
        last += 0.001 * (first == last)  # no division by zero, as transformers has it
        slowed_K = np.clip((np.arange(half) - first) / (last - first), 0, 1)
        return _blend(plain_rates(theta, half), self.factor, 1 - slowed_K)

    def _dim_that_turns(self, times: float, theta: float, half: int) -> float:
        return half * math.log(self.original_context_length / (2 * math.pi * times)) / math.log(theta)


def yarn_gain(factor: float, share: float = 1.0) -> float:
    """What YaRN multiplies rotated queries and keys with, so that their products stay as peaked in longer contexts."""
    return 0.1 * share * math.log(max(factor, 1.0)) + 1


def _blend(rate_K: np.ndarray, factor: float, kept_K: np.ndarray) -> np.ndarray:
    """Float32 rates, kept to this share and slowed by the factor for the rest."""
    return np.float32(kept_K * rate_K + (1 - kept_K) * rate_K / factor)
