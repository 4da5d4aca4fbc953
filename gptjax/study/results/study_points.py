"""Points of the folder of a study: the held-out loss of every finished run of its grid, under every convention."""

import math

from gptjax import flops
from gptjax.config import config_file
from gptjax.errors import UserError
from gptjax.rundir import metrics, run_directory
from gptjax.storage import folder_kinds
from gptjax.study.fits.points import Gathered, Row, left_out, screened
from gptjax.study.results import critical_batch
from gptjax.study.running import ledger, status
from gptjax.study.running.layout import StudyDirectory, open_directory, read_json

FEWEST_EVALUATIONS = 4  # that make a curve

# Why a run that is not done is no point.
REASONS = {
    status.PLANNED: "unfinished: not started",
    status.WAITING: "unfinished: waits {reason}",
    status.RUNNING: "unfinished: running, at step {step} of {steps}",
    status.PARTIAL: "unfinished: stopped at step {step} of {steps}",
    status.FAILED: "failed: {reason}",
    status.DIVERGED: "diverged: {reason}",
}


def read(path: str) -> Gathered:
    """Raises UserError: no study was run there.

    others: "tune" [{family, size, params, tokens, learning_rate, loss, diverged, initial_loss}], "targets" [Row],
    "targets_left_out" {name: reason}, "prediction",
    "curves" [{run, tokens, loss}], "study" and "directory" by name.
    """
    directory = open_directory(path)
    book = ledger.read(directory)
    if book is None:
        raise UserError(
            f"{path} is not the folder of a study: it has no study.json, and is {folder_kinds.said(path)}; give the --out"
            " of gptjax study run."
        )
    known = status.read(directory, book)
    points, excluded = _points([run for run in known if run.entry.stage == "grid"], directory)
    kept, out_of_range = screened([row for row, _ in points], max((most for _, most in points), default=math.inf))
    kept, worse = _best_rates(kept)
    targets, open_targets = _points([run for run in known if run.entry.stage == "target"], directory)
    tuning = [run for run in known if run.entry.stage == "tune"]
    notes = [
        f"tuning run {run.entry.name} is not used for its learning-rate curve: {_reason(run)}"
        for run in tuning
        if run.loss is None
    ]
    others = {
        "tune": [_tuned(run, directory) for run in _of_learning_rates(known)],
        "targets": [row for row, _ in targets],
        "targets_left_out": {one["run"]: one["reason"] for one in open_targets},
        "prediction": read_json(directory.prediction),
        "curves": [curve for row, _ in points if (curve := _curve(row, directory))],
        "study": directory.path.name,
        "directory": str(directory.path),
    }
    return Gathered(kept, excluded + out_of_range + worse, notes, others)


def _best_rates(rows: list[Row]) -> tuple[list[Row], list[dict]]:
    """(of runs that differ in their learning rate alone the best one, the others with the reason)."""
    best: dict[tuple, Row] = {}
    for row in rows:
        setting = _setting(row)
        best[setting] = min(best.get(setting, row), row, key=lambda one: one.loss)
    worse = [row for row in rows if best[_setting(row)] is not row]
    reason = "another learning rate was better for the same run: {:g}"
    return list(best.values()), [
        left_out(row, reason.format(best[_setting(row)].facts["learning_rate"])) for row in worse
    ]


def _setting(row: Row) -> tuple:
    grid = sorted((name, str(value)) for name, value in row.facts.items() if "." in name and name != "optim.peak_lr")
    grid = [field for field in grid if not field[0].startswith("loss/")]
    return (row.family, row.facts["size"], row.tokens, row.seed, *grid)


def _points(known: list[status.RunStatus], directory: StudyDirectory) -> tuple[list[tuple[Row, float]], list[dict]]:
    """((row, the loss of guessing) of each run that is done, the others with the reason); a run that is declared twice once."""
    rows, excluded, seen = [], [], {}
    for run in known:
        if run.state != status.DONE:
            excluded.append(_named(run, _reason(run)))
        elif run.entry.key in seen:
            excluded.append(_named(run, f"duplicate: the same run as {seen[run.entry.key]}"))
        else:
            seen[run.entry.key] = run.entry.name
            rows.append(_row(run, directory))
    return rows, excluded


