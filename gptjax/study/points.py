"""Finished runs as a fit sees them: numbers, whatever they came from."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Points:
    """Arrays [P] in float64. Which convention params and flops are counted in is said beside them, by who made them."""

    params: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    loss: np.ndarray  # nats per token
    weight: np.ndarray  # of a point in a fit, on any scale
    run: tuple[str, ...]  # points of one run are not independent
    seed: np.ndarray  # int

    def __len__(self) -> int:
        return len(self.loss)

    def take(self, chosen) -> "Points":
        """Those of a mask or of indices."""
        index = np.arange(len(self))[chosen]
        arrays = {name: getattr(self, name)[index] for name in ("params", "tokens", "flops", "loss", "weight", "seed")}
        return Points(**arrays, run=tuple(self.run[i] for i in index))
