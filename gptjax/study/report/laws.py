"""A section for each method: its constants with intervals, the best split of each budget, what hangs on what."""

from gptjax.study import numbers
from gptjax.study.report.blocks import Block, Bullets, Figure, Notice, Paragraph, Section, Table
from gptjax.study.report.headline import METHODS

# What is a constant of a method is what has an interval, or one of these.
_NAMES = {
    "parametric": ("E", "A", "B", "alpha", "beta", "a", "b"),
    "isoflop": ("a", "b", "N_scale", "D_scale", "loss_E"),
    "envelope": ("a", "b", "N_scale", "D_scale"),
    "kaplan": ("N_c", "alpha_N", "D_c", "alpha_D", "C_c", "alpha_C",
               "joint_N_c", "joint_D_c", "joint_alpha_N", "joint_alpha_D", "a", "b"),
}  # fmt: skip
_FORMS = {
    "parametric": "L(N, D) = E + A / N^alpha + B / D^beta; a = beta / (alpha + beta), b = alpha / (alpha + beta) are the"
    " exponents of N* and D* in C.",
    "isoflop": "A parabola in ln N for each budget; a power law through the vertices: N* = N_scale C^a, D* = D_scale C^b.",
    "envelope": "The run that is best at each compute, from the training curves; N* = N_scale C^a, D* = D_scale C^b.",
    "kaplan": "L(N) = (N_c / N)^alpha_N, L(D) = (D_c / D)^alpha_D, L(C) = (C_c / C)^alpha_C, and the joint form"
    " L(N, D) = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D (Kaplan et al. 2020, equations 1.1 to 1.5).",
}
_FIGURES = {"parametric": ("frontier", "residuals"), "isoflop": ("isoflop",), "envelope": ("curves",)}
_HOW = {
    "objective": "objective",
    "delta": "Huber delta",
    "starts": "starts",
    "starts_at_optimum": "of them at the optimum",
    "converged": "converged",
    "replicates": "bootstrap replicates",
}


def sections(results: dict, drawn: dict[str, str]) -> list[Section]:
    """`drawn`: captions of the pictures there are."""
    by_all = results.get("points_excluded") or []
    found = [_method(method, results[method], drawn, by_all) for method in METHODS if results.get(method)]
    if "split" in drawn:
        found.append(Section("The best split of a budget", [Figure("split", drawn["split"])]))
    return found


def _method(method: str, fit: dict, drawn: dict[str, str], by_all: list[dict]) -> Section:
    refused = fit.get("refused") or []
    blocks: list[Block] = [Notice(f"Refused: {reason}", good=False) for reason in refused]
    blocks += [Paragraph(_FORMS[method]), *_constants(method, fit), *_how(fit)]
    blocks += [Figure(name, drawn[name]) for name in _FIGURES.get(method, ()) if name in drawn]
    blocks += [*_optima(fit), *_correlation(fit), *_left_out(fit, by_all)]
    return Section(METHODS[method], blocks)


def _constants(method: str, fit: dict) -> list[Block]:
    eighty, ninety_five = (fit.get(key) or {} for key in ("interval80", "interval95"))
    names = [name for name in _NAMES[method] if fit.get(name) is not None]
    names += sorted(name for name in ninety_five if name not in names and isinstance(fit.get(name), float))
    rows = [
        [
            name,
            numbers.uncertain(fit[name], ninety_five.get(name)),
            numbers.bounds(eighty.get(name), fit[name], ninety_five.get(name)),
            numbers.bounds(ninety_five.get(name), fit[name]),
        ]
        for name in names
    ]
    caption = "Constants, refused a headline" if fit.get("refused") else "Constants"
    return [Table(["constant", "value", "80% interval", "95% interval"], rows, caption)] if rows else []


def _how(fit: dict) -> list[Block]:
    said = [f"{label} {numbers.setting(fit[key])}" for key, label in _HOW.items() if fit.get(key) is not None]
    said = [f"points used: {fit['points_used']}", *said] if fit.get("points_used") is not None else said
    failures = fit.get("failures") or {}
    said += [f"{count} replicates without a fit: {reason}" for reason, count in failures.items() if count]
    text = "; ".join(said)
    return [Paragraph(f"{text[0].upper()}{text[1:]}.")] if said else []


def _optima(fit: dict) -> list[Block]:
    optima = fit.get("optima") or []
    if not optima:
        return []
    header = ["C (FLOPs)", "N*", "N* 95%", "D*", "D* 95%", "D*/N*", "loss", "loss 95%"]
    if any(one.get("window") for one in optima):
        header = ["C (FLOPs)", "vertex N", "vertex D", "vertex loss", "points", "sizes", "refused", *header[1:]]
        rows = [[*_vertex(one), *_optimum({**one, **(one.get("law") or {})})[1:]] for one in optima]
        caption = "Vertex of each budget, and the best split by the power law through the vertices, which the intervals are of"
    else:
        rows, caption = [_optimum(one) for one in optima], "Best split of each budget"
    return [Table(header, rows, caption, words=("refused",)).without_empty(numbers.NONE)]


def _vertex(one: dict) -> list[str]:
    there = one if one.get("window") else {}
    return [
        numbers.flops(one["flops"]),
        numbers.count(there.get("params")),
        numbers.count(there.get("tokens")),
        numbers.loss(there.get("loss")),
        numbers.plain(there.get("n_points")),
        numbers.plain(there.get("n_sizes")),
        there.get("refused") or numbers.NONE,
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
    return [Table(["", *names], rows, "Correlation of the constants over replicates")]


def _left_out(fit: dict, by_all: list[dict]) -> list[Block]:
    excluded = [one for one in fit.get("points_excluded") or [] if one not in by_all]
    if not excluded:
        return []
    items = [f"{one['run']}: {one['reason']}" for one in excluded]
    return [Paragraph("Points this method leaves out:"), Bullets(items)]
