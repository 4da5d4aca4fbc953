"""What a run does when training goes wrong: when it gives up, and how it goes back, past the text it went wrong on.

    first bad step b, last bad step e    a loss, gradient or parameter that is not finite (b = e), or
                                         train.max_skips updates left out in a row (skipping.py)
    rollback                             the newest checkpoint of c <= b steps is taken, and the rows that steps c to
                                         e + train.rollback_margin read are left out: step c goes on with those after

Steps, learning rates and random keys stay as they are; only what text a step reads moves on. PaLM (Chowdhery et al.
2022, section 5.1) did so by hand: from a checkpoint some 100 steps before a spike, past 200 to 500 batches, after which
the spikes did not come back; the same text did no harm from another checkpoint.

All follows from the checkpoint, the config and the numbers of the steps, which are the same in every process and every
time. So what is left out need not be written when it is decided: a run killed after a rollback goes on from the older
checkpoint, goes wrong in the same way and decides the same. Later checkpoints carry it in their manifest. Needs no JAX.
"""

import dataclasses

from gptjax import schedule


class Diverged(Exception):
    """step: steps taken, with the bad one. first_bad: index of the first bad step."""

    def __init__(self, step: int, why: str, first_bad: int | None = None):
        self.step, self.why = step, why
        self.first_bad = step - 1 if first_bad is None else first_bad
        super().__init__(f"{why} at step {step}: stopped")


class NoWayBack(Exception):
    """A run that has checkpoints, but none from before it went wrong."""


@dataclasses.dataclass(frozen=True)
class Rewinds:
    """How often a run went back, and the rows of text it left out: windows of (step that goes on behind them, rows)."""

    count: int = 0
    windows: tuple[tuple[int, int], ...] = ()

    def first_row(self, config, step: int) -> int:
        """The first row of text that a step reads."""
        return schedule.rows_before(config, step) + sum(rows for first, rows in self.windows if first <= step)

    def read_before(self, config, step: int) -> list[tuple[int, int]]:
        """(first, stop) of all rows that the steps before this one have read."""
        edges = [0, *(first for first, _ in self.windows if 0 < first < step), step]
        pairs = [(self.first_row(config, a), schedule.rows_before(config, b) - schedule.rows_before(config, a))
                 for a, b in zip(edges, edges[1:])]  # fmt: skip
        return [(first, first + rows) for first, rows in pairs]

    def said(self, config, step: int, error: Diverged) -> str:
        """Of the last rollback, for people."""
        return (
            f"gptjax: {error.why} at step {error.step}: rollback {self.count} of {config.train.max_rollbacks}, to step"
            f" {step}; the {self.windows[-1][1]:,} rows of text from there on are left out"
        )

    def as_dict(self) -> dict:
        """For a manifest, or the log; nothing for a run that never went back."""
        return {"rollbacks": self.count, "skipped_rows": [list(w) for w in self.windows]} if self.count else {}

    @classmethod
    def from_dict(cls, data: dict) -> "Rewinds":
        return cls(data.get("rollbacks", 0), tuple((step, rows) for step, rows in data.get("skipped_rows", ())))


NO_REWINDS = Rewinds()


def rewound(config, now: Rewinds, known: Rewinds, step: int, error: Diverged) -> Rewinds:
    """After a rollback to the checkpoint of `step`, which knows of `known`, from a run that is at `now`."""
    past = now.first_row(config, error.step + config.train.rollback_margin)
    return Rewinds(now.count + 1, (*known.windows, (step, past - known.first_row(config, step))))


def advice(config, rewinds: Rewinds) -> str:
    """What may help a run that has diverged."""
    tried = (
        f" after {rewinds.count} of train.max_rollbacks={config.train.max_rollbacks} rollbacks" if rewinds.count else ""
    )
    others = []
    if config.optim.skip == "none":
        others.append("leave such updates out with optim.skip='nonfinite' or 'outliers'")
    if not config.train.max_rollbacks:
        others.append("go back past the text that did it with train.max_rollbacks=3")
    return f"{tried}. Try a lower optim.peak_lr or a longer warmup" + "".join(f"; or {other}" for other in others) + "."
