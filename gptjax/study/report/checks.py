"""How far the laws are to be believed: extrapolation, sensitivity, noise between seeds."""

from gptjax.pages import numbers
from gptjax.pages.blocks import Block, Figure, Paragraph, Section, Table
from gptjax.study.methods import catalogue

_CONSTANTS = ("E", "A", "B", "alpha", "beta", "a", "b")


def sections(results: dict, drawn: dict[str, str]) -> list[Section]:
    parts = [_holdout(results, drawn), _sensitivity(results, drawn), _seed_noise(results)]
    return [part for part in parts if part.blocks]


def _holdout(results: dict, drawn: dict[str, str]) -> Section:
    blocks: list[Block] = []
    for name, method in catalogue.by_rank().items():
        fit = results.get(name) or {}
        held = fit.get("holdout") or {}
        if fit.get("holdout_error") is not None or held.get("refused"):
            blocks.append(Paragraph(f"{method.title}: {_error(fit, held)}"))
    points = ((results.get("parametric") or {}).get("holdout") or {}).get("points")
    blocks += [_held(points)] if points else []
    if "holdout" in drawn:
        blocks.append(Figure("holdout", drawn["holdout"]))
    return Section("Extrapolation", blocks)


def _error(fit: dict, held: dict) -> str:
    if fit.get("holdout_error") is None:
        return f"no held-out error: {'; '.join(held['refused'])}."
    where = (
        f" Fitted below C = {numbers.flops(held['above_flops'])}, predicted from there on."
        if held.get("above_flops")
        else ""
    )
    refused = f" That fit is itself refused a headline: {'; '.join(held['refused'])}." if held.get("refused") else ""
    return f"held-out error {numbers.percent(fit['holdout_error'])} of the loss.{where}{refused}"


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
    return Table(header, rows, "Points kept from the fit, and what the parametric law says of them").without_empty(
        numbers.NONE
    )


def _sensitivity(results: dict, drawn: dict[str, str]) -> Section:
    blocks: list[Block] = []
    for name, method in catalogue.by_rank().items():
        fit = results.get(name) or {}
        if fit.get("sensitivity"):
            blocks.append(_changes(fit, method.title))
    if "sensitivity" in drawn:
        blocks.append(Figure("sensitivity", drawn["sensitivity"]))
    return Section("Sensitivity", blocks)


def _changes(fit: dict, caption: str) -> Table:
    header = ["change", "points", *_CONSTANTS, "refused"]
    rows = [_change({"change": "none: as fitted", **fit}), *(_change(one) for one in fit["sensitivity"])]
    return Table(header, rows, caption, words=("refused",)).without_empty(numbers.NONE)


def _change(one: dict) -> list[str]:
    refused = one.get("refused") or []
    return [
        one["change"],
        numbers.NONE if one.get("points_used") is None else str(one["points_used"]),
        *(numbers.plain(one.get(name)) for name in _CONSTANTS),
        (refused if isinstance(refused, str) else "; ".join(refused)) or numbers.NONE,
    ]


def _seed_noise(results: dict) -> Section:
    noise = results.get("seed_noise") or {}
    if noise.get("standard_deviation") is None:
        return Section("Noise between seeds", [])
    words = f"Standard deviation of the loss between seeds: {noise['standard_deviation']:.2g} nats per token"
    words += f", {100 * noise['relative']:.2g}% of it" if noise.get("relative") is not None else ""
    words += (
        f"; {noise['runs']} runs in {noise['groups']} groups that differ in their seed alone"
        if noise.get("groups")
        else ""
    )
    return Section("Noise between seeds", [Paragraph(f"{words}.")])
