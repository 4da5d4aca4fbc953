"""The difference of two runs from pairs of what both were judged on, its standard error, and whether it could be chance.

Sources and axes: as in compare.py.
"""

import dataclasses
import math

import numpy as np

from gptjax.evaluation import held_out


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of b less a, in nats per token or bits per byte: below 0, b is better."""

    unit: str
    a: float
    b: float
    difference: float
    standard_error: float
    p_value: float
    unpaired_error: float  # that of the difference if the two had been measured on different texts
    pairs: int

    @property
    def shrinkage(self) -> float:
        """How many times smaller the standard error is than that of an unpaired comparison."""
        return self.unpaired_error / self.standard_error if self.standard_error else math.inf

    def as_dict(self) -> dict:
        return dataclasses.asdict(self) | {"shrinkage": self.shrinkage}

    def __str__(self) -> str:
        times = f"{self.shrinkage:.1f} times smaller than unpaired" if math.isfinite(self.shrinkage) else "0"
        if 0 < self.shrinkage < 1:
            times = f"{1 / self.shrinkage:.1f} times larger than unpaired"
        return (
            f"{self.unit}: A {self.a:.4f}  B {self.b:.4f}  B - A {self.difference:+.4f} +- {self.standard_error:.4f}"
            f"  p {self.p_value:.2g}  ({self.pairs:,} pairs; its error is {times})"
        )


def difference(a_P, b_P, size_P, unit: str) -> Difference:
    """From nats (or bits) of each pair and its size in tokens (or bytes)."""
    a_P, b_P, size_P = (np.float64(value) for value in (a_P, b_P, size_P))
    (a, a_error), (b, b_error) = held_out.ratio_of_means(a_P, size_P), held_out.ratio_of_means(b_P, size_P)
    mean, error = held_out.ratio_of_means(b_P - a_P, size_P)
    return Difference(
        unit, a, b, mean, error, p_value(mean, error, len(size_P)), math.hypot(a_error, b_error), len(size_P)
    )


def p_value(mean: float, error: float, pairs: int) -> float:
    """Two-sided, of Student's t with pairs - 1 degrees of freedom. NaN of a single pair; 1 of no difference at all."""
    from scipy import special

    if pairs < 2 or math.isnan(error):
        return math.nan
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * special.stdtr(pairs - 1, -abs(mean) / error))


def verdict(one: Difference) -> str:
    """What a difference of losses says of the two."""
    if one.difference == 0 and one.standard_error == 0:
        return "A and B are the same on this text"
    if not one.p_value < 0.05:
        return "this text does not show which run is better (p is not below 0.05)"
    return f"{'B' if one.difference < 0 else 'A'} is better on this text"
