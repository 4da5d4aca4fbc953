"""`gptjax study fit DIR|points.csv`: how fits are asked for, and their numbers as a table or JSON. What they are: fit.py."""

import json
import math
import pathlib
import sys
import time

from gptjax.errors import UserError, choose
from gptjax.pages import numbers
from gptjax.study.methods.catalogue import METHODS
from gptjax.study.results import reasons
from gptjax.terminal import Progress, columns, finite


def add_flags(parser) -> None:
    parser.add_argument(
        "points",
        metavar="DIR|CSV",
        help="the --out folder of a study, or a CSV file with the columns params,tokens,flops,loss[,...]",
    )
    parser.add_argument(
        "--columns",
        metavar="NAME=COLUMN,...",
        help="names of the columns of a CSV file: params=parameter_count,tokens=tokens_B*1e9,loss=eval/loss; all but params, loss"
        " and tokens or flops may be left out",
    )
    parser.add_argument("--method", default="all", metavar="NAME", help=f"{' | '.join(METHODS)} | all")
    parser.add_argument(
        "--family", metavar="NAME", help="the architecture to fit, of a study with several (default: the largest)"
    )
    parser.add_argument("--params", metavar="NAME", help="how N is counted: total | non_embedding | matmul")
    parser.add_argument("--flops", metavar="NAME", help="how C is counted: exact | 6n | 6n_attn_full | 6n_attn_causal")
    parser.add_argument(
        "--holdout",
        type=float,
        metavar="C",
        help="hold out the points from C FLOPs on, and predict them; below 1: this share of the points, the largest (default: the top budget)",
    )
    parser.add_argument(
        "--window",
        default="auto",
        metavar="auto|all|X",
        help="isoFLOP: fit parabolas to points within a factor of X of the optimum (default: chosen from the points)",
    )
    parser.add_argument("--budgets", metavar="C,C", help="also give the best N and D for these FLOPs")
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="bootstrap replicates for the intervals (default: %(default)s)",
    )
    parser.add_argument(
        "--delta", type=float, default=1e-3, metavar="X", help="delta of the Huber loss of ln L (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of starts and replicates (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--report", metavar="DIR", help="also write a report here: a page, the same in Markdown, and pictures"
    )


def run(args) -> int:
    request = _request(args)
    columns = _columns(args)
    from gptjax.study import report
    from gptjax.study.results import fit

    if args.report is not None:
        report.check(args.report)
    progress = Progress()
    results = fit.results(_gathered(args.points, columns), request, progress.update)
    results = finite(_plain(results | _provenance(results)))
    if args.report is not None:
        report.write(results, args.report)
        progress.message(f"report in {args.report}: report.html, report.md, results.json, pictures/")
    print(json.dumps(results, indent=2) if args.json else table(results))
    return 0


def _request(args):
    """Raises UserError: a value that cannot be."""
    if args.bootstrap < 2:
        raise UserError(
            f"--bootstrap={args.bootstrap} is too small for an interval; use at least 2, and 1000 for a paper."
        )
    for name in ("holdout", "delta"):
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"--{name}={value:g} must be positive.")
    if args.seed < 0:
        raise UserError(f"--seed={args.seed} is below 0; use a whole number from 0 on.")
    if args.method != "all":
        choose(dict.fromkeys((*METHODS, "all")), args.method, "--method")
    budgets, window = _budgets(args.budgets), _window(args.window)

    from gptjax.study.methods import catalogue
    from gptjax.study.methods.method import Options
    from gptjax.study.results import fit

    chosen = catalogue.by_default() if args.method == "all" else (args.method,)
    options = Options(chosen, budgets, args.bootstrap, args.delta, seed=args.seed, window=window, holdout=args.holdout)
    return fit.Request(options, args.params, args.flops, args.family)


def _budgets(text: str | None) -> tuple[float, ...]:
    if text is None:
        return ()
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise UserError(
            f"--budgets={text} is not a list of FLOPs; expected for example --budgets=1e21,1e22."
        ) from error
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise UserError(f"--budgets={text}: every budget must be positive.")
    return values


