"""A section for each method: its constants with intervals, the best split of each budget, what hangs on what."""

import dataclasses

from gptjax.pages import numbers
from gptjax.pages.blocks import Block, Bullets, Figure, Folded, Notice, Paragraph, Section, Table, folded
from gptjax.study.methods import catalogue
from gptjax.study.results import reasons

_SPLIT = ["C (FLOPs)", "N*", "N* 95%", "D*", "D* 95%", "D*/N*", "loss", "loss 95%"]
_PARABOLA = ["C (FLOPs)", "vertex N", "vertex D", "vertex loss", "fitted from", "points", "sizes", "residual (nats)", "seed noise (nats)", "note"]  # fmt: skip


def sections(results: dict, drawn: dict[str, str]) -> list[Section]:
    """`drawn`: captions of the pictures there are."""
    by_all = results.get("points_excluded") or []
    methods = catalogue.by_rank()
    found = [_section(methods[name], results[name], drawn, by_all) for name in methods if results.get(name)]
    if "split" in drawn:
        found.append(Section("The best split of a budget", [Figure("split", drawn["split"])]))
    return found


def _section(method, fit: dict, drawn: dict[str, str], by_all: list[dict]) -> Section:
    refused = fit.get("refused") or []
    blocks: list[Block] = [Notice(f"Refused: {refused[0]}", good=False)] if len(refused) == 1 else []
    if len(refused) > 1:
        blocks += [Notice(f"Refused, for {len(refused)} reasons:", good=False), Bullets(refused)]
    blocks += [Paragraph(method.form), *_constants(method, fit), *_how(fit)]
    blocks += [Figure(name, drawn[name]) for name in method.figures if name in drawn]
    blocks += [*_optima(fit), *_correlation(fit), *_left_out(fit, by_all)]
    return Section(method.title, blocks)


def _constants(method, fit: dict) -> list[Block]:
    """What is a constant of a method is what it names, or what has an interval."""
    eighty, ninety_five = (fit.get(key) or {} for key in ("interval80", "interval95"))
    names = [name for name in method.constants if fit.get(name) is not None]
    names += sorted(name for name in ninety_five if name not in names and isinstance(fit.get(name), float))
    rows = [
        [
            name,
            numbers.constant(name, fit[name], ninety_five.get(name)),
            numbers.constant_bounds(name, eighty.get(name), fit[name], ninety_five.get(name)),
            numbers.constant_bounds(name, ninety_five.get(name), fit[name]),
        ]
        for name in names
    ]
    caption = "Constants of a refused fit: not to be quoted" if fit.get("refused") else "Constants"
    return [Table(["constant", "value", "80% interval", "95% interval"], rows, caption)] if rows else []


def _how(fit: dict) -> list[Block]:
    said = []
    if fit.get("points_used") is not None:
        said.append(f"Fitted to {numbers.number_of(fit['points_used'], 'point')}.")
    if fit.get("starts") is not None:
        reached = (
            f"; {fit['starts_at_optimum']} reached the optimum" if fit.get("starts_at_optimum") is not None else ""
        )
        said.append(f"The optimizer was started from {numbers.number_of(fit['starts'], 'point')}{reached}.")
    if fit.get("converged") is not None:
        at = f" The objective is {numbers.setting(fit['objective'])}." if fit.get("objective") is not None else ""
        said.append(f"It {'converged' if fit['converged'] else 'did not converge'}.{at}")
    if fit.get("delta") is not None:
        said.append(f"The Huber delta is {numbers.setting(fit['delta'])}.")
    if fit.get("replicates"):
        said.append(f"The intervals are of {numbers.number_of(fit['replicates'], 'bootstrap replicate')}.")
    for reason, count in (fit.get("failures") or {}).items():
        said += [f"{numbers.number_of(count, 'replicate')} had no fit: {reason}."] if count else []
    return [Paragraph(" ".join(said))] if said else []


def _optima(fit: dict) -> list[Block]:
    optima = fit.get("optima") or []
    if not any(one.get("window") for one in optima):
        rows = [_optimum(one) for one in optima]
        return [Table(_SPLIT, rows, "Best split of each budget").without_empty(numbers.NONE)] if rows else []
    measured = [one for one in optima if one.get("window")]
    standing = [one for one in optima if not one.get("refused")]
    refused = reasons.grouped([(numbers.flops(one["flops"]), one["refused"]) for one in measured if one.get("refused")])
    blocks: list[Block] = [Paragraph(f"Window: {numbers.window(fit)}.")]
    if refused:
        blocks += [Paragraph("Budgets without a vertex:"), Bullets([group.shown("C = ") for group in refused])]
    table = Table(_PARABOLA, [_parabola(one) for one in measured], "The parabola of each budget and its vertex")
    blocks.append(folded(dataclasses.replace(table, words=("note",)).without_empty(numbers.NONE), "Parabolas"))
    split = [_optimum({**one, **(one.get("law") or {})}) for one in standing]
    table = Table(_SPLIT, split, "Best split of each budget by the power law through the vertices")
    table = table.without_empty(numbers.NONE)
    return blocks + ([table] if len(table.header) > 1 else [])


def _parabola(one: dict) -> list[str]:
    """Seed noise: what runs differ by that differ in their seed alone, of those the parabola goes through."""
    low, high = one["window"]
    vertex = [numbers.count(one.get("params")), numbers.count(one.get("tokens")), numbers.loss(one.get("loss"))]
    said = "refused" if one.get("refused") else f"widened to {one['n_sizes']} sizes" if one["widened"] else numbers.NONE
    return [
        numbers.flops(one["flops"]),
        *(vertex if not one.get("refused") else [numbers.NONE] * 3),
        f"{numbers.count(low)} to {numbers.count(high)}",
        f"{one['n_points']} of {one['n_points'] + one['n_outside']}",
        str(one["n_sizes"]),
        numbers.plain(one.get("residual"), 2),
        numbers.plain(one.get("seed_deviation"), 2),
        said,
    ]


def _optimum(one: dict) -> list[str]:
    wide = one.get("interval95") or {}
    params, tokens = one.get("params"), one.get("tokens")
    return [
        numbers.flops(one["flops"]),
        numbers.count(params),
        numbers.count_bounds(wide.get("params")),
        numbers.count(tokens),
        numbers.count_bounds(wide.get("tokens")),
        numbers.plain(tokens / params, 3) if params and tokens else numbers.NONE,
        numbers.loss(one.get("loss")),
        numbers.bounds(wide.get("loss")),
    ]


def _correlation(fit: dict) -> list[Block]:
    table = fit.get("correlation") or {}
    names = list(table)
    if len(names) < 2:
        return []
    rows = [
        [name, *(numbers.NONE if (r := table[name].get(other)) is None else f"{r:+.2f}" for other in names)]
        for name in names
    ]
    return [Folded("Correlation of the constants over replicates", Table(["", *names], rows))]


def _left_out(fit: dict, by_all: list[dict]) -> list[Block]:
    excluded = [one for one in fit.get("points_excluded") or [] if one not in by_all]
    if not excluded:
        return []
    pairs = [(one["run"], one["reason"]) for one in excluded]
    blocks: list[Block] = [
        Paragraph(f"This method does not use {numbers.number_of(len(excluded), 'point')}:"),
        Bullets([group.shown() for group in reasons.grouped(pairs)]),
    ]
    each = folded(Bullets([f"{run}: {reason}" for run, reason in pairs]), "All of them")
    return blocks + ([each] if isinstance(each, Folded) else [])
