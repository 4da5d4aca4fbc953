"""What the grid says of larger runs before they start, written once, and what came of them."""

import time

from gptjax.errors import UserError
from gptjax.study.fits import bootstrap, parametric
from gptjax.study.methods.parametric import prediction_intervals, residual_spread
from gptjax.study.results import study_points
from gptjax.study.running import ledger
from gptjax.study.running.layout import StudyDirectory, read_json, write_json

REPLICATES = 1000


def write(directory: StudyDirectory) -> dict:
    """Predicts the runs of the stage "target" by the parametric law through the grid, into prediction.json. One that is
    there stays as it is: a prediction is made before what it predicts.

    Raises UserError: the grid has no law.
    """
    if directory.prediction.exists():
        return read_json(directory.prediction)
    gathered = study_points.read(str(directory.path))
    targets = [entry for entry in ledger.read(directory).entries if entry.stage == "target"]
    families = {entry.factors["family"] for entry in targets}
    laws = {family: _law(gathered.of(family), family) for family in families}
    runs = [_predicted(entry, *laws[entry.factors["family"]]) for entry in targets]
    told = {"made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "params": "total", "method": "parametric"}
    told |= {"points": len(gathered.rows), "law": {name: found.fit.constants for name, (found, _) in laws.items()}}
    told["runs"] = runs
    write_json(directory.prediction, told)
    return told


def _law(gathered, family: str):
    """(the law of a family with its replicates, standard deviation of what it leaves of ln L)."""
    if not gathered.rows:
        raise UserError(f"no {family} run of the grid is finished, so the larger runs cannot be predicted yet.")
    points = gathered.points("total", "exact")
    found = bootstrap.intervals(parametric.fit, points, replicates=REPLICATES)
    if not len(found.samples["E"]):
        reasons = "; ".join([*found.fit.refused, *found.refused])
        raise UserError(f"the {family} runs of the grid have no law for a prediction: {reasons}.")
    return found, residual_spread(found.fit, points)


def _predicted(entry, found: bootstrap.Intervals, spread: float) -> dict:
    """Intervals of a run to come: the law's, and what runs scatter about it."""
    params, tokens = float(entry.params["total"]), float(entry.tokens)
    return {
        "run": entry.name,
        "key": entry.key,
        "family": entry.factors["family"],
        "params": params,
        "tokens": tokens,
        "flops": entry.flops,
        "loss": float(found.fit.loss(params, tokens)),
        **prediction_intervals(found.samples, params, tokens, spread),
        "spread": spread,
        "refused": list(dict.fromkeys([*found.fit.refused, *found.refused])),
    }


def outcomes(gathered, family: str) -> list[dict]:
    """Of prediction.json, each run of a family with its measured loss as "outcome", or None and why under "left_out"."""
    told = gathered.others.get("prediction") or {}
    measured = {row.run: row.loss for row in gathered.others.get("targets", ())}
    reasons = gathered.others.get("targets_left_out", {})
    return [
        run | {"outcome": measured.get(run["run"]), "left_out": reasons.get(run["run"])}
        for run in told.get("runs", ())
        if run["family"] == family
    ]
