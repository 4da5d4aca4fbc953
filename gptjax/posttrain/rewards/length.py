"""Rewards of length and repetition."""

import dataclasses

import numpy as np

from gptjax.errors import UserError, choose
from gptjax.posttrain.rewards.reward import Answer

UNITS = {
    "tokens": lambda answer: len(answer.token_L),
    "words": lambda answer: len(answer.text.split()),
    "characters": lambda answer: len(answer.text),
}


@dataclasses.dataclass(frozen=True)
class Length:
    """1 at the target, less by the share that it is missed by: 1 - |length - target| / target, at least -1."""

    target: int
    unit: str = "tokens"

    def __post_init__(self):
        choose(UNITS, self.unit, "unit")
        _check_positive(target=self.target)

    def __call__(self, answer: Answer) -> float:
        return max(-1.0, 1.0 - abs(UNITS[self.unit](answer) - self.target) / self.target)


@dataclasses.dataclass(frozen=True)
class Overlong:
    """0 up to limit - buffer tokens, then down to -1 at the limit and beyond (Yu et al. 2025, DAPO, equation 13)."""

    limit: int
    buffer: int = 0
    unit: str = "tokens"

    def __post_init__(self):
        choose(UNITS, self.unit, "unit")
        _check_positive(limit=self.limit)
        if not 0 <= self.buffer < self.limit:
            raise UserError(f"buffer={self.buffer} is not within the limit of {self.limit}; use 0 or more, below it.")

    def __call__(self, answer: Answer) -> float:
        beyond = UNITS[self.unit](answer) - (self.limit - self.buffer)
        if beyond <= 0:
            return 0.0
        return -min(1.0, beyond / self.buffer) if self.buffer else -1.0


@dataclasses.dataclass(frozen=True)
class Repetition:
    """Minus the share of n-grams of tokens that stood before in the answer: 0 where none repeats."""

    n: int = 3

    def __post_init__(self):
        _check_positive(n=self.n)

    def __call__(self, answer: Answer) -> float:
        count = len(answer.token_L) - self.n + 1
        if count <= 0:
            return 0.0
        ngram_CN = np.lib.stride_tricks.sliding_window_view(np.asarray(answer.token_L), self.n)
        return len(np.unique(ngram_CN, axis=0)) / count - 1.0


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{name}={value} is too small; use at least 1.")