def _reason(run: status.RunStatus) -> str:
    facts = {"reason": run.reason or "no reason was left", "step": run.step, "steps": run.entry.steps}
    return REASONS[run.state].format(**facts)


def _named(run: status.RunStatus, reason: str) -> dict:
    entry = run.entry
    facts = {"run": entry.name, "reason": reason, "family": entry.factors["family"], "key": entry.key}
    return facts | {"params": (entry.params or {}).get("total"), "tokens": entry.tokens, "loss": None}


def _row(run: status.RunStatus, directory: StudyDirectory) -> tuple[Row, float]:
    entry = run.entry
    here = run_directory.open_run(str(directory.run(entry.key)))
    config = here.config()
    per_token = flops.flops_per_token(config.model)
    last = metrics.read_metrics(here.metrics, "eval")[-1]
    facts = {
        "key": entry.key,
        "size": entry.factors["size"],
        "budget": entry.factors.get("budget"),
        "architecture": config.model.architecture,
        "stage": entry.stage,
        "status": run.state,
        "steps": entry.steps,
        "batch_size": config.tokens_per_step,
        "learning_rate": config.optim.peak_lr,
        "standard_error": last.get("standard_error"),
    }
    facts |= {name: value for name, value in last.items() if name.startswith("loss/")}
    facts |= {name: value for name, value in entry.factors.items() if "." in name}  # fields that the grid varies
    if noise := critical_batch.at_the_end(here.path, entry.steps):
        facts["noise_scale"] = noise
    row = Row(
        run=entry.name,
        params={name: float(count) for name, count in flops.parameter_counts(config.model).items()},
        tokens=float(entry.tokens),
        flops={name: count * entry.tokens for name, count in per_token.items()},
        loss=run.loss,
        seed=entry.factors["seed"],
        family=entry.factors["family"],
        facts=facts,
    )
    return row, math.log(config.model.vocab_size)


def _curve(row: Row, directory: StudyDirectory) -> dict | None:
    """Held-out losses on the way of a run that was evaluated more than FEWEST_EVALUATIONS times."""
    here = run_directory.open_run(str(directory.run(row.facts["key"])))
    rows = [one for one in metrics.read_metrics(here.metrics, "eval") if "loss" in one]
    if len(rows) < FEWEST_EVALUATIONS:
        return None
    per_step = row.tokens / row.facts["steps"]
    return {"run": row.run, "tokens": [per_step * one["step"] for one in rows], "loss": [one["loss"] for one in rows]}


def _of_learning_rates(known: list[status.RunStatus]) -> list[status.RunStatus]:
    """Runs that have ended and differ in their learning rate: the tuning runs, or those of a grid of learning rates."""
    ended = [run for run in known if run.loss is not None]
    tuning = [run for run in ended if run.entry.stage == "tune"]
    if tuning:
        return tuning
    rates: dict[tuple, set] = {}
    for run in ended:
        rates.setdefault(_but_for_the_rate(run), set()).add(run.entry.factors["learning_rate"])
    return [run for run in ended if len(rates[_but_for_the_rate(run)]) > 1]


def _but_for_the_rate(run: status.RunStatus) -> tuple:
    factors = run.entry.factors.items()
    return tuple((name, str(value)) for name, value in factors if name not in ("learning_rate", "optim.peak_lr"))


def _tuned(run: status.RunStatus, directory: StudyDirectory) -> dict:
    """A run at one learning rate: a point of its size's curve."""
    factors = run.entry.factors
    config = config_file.load_config(str(directory.config(run.entry.key)))
    return {
        "family": factors["family"],
        "size": factors["size"],
        "params": float(flops.parameters(config.model).total),
        "tokens": float(run.entry.tokens),
        "learning_rate": factors["learning_rate"],
        "loss": run.loss if math.isfinite(run.loss) else None,
        "diverged": not math.isfinite(run.loss),
        "initial_loss": _initial_loss(run, directory, config),
    }


def _initial_loss(run: status.RunStatus, directory: StudyDirectory, config) -> float:
    """Of the first batch, before the first update; ln V where the run left none."""
    here = run_directory.open_run(str(directory.run(run.entry.key)))
    rows = metrics.read_metrics(here.metrics, "train") if here.metrics.exists() else []
    first = [row["loss"] for row in rows if row["step"] == 1 and isinstance(row.get("loss"), float)]
    return first[0] if first else math.log(config.model.vocab_size)
