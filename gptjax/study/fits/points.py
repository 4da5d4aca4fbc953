"""Finished runs as a fit sees them: numbers, whatever they came from, and the ones that are left out with the reason.

csv_points.py and study_points.py gather Rows; `Gathered.points` turns those of one family into Points under one
convention of N and one of C. What a fit should not see is listed, never dropped silently.
"""

import dataclasses
import math
import typing

import numpy as np

from gptjax.errors import choose

CONTRADICTION = 10.0  # times that C may differ from 6ND: beyond, one of the three numbers is wrong


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


@dataclasses.dataclass(frozen=True)
class Row:
    """The end of a run, or a point on its way, under every convention that is known."""

    run: str
    params: dict[str, float]  # by convention of N
    tokens: float
    flops: dict[str, float]  # by convention of C
    loss: float
    weight: float = 1.0
    seed: int = 0
    family: str = "gpt"
    named: bool = True  # whether the run has a name of its own; else a line's number stands for it
    facts: dict[str, typing.Any] = dataclasses.field(default_factory=dict)  # what else a report shows, as JSON

    def shown(self, params: str, flops: str) -> dict:
        """As JSON, flat: the numbers in use, and all others by the name of their convention."""
        numbers = {"run": self.run, "params": self.params[params], "tokens": self.tokens, "flops": self.flops[flops]}
        numbers |= {"loss": self.loss, "seed": self.seed, "weight": self.weight}
        if len(self.params) > 1:
            numbers |= {f"params_{name}": value for name, value in self.params.items()}
            numbers |= {f"flops_{name}": value for name, value in self.flops.items()}
        return self.facts | numbers


@dataclasses.dataclass(frozen=True)
class Gathered:
    """What a CSV file or the folder of a study holds."""

    rows: list[Row]
    excluded: list[dict]  # {"run", "reason", ...}
    notes: list[str]  # what was assumed
    others: dict[str, typing.Any] = dataclasses.field(default_factory=dict)  # beside points: see study_points.py

    @property
    def families(self) -> list[str]:
        """The one with the most points first."""
        names = [row.family for row in self.rows]
        return sorted(dict.fromkeys(names), key=lambda name: -names.count(name))

    def of(self, family: str) -> "Gathered":
        """Its rows, and what was left out of it; to the largest family also what was of families without a row."""
        others = [name for name in self.families if name != family]
        largest = self.families[:1] == [family]
        excluded = [
            one for one in self.excluded if one.get("family") == family or (largest and one.get("family") not in others)
        ]
        return dataclasses.replace(self, rows=[row for row in self.rows if row.family == family], excluded=excluded)

    def curves(self, params: str, flops: str) -> list[dict]:
        """{run, params, flops, tokens, loss}, lists, of each run whose losses on the way are known: by the folder of a
        study, or as several points of one run in a CSV file."""
        if "curves" in self.others:
            known = {row.run: row for row in self.rows}
            return [
                _of_curve(one, known[one["run"]], params, flops) for one in self.others["curves"] if one["run"] in known
            ]
        by_run = {}
        for row in self.rows:
            by_run.setdefault(row.run, []).append(row)
        return [
            {
                "run": run,
                "params": rows[0].params[params],
                "flops": [row.flops[flops] for row in rows],
                "tokens": [row.tokens for row in rows],
                "loss": [row.loss for row in rows],
            }
            for run, rows in by_run.items()
            if len(rows) > 1
        ]

    def points(self, params: str, flops: str) -> Points:
        """Raises UserError for a convention that the rows were not counted in."""
        rows = self.rows
        columns = {
            "params": [choose(row.params, params, "--params") for row in rows],
            "tokens": [row.tokens for row in rows],
            "flops": [choose(row.flops, flops, "--flops") for row in rows],
            "loss": [row.loss for row in rows],
            "weight": [row.weight for row in rows],
        }
        arrays = {name: np.array(values, np.float64) for name, values in columns.items()}
        return Points(**arrays, run=tuple(row.run for row in rows), seed=np.array([row.seed for row in rows], int))


def _of_curve(one: dict, row: Row, params: str, flops: str) -> dict:
    """one: {"run", "tokens", "loss"}; a token costs what it costs at the end of the run."""
    per_token = row.flops[flops] / row.tokens
    return one | {"params": row.params[params], "flops": [per_token * tokens for tokens in one["tokens"]]}


def screened(rows: list[Row], most_loss: float = math.inf) -> tuple[list[Row], list[dict]]:
    """(rows a fit may see, the others with the reason). most_loss: of a model that knows nothing."""
    kept, excluded, known = [], [], {}
    for row in rows:
        same = (row.run if row.named else None, row.seed, row.tokens, row.loss, *row.params.values())
        reason = f"duplicate: the same numbers as {known[same]}" if same in known else _unusable(row, most_loss)
        known.setdefault(same, "a point of it before" if row.named else row.run)
        if reason is None:
            kept.append(row)
        else:
            excluded.append(left_out(row, reason))
    return kept, excluded


def repeated(rows: list[Row]) -> list[str]:
    """A note for each run that has several losses at the same tokens."""
    losses = {}
    for row in rows:
        losses.setdefault((row.run, row.seed, row.tokens, *row.params.values()), []).append(row.loss)
    return [
        f"{len(found)} losses of run {run} at {tokens:.4g} tokens: all of them count, as repeated measurements of one run"
        for (run, _, tokens, *_), found in losses.items()
        if len(found) > 1
    ]


def left_out(row: Row, reason: str) -> dict:
    finite = {"tokens": row.tokens, "loss": row.loss, "params": next(iter(row.params.values()))}
    finite = {name: value if math.isfinite(value) else None for name, value in finite.items()}
    return {"run": row.run, "reason": reason, "family": row.family, **finite}


def _unusable(row: Row, most_loss: float) -> str | None:
    """Why a point cannot be one; None where it can."""
    numbers = {"params": min(row.params.values()), "tokens": row.tokens, "flops": min(row.flops.values())}
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            return f"out of range: {name} is {value:g}, a point needs a finite number above 0"
    if not math.isfinite(row.loss):
        return f"diverged: the loss is {row.loss:g}"
    if row.loss <= 0:
        return f"out of range: a loss of {row.loss:g} nats per token is not above 0"
    if row.loss > most_loss:
        return f"out of range: the loss {row.loss:.4g} is above {most_loss:.4g}, the loss of guessing uniformly"
    ratio = next(iter(row.flops.values())) / (6 * next(iter(row.params.values())) * row.tokens)
    if not 1 / CONTRADICTION < ratio < CONTRADICTION:
        return f"out of range: the FLOPs are {ratio:.3g} times 6 N D, so one of N, D and C is wrong"
    return None
