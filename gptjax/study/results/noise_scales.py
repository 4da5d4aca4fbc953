"""The gradient noise scale of a run, from what its steps logged (noise_scale.py), and what it says of the batch.

The two numbers of one step are worth little, noise_signal may be negative, and their ratio is biased: B_simple = tr S / |G|^2,
in tokens, is the ratio of their averages over steps. It is about the batch at which a run takes twice the fewest steps possible
and twice the fewest tokens: the critical batch (McCandlish et al. 2018, section 2). The gradients are those the optimizer gets,
before clipping: with dropout and z-loss, where the config has them. S is of a token as it comes in text, in rows of it:
neighbours that resemble each other make it larger.

Needs no JAX.
"""

import dataclasses
import math

import numpy as np
from etils import epath

from gptjax import terminal
from gptjax.errors import UserError
from gptjax.optim.noise_scale import SIGNAL, TRACE
from gptjax.rundir import metrics


@dataclasses.dataclass(frozen=True)
class NoiseScale:
    """Over a window of a run. Means are of the steps that were logged; tokens are those that a step trains on."""

    first: int  # step
    last: int
    n_steps: int
    signal: float  # mean noise_signal, |G|^2
    trace: float  # mean noise_trace, tr S, per token
    b_simple: float  # tokens; NaN where refused
    standard_error: float  # of b_simple, tokens
    tokens_per_step: float
    loss: float  # nats per token
    refused: str | None = None

    def as_dict(self) -> dict:
        """For JSON, where what is not a number is null."""
        return terminal.finite({"unit": "tokens", **dataclasses.asdict(self)})


def average(rows: list[dict]) -> NoiseScale:
    """Of the rows of a metrics.jsonl that have the two numbers. Raises UserError: there are none.

    The standard error is that of a ratio of means over independent steps (Cochran 1977, section 2.11). What is drawn of
    the text is independent from step to step; a drift of both means within the window cancels as far as their ratio holds.
    """
    rows = [row for row in rows if all(math.isfinite(float(row.get(name, "nan"))) for name in (SIGNAL, TRACE))]
    if not rows:
        raise UserError(
            f"no step has {SIGNAL} and {TRACE}; train with train.log_noise_scale=True and train.microbatches of at least 2."
        )
    signal_S, trace_S = (np.array([float(row[name]) for row in rows]) for name in (SIGNAL, TRACE))
    signal, trace, n = float(signal_S.mean()), float(trace_S.mean()), len(rows)
    refused, b_simple, error = _doubt(signal_S), math.nan, math.nan
    if refused is None:
        b_simple = trace / signal
        error = math.sqrt(np.square(trace_S - b_simple * signal_S).sum() / (n * (n - 1))) / signal
    steps = [row["step"] for row in rows]
    loss = float(np.mean([row["loss"] for row in rows]))
    return NoiseScale(
        min(steps), max(steps), n, signal, trace, b_simple, error, _tokens_per_step(rows), loss, refused
    )  # fmt: skip


def _doubt(signal_S) -> str | None:
    """Why a ratio with such a denominator says nothing."""
    n = len(signal_S)
    if n < 2:
        return f"{n} step has no standard error; log more (train.log_every)"
    mean, error = signal_S.mean(), signal_S.std(ddof=1) / math.sqrt(n)
    if mean <= 2 * error:
        return f"the gradient cannot be distinguished from its noise: |G|^2 is {mean:.3g} +- {error:.2g}; average over more steps"
    return None


def _tokens_per_step(rows: list[dict]) -> float:
    taken = {row["step"]: row["tokens"] for row in rows}
    first, last = min(taken), max(taken)
    return taken[last] / last if first == last else (taken[last] - taken[first]) / (last - first)


def of_run(workdir, first: int = 1, last: int | None = None) -> NoiseScale:
    """Over the steps `first` to `last` of the run in a directory, those taken over from a trunk among them.

    Raises UserError: none of them logged it.
    """
    return average(logged(workdir, first, last))


def windows(workdir, count: int = 10) -> list[NoiseScale]:
    """Over `count` parts of the run in a directory with equally many logged steps each.

    Raises UserError: no step logged it.
    """
    rows = logged(workdir)
    parts = np.array_split(np.arange(len(rows)), min(count, max(len(rows) // 2, 1)))
    return [average([rows[i] for i in part]) for part in parts]


def logged(workdir, first: int = 1, last: int | None = None) -> list[dict]:
    """Rows of the run in a directory that have the two numbers, of these steps."""
    file = epath.Path(workdir) / "metrics.jsonl"
    rows = metrics.read_metrics(file, "train") if file.exists() else []
    return [row for row in rows if SIGNAL in row and first <= row["step"] <= (last or math.inf)]


def cost(batch_tokens: float, b_simple: float) -> tuple[float, float]:
    """(steps over the fewest possible, tokens over the fewest possible) of training with a batch of so many tokens.

    McCandlish et al. 2018, section 2: 1 + B/b steps and 1 + b/B tokens, taking one noise scale B for the whole run; both
    are 2 at the critical batch, b = B.
    """
    return 1 + b_simple / batch_tokens, 1 + batch_tokens / b_simple