def _window(text: str) -> float | None:
    """None: the points choose; inf: all of them."""
    if text in ("auto", "all"):
        return None if text == "auto" else math.inf
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 1:
        raise UserError(f"--window={text} is not a window; use auto, all, or a factor above 1 such as 4.")
    return value


def _columns(args):
    from gptjax.study.results import columns as csv_columns

    if args.columns is not None and not _is_table(args.points):
        raise UserError(
            f"--columns={args.columns} names columns of a CSV file, but {args.points} is not one; leave it out."
        )
    return csv_columns.parse(args.columns)


def _is_table(path: str) -> bool:
    return path.endswith(".csv") or pathlib.Path(path).is_file()


def _gathered(path: str, columns):
    if _is_table(path):
        from gptjax.study.results import csv_points

        return csv_points.read(path, columns)
    from gptjax.study.results import study_points

    return study_points.read(path)


def _provenance(results: dict) -> dict:
    from gptjax.rundir import run_directory

    made = run_directory.code_and_packages()
    revision = (made["git"] or {}).get("revision")
    return {
        "command": " ".join(["gptjax", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "code": revision and f"git {revision[:12]}{' and changes' if made['git']['changed_files'] else ''}",
        "versions": {name: version for name, version in made["packages"].items() if version},
    }


def _plain(value):
    """As JSON has it: no NumPy, no tuples."""
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value.item() if hasattr(value, "item") else value


# ---- for people


def table(results: dict) -> str:
    """The verdict first, then every law with its intervals, then what was left out."""
    parts = [*_head(results), *(line for name in METHODS if name in results for line in _law(name, results[name]))]
    parts += _beside(results)
    for family, other in (results.get("families") or {}).items():
        parts += ["", f"== {family}", table(other)]
    return "\n".join(parts)


def _head(results: dict) -> list[str]:
    conventions = results["conventions"]
    lines = [results["verdict"]["text"], *(f"  but: {reason}" for reason in results["verdict"]["reasons"])]
    lines += [
        f"{len(results['points'])} points, {len(results['points_excluded'])} left out;"
        f" N counts {conventions['params']}, C counts {conventions['flops']}"
        f" (C = {conventions['flops_per_param_token']:.3f} N D)",
    ]
    return lines + [f"note: {note}" for note in results["notes"]]


def _law(name: str, fit: dict) -> list[str]:
    lines = ["", f"{name}: {fit['points_used']} points" + ("" if not fit["refused"] else ", REFUSED a headline")]
    lines += [f"  refused: {reason}" for reason in fit["refused"]]
    eighty, ninety_five = fit["interval80"], fit["interval95"]
    rows = [
        (
            name,
            numbers.constant(name, fit[name], ninety_five[name]),
            numbers.constant_bounds(name, eighty[name], fit[name], ninety_five[name]),
            numbers.constant_bounds(name, ninety_five[name], fit[name]),
        )
        for name in ninety_five
    ]
    lines += _aligned([("", "value", "80%", "95%"), *rows])
    standing = [one for one in fit["optima"] if not one.get("refused")]
    best = [
        (
            f"C={numbers.flops(one['flops'])}",
            *(numbers.count(one["law"][key]) for key in ("params", "tokens")),
            numbers.loss(one["law"]["loss"]),
            numbers.count_bounds(one["interval95"]["params"]),
            numbers.bounds(one["interval95"]["loss"]),
        )
        for one in standing
    ]
    lines += _aligned([("best split", "N*", "D*", "L*", "N* 95%", "L* 95%"), *best])
    lines += _parabolas(fit)
    refused = [one for one in fit["optima"] if one.get("refused")]
    lines += [
        f"  no vertex at {group.shown('C=')}"
        for group in reasons.grouped([(numbers.flops(one["flops"]), one["refused"]) for one in refused])
    ]
    lines.append(f"  held-out error: {_held(fit)}")
    if fit.get("residual") is not None:
        lines.append(f"  residual: {fit['residual']:.3%} of the loss (standard deviation)")
    return lines + [f"  {_changed(one)}" for one in fit["sensitivity"]]


def _parabolas(fit: dict) -> list[str]:
    """Of isoFLOPs: which points each goes through, and what it leaves beside what seeds differ by."""
    drawn = [one for one in fit["optima"] if one.get("window") and not one.get("refused")]
    if not drawn:
        return []
    rows = [
        (
            f"C={numbers.flops(one['flops'])}",
            " to ".join(map(numbers.count, one["window"])),
            f"{one['n_points']} of {one['n_points'] + one['n_outside']}",
        )
        + (
            numbers.plain(one["residual"], 2),
            numbers.plain(one.get("seed_deviation"), 2),
            "widened to 5 sizes" if one["widened"] else "",
        )
        for one in drawn
    ]
    return [
        f"  window: {numbers.window(fit)}",
        *_aligned([("parabola", "N", "points", "left, nats", "seeds", ""), *rows]),
    ]


def _held(fit: dict) -> str:
    held = fit["holdout"]
    if fit["holdout_error"] is None:
        return "none: " + "; ".join(held["refused"])
    what = f"{len(held['points'])} from {numbers.flops(held['above_flops'])} FLOPs on by {held['points_fitted']} points below"
    return f"{fit['holdout_error']:.3%} ({what}{''.join(f'; {reason}' for reason in held['refused'])})"


def _changed(one: dict) -> str:
    exponent = "" if one.get("a") is None else f" a={one['a']:.3f}"
    refused = f" refused: {one['refused'][0]}" if one["refused"] else ""
    return f"with {one['change']} ({one['points_used']} points):{exponent}{refused}"


def _beside(results: dict) -> list[str]:
    lines = [""]
    if noise := results.get("seed_noise"):
        lines.append(
            f"between seeds: {noise['standard_deviation']:.2g} nats per token ({noise['relative']:.2%}),"
            f" {noise['runs']} runs in {noise['groups']} groups"
        )
    for one in (results.get("learning_rate") or {}).get("sizes", ()):
        best = "all diverged" if one["best"] is None else f"{one['best']:g}"
        edge = ", at the edge of what was tried" if one["at_edge"] else ""
        lines.append(f"learning rate of {one['size']}: {best}{edge}; sensitivity {numbers.plain(one['sensitivity'])}")
    lines += [*_critical_batch(results.get("critical_batch")), *_loss_to_loss(results.get("loss_to_loss"))]
    for one in results.get("prediction") or ():
        came = one["left_out"] or "not there" if one["outcome"] is None else f"measured {one['outcome']:.4f}"
        lines.append(f"{one['run']}: predicted {one['loss']:.4f}, 95% {numbers.bounds(one['interval95'])}; {came}")
    excluded = [(one["run"], one["reason"]) for one in results["points_excluded"]]
    return lines + [f"left out: {group.shown()}" for group in reasons.grouped(excluded)]


def _critical_batch(found: dict | None) -> list[str]:
    if found is None:
        return []
    lines = [
        f"critical batch of {one['run']}: {one['refused'] or numbers.count(one['noise_scale']) + ' ' + found['unit']}"
        for one in found["points"]
    ]
    law = found["law"]
    if law["refused"]:
        return [*lines, f"critical batch: no law: {'; '.join(law['refused'])}"]
    error = f"{law['exponent']:.3g} +- {law['standard_error']:.2g}"
    return [*lines, f"critical batch: {law['scale']:.3g} L^-({error}) {found['unit']}"]


def _loss_to_loss(found: dict | None) -> list[str]:
    if found is None:
        return []
    x, y = (f"L({found[axis]})" for axis in "xy")
    floors = [
        f" - {found['floor_x']:.4g}" if found["floor_x"] else "",
        f"{found['floor_y']:.4g} + " if found["floor_y"] else "",
    ]
    law = f"{floors[1]}{found['scale']:.4g} ({x}{floors[0]})^{found['exponent']:.4g}"
    return [f"{y} = {law}, {len(found['points'])} runs, {found['rms']:.2%} left"]


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Below their header; [] where there is nothing below it."""
    return [f"  {line}".rstrip() for line in columns(rows)] if len(rows) > 1 else []
