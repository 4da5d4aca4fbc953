"""`gptjax study fit`, as numbers: from gathered points to all that a report shows.

    {"conventions", "notes", "points", "points_excluded", METHOD: {...} for each, "seed_noise", "learning_rate",
     "critical_batch", "loss_to_loss", "prediction", "verdict", "families": {name: the same of each other family}}

METHOD holds the constants by name, interval80, interval95, optima, holdout_error, sensitivity, refused, points_used and
points_excluded; see methods/section.py and methods/checks.py.
"""

import dataclasses
import typing

from gptjax.errors import UserError, choose
from gptjax.study.fits.points import Gathered
from gptjax.study.methods import catalogue, checks, section
from gptjax.study.methods.method import Case, Options
from gptjax.study.results import critical_batch, learning_rates, loss_to_loss, prediction
from gptjax.study.results.verdict import verdict

DEFAULT_PARAMS = ("total", "given")
DEFAULT_FLOPS = ("exact", "given")
UNEVEN = 1.1  # times that C / (N D) may differ between sizes before it is said


@dataclasses.dataclass(frozen=True)
class Request:
    options: Options = dataclasses.field(default_factory=Options)
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
            raise UserError(
                f"the weight of all {len(rows)} points{whose} is 0; give the points that count a weight above 0."
            )
    found = {name: _of_family(gathered.of(name), name, request, say) for name in gathered.families}
    common = {name: gathered.others[name] for name in ("study", "directory") if name in gathered.others}
    others = {name: one for name, one in found.items() if name != family}
    return common | found[family] | ({"families": others} if others else {})


def _of_family(gathered: Gathered, family: str, request: Request, say) -> dict:
    params = request.params or _default(gathered.rows[0].params, DEFAULT_PARAMS)
    flops = request.flops or _default(gathered.rows[0].flops, DEFAULT_FLOPS)
    case = Case(gathered, params, flops, request.options)
    found = {
        "family": family,
        "conventions": {
            "params": params,
            "flops": flops,
            "flops_per_param_token": section.flops_per_param_token(case.points),
        },
        "notes": gathered.notes + _split_note(case.points),
        "points": [row.shown(params, flops) for row in gathered.rows],
        "points_excluded": gathered.excluded,
        "curves": case.curves or None,
    }
    for name in request.options.methods:
        reported = catalogue.of(name).reported(case, lambda doing: say(f"{family}: {doing}"))
        found |= {} if reported is None else {name: reported}
    tuned = [one for one in gathered.others.get("tune", ()) if one["family"] == family]
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
    mean = section.flops_per_param_token(points)
    span = f"{ratio.min():.3g} to {ratio.max():.3g}"
    return [f"C / (N D) is {span} over these points; best splits take its geometric mean, {mean:.3g}, for all sizes"]


def _default(known: dict, wanted: tuple[str, ...]) -> str:
    return next((name for name in wanted if name in known), next(iter(known)))
