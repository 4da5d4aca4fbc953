"""`gptjax study fit`, as numbers: from gathered points to all that a report shows.

    {"conventions", "notes", "points", "points_excluded", METHOD: {...} for each, "seed_noise", "learning_rate",
     "critical_batch", "loss_to_loss", "prediction", "verdict", "families": {name: the same of each other family}}

METHOD holds the constants by name, interval80, interval95, optima, holdout_error, sensitivity, refused, points_used and
points_excluded; see methods.py and checks.py.
"""

import dataclasses
import typing

import numpy as np

from gptjax.errors import UserError, choose
from gptjax.study import checks, methods
from gptjax.study.fits.envelope import Curve
from gptjax.study.fits.points import Gathered
from gptjax.study.results import critical_batch, learning_rates, loss_to_loss, prediction
from gptjax.study.results.verdict import verdict

DEFAULT_PARAMS = ("total", "given")
DEFAULT_FLOPS = ("exact", "given")
UNEVEN = 1.1  # times that C / (N D) may differ between sizes before it is said


@dataclasses.dataclass(frozen=True)
class Request:
    options: methods.Options = methods.Options()
    params: str | None = None  # convention of N; None: all parameters, or what a CSV gives
    flops: str | None = None  # of C; None: exact ones, or what a CSV gives
    family: str | None = None  # None: the one with the most points


def results(gathered: Gathered, request: Request, say: typing.Callable[[str], None] = lambda line: None) -> dict:
    """Raises UserError: there are no points, or not those asked for. say: takes a line on what is being done."""
    if not gathered.rows:
        reasons = "; ".join(f"{one['run']}: {one['reason']}" for one in gathered.excluded[:3])
        raise UserError(f"there is no point to fit{f' ({reasons})' if reasons else ''}; let some runs finish first.")
    family = request.family or gathered.families[0]
    choose(dict.fromkeys(gathered.families), family, "--family")
    for name in gathered.families:
        rows, whose = gathered.of(name).rows, f" of family {name}" if len(gathered.families) > 1 else ""
        if not any(row.weight > 0 for row in rows):
            raise UserError(f"the weight of all {len(rows)} points{whose} is 0; give those that count one above 0.")
    found = {name: _of_family(gathered.of(name), name, request, say) for name in gathered.families}
    common = {name: gathered.others[name] for name in ("study", "directory") if name in gathered.others}
    others = {name: one for name, one in found.items() if name != family}
    return common | found[family] | ({"families": others} if others else {})


def _of_family(gathered: Gathered, family: str, request: Request, say) -> dict:
    params = request.params or _default(gathered.rows[0].params, DEFAULT_PARAMS)
    flops = request.flops or _default(gathered.rows[0].flops, DEFAULT_FLOPS)
    points = gathered.points(params, flops)
    tuned = [one for one in gathered.others.get("tune", ()) if one["family"] == family]
    found = {
        "family": family,
        "conventions": {
            "params": params,
            "flops": flops,
            "flops_per_param_token": methods.flops_per_param_token(points),
        },
        "notes": gathered.notes + _split_note(points),
        "points": [row.shown(params, flops) for row in gathered.rows],
        "points_excluded": gathered.excluded,
    }
    found["curves"] = gathered.curves(params, flops) or None
    for name in (name for name in request.options.methods if name in methods.METHODS):
        say(f"{family}: fitting {name}, {request.options.replicates} replicates")
        section = methods.section(name, points, request.options)
        say(f"{family}: checking {name}")
        section |= checks.holdout(name, points, request.options)
        section["sensitivity"] = checks.sensitivity(name, gathered, params, flops, request.options)
        section |= checks.seeds_beside_parabolas(section, gathered.rows, points) if name == "isoflop" else {}
        found[name] = section | {"points_excluded": gathered.excluded + methods.left_out(name, section, points)}
    if "envelope" in request.options.methods and found["curves"]:
        found["envelope"] = _envelope(found["curves"], gathered.excluded, request.options)
    found["seed_noise"] = checks.seed_noise(gathered.rows)
    found["learning_rate"] = learning_rates.curves(tuned)
    found["critical_batch"] = critical_batch.of_runs(gathered.rows, params)
    found["loss_to_loss"] = loss_to_loss.between_sources(gathered.rows)
    found["prediction"] = prediction.outcomes(gathered, family)
    return found | {"verdict": verdict(found)}


def _split_note(points) -> list[str]:
    """That the best split of a budget is approximate, where a token of a parameter costs what the size makes of it."""
    ratio = points.flops / (points.params * points.tokens)
    if ratio.max() < UNEVEN * ratio.min():
        return []
    mean = methods.flops_per_param_token(points)
    span = f"{ratio.min():.3g} to {ratio.max():.3g}"
    return [f"C / (N D) is {span} over these points; best splits take its geometric mean, {mean:.3g}, for all sizes"]


def _envelope(curves: list[dict], excluded: list[dict], options: methods.Options) -> dict:
    arrays = [
        Curve(one["run"], one["params"], *(np.array(one[name]) for name in ("flops", "tokens", "loss")))
        for one in curves
    ]
    beside = {"holdout_error": None, "holdout": {"refused": ["not of curves"]}, "sensitivity": []}
    return methods.envelope_section(arrays, options) | beside | {"points_excluded": excluded}


def _default(known: dict, wanted: tuple[str, ...]) -> str:
    return next((name for name in wanted if name in known), next(iter(known)))
