"""How far the laws are to be believed: extrapolation, sensitivity, noise between seeds."""

from gptjax.pages import numbers
from gptjax.pages.blocks import Block, Bullets, Figure, Paragraph, Section, Table, folded
from gptjax.study.methods import catalogue
from gptjax.study.results import reasons

_CONSTANTS = ("E", "A", "B", "alpha", "beta", "a", "b")


def sections(results: dict, drawn: dict[str, str]) -> list[Section]:
    parts = [_holdout(results, drawn), _sensitivity(results, drawn), _seed_noise(results)]
    return [part for part in parts if part.blocks]


def _holdout(results: dict, drawn: dict[str, str]) -> Section:
    tried = {
        method.title: results[name]
        for name, method in catalogue.by_rank().items()
        if results.get(name) and (results[name].get("holdout_error") is not None or _refusals(results[name]))
    }
    rows = [
        [
            title,
            numbers.flops((fit.get("holdout") or {}).get("above_flops")),
            numbers.percent(fit.get("holdout_error")),
            "refused" if _refusals(fit) else numbers.NONE,
        ]
        for title, fit in tried.items()
    ]
    header = ["method", "fitted below C", "held-out error", "status"]
    caption = "Each law is fitted to the smaller budgets and predicts the loss of the larger ones"
    blocks: list[Block] = [Table(header, rows, caption, words=("status",)).without_empty(numbers.NONE)] if rows else []
    blocks += _why([(title, reason) for title, fit in tried.items() for reason in _refusals(fit)])
    points = ((results.get("parametric") or {}).get("holdout") or {}).get("points")
    blocks += [folded(_held(points), "Held-out points and predictions of the parametric law")] if points else []
    if "holdout" in drawn:
        blocks.append(Figure("holdout", drawn["holdout"]))
    return Section("Extrapolation", blocks)


def _refusals(fit: dict) -> list[str]:
    """Why the fit to the smaller budgets is refused."""
    return (fit.get("holdout") or {}).get("refused") or []


def _why(refused: list[tuple[str, str]], of: str = "") -> list[Block]:
    """The reasons of what was refused, (name, reason), a line for all that share one."""
    items = [group.shown() for group in reasons.grouped(refused)]
    return [Paragraph(f"{of}Why these fits are refused:"), Bullets(items)] if items else []


def _held(points: list[dict]) -> Table:
    header = ["run", "N", "D", "C (FLOPs)", "predicted", "80%", "95%", "measured", "error"]
    rows = [
        [
            one["run"],
            numbers.count(one.get("params")),
            numbers.count(one.get("tokens")),
            numbers.flops(one.get("flops")),
            numbers.loss(one.get("predicted")),
            numbers.bounds(one.get("interval80"), wide=one.get("interval95")),
            numbers.bounds(one.get("interval95")),
            numbers.loss(one["loss"]),
            f"{100 * (one['loss'] / one['predicted'] - 1):+.2f}%" if one.get("predicted") else numbers.NONE,
        ]
        for one in points
    ]
    return Table(header, rows, "Held-out points and predictions of the parametric law").without_empty(numbers.NONE)


def _sensitivity(results: dict, drawn: dict[str, str]) -> Section:
    blocks: list[Block] = []
    for name, method in catalogue.by_rank().items():
        fit = results.get(name) or {}
        if fit.get("sensitivity"):
            blocks += _changes(fit, method.title)
    if "sensitivity" in drawn:
        blocks.append(Figure("sensitivity", drawn["sensitivity"]))
    return Section("Sensitivity", blocks)


def _changes(fit: dict, title: str) -> list[Block]:
    """A row for each change that gives numbers, and below it why some do not stand: many share a reason. Why the fit itself
    was refused, its own section says."""
    changes = [{"change": "none: as fitted", **fit}, *fit["sensitivity"]]
    wide = fit.get("interval95") or {}
    rows = [_change(one, wide) for one in changes if any(one.get(name) is not None for name in _CONSTANTS)]
    header = ["change", "points", *_CONSTANTS, "status"]
    table = [Table(header, rows, title, words=("status",)).without_empty(numbers.NONE)] if rows else []
    refused = [(one["change"], reason) for one in fit["sensitivity"] for reason in _reasons(one)]
    return [*table, *_why(refused, f"{title}. ")]


def _reasons(one: dict) -> list[str]:
    refused = one.get("refused") or []
    return [refused] if isinstance(refused, str) else refused


def _change(one: dict, wide: dict) -> list[str]:
    return [
        one["change"],
        numbers.NONE if one.get("points_used") is None else str(one["points_used"]),
        *(numbers.constant(name, one.get(name), wide.get(name)) for name in _CONSTANTS),
        "refused" if _reasons(one) else numbers.NONE,
    ]


def _seed_noise(results: dict) -> Section:
    noise = results.get("seed_noise") or {}
    if noise.get("standard_deviation") is None:
        return Section("Noise between seeds", [])
    share = f" ({100 * noise['relative']:.2g}% of it)" if noise.get("relative") is not None else ""
    words = (
        f"The standard deviation of the loss between seeds is {noise['standard_deviation']:.2g} nats per token{share}."
    )
    if noise.get("groups"):
        words += f" It comes from {noise['runs']} runs in {noise['groups']} groups; runs of a group differ in their seed alone."
    return Section("Noise between seeds", [Paragraph(words)])
