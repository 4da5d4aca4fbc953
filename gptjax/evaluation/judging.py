"""What "better" means for a number that evaluations on held-out text log: which of them is the best, and how long ago.

A metric is a name in the rows of an evaluation, such as loss, ema_loss, bits_per_byte or accuracy. It falls as a model gets
better if it ends as one of FALLING does (of loss/SOURCE, the part before the slash counts); any other rises.
"""

import math

FALLING = ("loss", "perplexity", "bits_per_byte", "error", "mse", "mae")


def falls(metric: str) -> bool:
    """Whether a lower value is better."""
    return metric.partition("/")[0].endswith(FALLING)


def cost(metric: str, value: float) -> float:
    """Lower is better, whichever way the metric goes; what is not finite is the worst."""
    value = float(value)  # "nan" is logged as text
    return math.inf if not math.isfinite(value) else value if falls(metric) else -value


def best_step(metric: str, values: dict[int, float]) -> int:
    """Of {step: value} the step of the best value; of equal ones the first."""
    return min(values, key=lambda step: (cost(metric, values[step]), step))


def since_improvement(metric: str, values: dict[int, float], least_change: float) -> tuple[int, int]:
    """(evaluations since the metric improved by more than least_change, the step at which it did) of {step: value}."""
    steps = sorted(values)
    best, waited = steps[0], 0
    for step in steps[1:]:
        gain = cost(metric, values[best]) - cost(metric, values[step])
        best, waited = (step, 0) if gain > least_change else (best, waited + 1)
    return waited, best
