"""Numbers by step, and as many of them as a chart can show: of the rest each stretch keeps its least, mean and largest."""

import array
import math

import numpy as np

STRETCHES = 400  # of equal width; and half as many of equal ratio, so that a logarithmic axis has points too
DIGITS = 6


class Series:
    """A step that comes again takes the place of all that was known from it on."""

    def __init__(self):
        self._steps, self._values = array.array("q"), array.array("d")

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, value: float) -> None:
        while self._steps and self._steps[-1] >= step:
            self._steps.pop()
            self._values.pop()
        self._steps.append(step)
        self._values.append(value)

    @property
    def last_step(self) -> int:
        return self._steps[-1] if self._steps else 0

    @property
    def steps(self) -> np.ndarray:
        return np.array(self._steps, np.int64)

    @property
    def values(self) -> np.ndarray:
        return np.array(self._values, np.float64)

    def last(self) -> float | None:
        """The newest number that is finite."""
        return next((value for value in reversed(self._values) if math.isfinite(value)), None)

    def drawn(self, stretches: int = STRETCHES) -> dict[str, list]:
        """{"x", "y"} of the points as they are; of many {"x", "y": means, "lo", "hi"} of stretches, so that no peak is
        lost. {"bad": steps} where numbers are not finite, the first of each stretch."""
        steps, values = self.steps, self.values
        finite = np.isfinite(values)
        bad = _stretches(steps[~finite], stretches)
        shown = {"bad": steps[~finite][bad].tolist()} if len(bad) else {}
        steps, values = steps[finite], values[finite]
        if len(steps) <= 2 * stretches:
            return {"x": steps.tolist(), "y": rounded(values)} | shown
        first = _stretches(steps, stretches)
        count = np.diff(np.append(first, len(steps)))
        middle = steps[first + count // 2]
        mean = np.add.reduceat(values, first) / count
        low, high = np.minimum.reduceat(values, first), np.maximum.reduceat(values, first)
        return {"x": middle.tolist(), "y": rounded(mean), "lo": rounded(low), "hi": rounded(high)} | shown


def _stretches(steps: np.ndarray, number: int) -> np.ndarray:
    """The index at which each stretch begins that has a point."""
    if len(steps) == 0:
        return np.zeros(0, int)
    least, most = max(1, steps[0]), steps[-1] + 1
    edges = np.concatenate(
        [np.linspace(steps[0], most, number + 1), np.geomspace(least, max(most, least), number // 2)]
    )
    stretch = np.searchsorted(np.unique(edges), steps, side="right")
    return np.flatnonzero(np.diff(stretch, prepend=-1))


def rounded(values) -> list[float]:
    """As many digits as can be seen; a page of them stays small."""
    return [float(f"{value:.{DIGITS}g}") for value in values]
