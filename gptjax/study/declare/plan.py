"""`gptjax study plan`: what the runs of a study are and cost, as plain numbers and as a table. Starts nothing.

Time and cost are those of `gptjax plan`: one compiled program for all runs that share it.
"""

import dataclasses
import json
import math
import typing

from gptjax import flops, schedule
from gptjax.errors import UserError
from gptjax.study.declare.declaration import STAGES, PlannedRun
from gptjax.terminal import columns, si


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a study may cost. None: any."""

    flops: float | None = None
    cost: float | None = None  # US dollars

    def __post_init__(self):
        for flag, limit in (("max_flops", self.flops), ("max_cost", self.cost)):
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise UserError(f"--{flag}={limit:g} must be positive.")

    def check(self, totals: dict) -> None:
        """Raises UserError: the runs of `totals` are more than that."""
        if self.flops is not None and totals["flops"] > self.flops:
            raise UserError(
                f"the study's runs are {totals['flops']:.4g} FLOPs, more than --max_flops={self.flops:g};"
                " declare fewer or smaller runs, or raise it."
            )
        if self.cost is not None and totals["cost_usd"] is None:
            raise UserError("--max_cost needs the price of a chip; give --topology and --price too.")
        if self.cost is not None and totals["cost_usd"] > self.cost:
            raise UserError(
                f"the study's runs cost {totals['cost_usd']:,.2f} dollars, more than --max_cost={self.cost:g};"
                " declare fewer or smaller runs, or raise it."
            )


def facts(run: PlannedRun) -> dict:
    """Sizes and lengths of a run, under every convention, as JSON."""
    config = run.outline
    first = run.branch.step if run.branch else 0
    tokens, steps = schedule.run_tokens(config), schedule.total_steps(config)
    own_tokens = tokens - schedule.tokens_before(config, first)
    per_token = flops.flops_per_token(config.model)
    return {
        "name": run.name,
        "stage": run.stage,
        "factors": run.factors,
        "branch": dataclasses.asdict(run.branch) if run.branch else None,
        "params": flops.parameter_counts(config.model),
        "tokens": tokens,
        "steps": steps,
        "batch_size": config.train.batch_size,
        "peak_lr": None if run.config is None else config.optim.peak_lr,
        "flops": {name: count * tokens for name, count in per_token.items()},
        "own_flops": per_token["exact"] * own_tokens,  # without what its trunk did
        "own_part": own_tokens / tokens,
    }


def plan(runs: list[PlannedRun], hours_of: typing.Callable | None = None, price: float | None = None) -> dict:
    """{"runs": [facts], "totals": {...}}. hours_of(config) -> (hours, chip-hours) of a whole run; None: not known.

    A run that is declared twice, as a tuning run and in the grid, is done once: the second one has own_flops 0.
    """
    rows, known = [], set()
    for run in runs:
        row = facts(run)
        same = json.dumps([run.config.to_dict(), row["branch"]]) if run.config else None
        if same in known:
            row |= {"own_flops": 0.0, "own_part": 0.0}
        known |= {same} - {None}
        rows.append(row | _cost(run, row["own_part"], hours_of, price))
    return {"runs": rows, "totals": totals(rows)}


def _cost(run: PlannedRun, own_part: float, hours_of, price: float | None) -> dict:
    hours, chip_hours = (None, None) if hours_of is None else hours_of(run.outline)
    if hours is None:
        return {"hours": None, "chip_hours": None, "cost_usd": None}
    own = own_part * chip_hours
    return {"hours": own_part * hours, "chip_hours": own, "cost_usd": None if price is None else own * price}


def totals(rows: list[dict]) -> dict:
    """Sums over runs, and the critical path: the longest chain of runs that wait for each other, whatever runs beside."""
    path = critical_path(rows)
    return {
        "runs": len(rows),
        "flops": sum(row["own_flops"] for row in rows),
        "tokens": sum(row["own_part"] * row["tokens"] for row in rows),
        "chip_hours": _sum(row["chip_hours"] for row in rows),
        "cost_usd": _sum(row["cost_usd"] for row in rows),
        "critical_path": [row["name"] for row in path],
        "critical_path_flops": sum(row["own_flops"] for row in path),
        "critical_path_hours": _sum(row["hours"] for row in path),
    }


def _sum(values) -> float | None:
    values = list(values)
    return None if None in values else sum(values)


def critical_path(rows: list[dict]) -> list[dict]:
    """The longest chain of runs that wait for each other, in FLOPs.

    A run of the grid whose rate is tuned waits for the tuning runs of its size (where there are none, of its family), a
    branch for its trunk, and a target for all others.
    """
    others = [chain(row, rows) for row in rows if row["stage"] in ("tune", "grid")]
    targets = [[row] for row in rows if row["stage"] == "target"]
    return _longest(others) + _longest(targets)


def chain(row: dict, rows: list[dict]) -> list[dict]:
    """What a run waits for, the first first, and itself."""
    trunks = [other for other in rows if row["branch"] and other["name"] == row["branch"]["trunk"]]
    if row["peak_lr"] is not None:
        return [*trunks, row]
    tuning = [r for r in rows if r["stage"] == "tune" and r["factors"]["family"] == row["factors"]["family"]]
    own = [other for other in tuning if other["factors"]["size"] == row["factors"]["size"]]
    return [*_longest([[other] for other in own or tuning]), *trunks, row]


def _longest(chains: list[list[dict]]) -> list[dict]:
    return max(chains, key=lambda rows: sum(row["own_flops"] for row in rows), default=[])


COLUMNS = ("run", "N", "non-emb.", "matmul", "D", "D/N", "steps", "batch", "lr", "FLOPs", "of 6ND")


def table(planned: dict) -> str:
    """plan() for a person: a line a run, then the sums."""
    rows = planned["runs"]
    timed = any(row["hours"] is not None for row in rows)
    priced = any(row["cost_usd"] is not None for row in rows)
    header = COLUMNS + (("chip-h",) if timed else ()) + (("USD",) if priced else ())
    lines = columns([header, *(_cells(row, timed, priced) for row in rows)], left=1)
    return "\n".join([*lines, "", *_sums(planned["totals"], rows)])


def _cells(row: dict, timed: bool, priced: bool) -> tuple[str, ...]:
    params, total = row["params"], row["params"]["total"]
    rate = "tuned" if row["peak_lr"] is None else f"{row['peak_lr']:.3g}"
    cells = (row["name"], si(total), si(params["non_embedding"]), si(params["matmul"]), si(row["tokens"]))
    cells += (f"{row['tokens'] / total:.3g}", f"{row['steps']:,}", f"{row['batch_size']:,}", rate)
    cells += (f"{row['own_flops']:.3g}", f"{row['flops']['exact'] / row['flops']['6n']:.3f}")
    cells += (f"{row['chip_hours']:.3g}",) if timed else ()
    return cells + ((f"{row['cost_usd']:.2f}",) if priced else ())


def _sums(totals: dict, rows: list[dict]) -> list[str]:
    stages = {stage: sum(row["stage"] == stage for row in rows) for stage in STAGES}
    counts = ", ".join(f"{count} {stage}" for stage, count in stages.items() if count)
    lines = [f"{totals['runs']} runs ({counts}), {totals['flops']:.4g} exact FLOPs, {si(totals['tokens'])} tokens"]
    if totals["chip_hours"] is not None:
        cost = "" if totals["cost_usd"] is None else f", {totals['cost_usd']:,.2f} dollars"
        lines.append(f"{totals['chip_hours']:.4g} chip-hours{cost}")
    path = f"{totals['critical_path_flops']:.4g} FLOPs"
    path += "" if totals["critical_path_hours"] is None else f", {totals['critical_path_hours']:.4g} hours"
    lines.append(f"critical path: {path}: {' -> '.join(totals['critical_path'])}")
    lines.append(
        "FLOPs are counted operation by operation, for a branch only those after its trunk; N counts all parameters, D all tokens."
    )
    return lines
