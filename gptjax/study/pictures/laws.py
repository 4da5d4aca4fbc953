"""What the fits say: isoFLOP curves, the compute frontier, the best split of a budget, what a law leaves unexplained."""

import math

import numpy as np

from gptjax.pages import numbers
from gptjax.study.fits.isoflop import between
from gptjax.study.methods import catalogue
from gptjax.study.pictures import style
from gptjax.study.pictures.style import Picture
from gptjax.study.results import reasons as groups

PARAMS = "parameters N"
FLOPS = "training compute C (FLOPs)"
LOSS = "held-out loss (nats per token)"
_CURVE = 80  # points of a drawn line


def isoflop(results: dict) -> Picture | None:
    """Points and parabola of each budget, its vertex where it is one; crosses, numbered, where it was refused."""
    fit = results.get("isoflop") or {}
    optima = [one for one in fit.get("optima") or [] if one.get("window")]  # others: what the law says elsewhere
    points = results["points"]
    if not any(_has_parabola(vertex) for vertex in optima) or not points:
        return None
    figure, [[axes]] = style.figure(height=3.6)
    groups = _by_budget(points, [vertex["flops"] for vertex in optima])
    colours = style.ordered(len(optima))
    for vertex, group, colour in zip(optima, groups, colours):
        _measured(axes, vertex, group, colour)
        if _has_parabola(vertex):
            _parabola(axes, vertex, colour)
    _vertices(axes, [vertex for vertex in optima if not vertex.get("refused")])
    style.log_axis(axes, "x", [point["params"] for point in points])
    losses = [point["loss"] for point in points]
    pad = 0.06 * (max(losses) - min(losses))
    axes.set_ylim(min(losses) - pad, max(losses) + pad)
    refused = [one for one in zip(optima, groups, colours) if one[0].get("refused")]
    for number, (vertex, group, colour) in enumerate(refused, 1):
        _cross(axes, _place(vertex, group), number, colour)
    axes.set(xlabel=_with_convention(PARAMS, results, "params"), ylabel=LOSS)
    style.legend(figure, _budget_keys(optima, colours), "C (FLOPs)")
    return Picture("isoflop", _isoflop_caption(fit, [vertex for vertex, _, _ in refused]), figure)


def _has_parabola(vertex: dict) -> bool:
    return bool(vertex.get("coefficients")) and None not in vertex["coefficients"]


def _measured(axes, vertex: dict, group: list[dict], colour: str) -> None:
    """Points of a budget: full within the window of its parabola, hollow outside."""
    inside = between(np.array([point["params"] for point in group]), *vertex["window"])
    for within, look in ((True, dict(markeredgewidth=0)), (False, dict(markerfacecolor="none", markeredgewidth=0.7))):
        chosen = [point for point, is_inside in zip(group, inside) if is_inside == within]
        axes.plot(*_columns(chosen, "params", "loss"), "o", color=colour, markersize=3.6, alpha=0.8, **look)


def _parabola(axes, vertex: dict, colour: str) -> None:
    log_N = np.linspace(*np.log(vertex["window"]), _CURVE)
    line = "--" if vertex.get("refused") else "-"
    axes.plot(np.exp(log_N), np.polynomial.Polynomial(vertex["coefficients"])(log_N), line, color=colour, linewidth=1.3)


def _vertices(axes, accepted: list[dict]) -> None:
    params, losses = [vertex["params"] for vertex in accepted], [vertex["loss"] for vertex in accepted]
    axes.plot(params, losses, ":", color=style.INK, linewidth=1, zorder=3)
    marker = dict(markersize=6.5, markerfacecolor=style.VERMILION, markeredgecolor="white", markeredgewidth=0.8)
    axes.plot(params, losses, "D", **marker, zorder=4, gid="vertices")


def _place(vertex: dict, group: list[dict]) -> tuple[float, float]:
    """At the vertex if it lies within the window, else at the end of its parabola on that side; the best run without one."""
    if not _has_parabola(vertex):
        return min(((point["params"], point["loss"]) for point in group), key=lambda place: place[1])
    window = np.log(vertex["window"])
    log_N = np.clip(math.log(vertex["params"]) if vertex["params"] else np.mean(window), *window)
    return math.exp(log_N), float(np.polynomial.Polynomial(vertex["coefficients"])(log_N))


def _cross(axes, at: tuple[float, float], number: int, colour: str) -> None:
    axes.plot(*at, "x", color=colour, markersize=8, markeredgewidth=2, zorder=4, clip_on=False, gid="refused")
    axes.annotate(str(number), at, xytext=(6, 4), textcoords="offset points", fontsize=8, color=style.INK)


def _budget_keys(optima: list[dict], colours: list[str]) -> list:
    from matplotlib.lines import Line2D

    keys = [
        Line2D([], [], color=colour, marker="o", markersize=4, linestyle="--" if vertex.get("refused") else "-",
               label=style.power(vertex["flops"]))
        for vertex, colour in zip(optima, colours)
    ]  # fmt: skip
    if any(not vertex.get("refused") for vertex in optima):
        keys.append(Line2D([], [], linestyle=":", color=style.INK, marker="D", markersize=6,
                           markerfacecolor=style.VERMILION, markeredgecolor="white", label="optimum"))  # fmt: skip
    if any(vertex.get("refused") for vertex in optima):
        keys.append(Line2D([], [], linestyle="", color=style.SOFT, marker="x", markersize=7, markeredgewidth=2,
                           label="refused"))  # fmt: skip
    return keys


def _isoflop_caption(fit: dict, refused: list[dict]) -> str:
    caption = (
        "IsoFLOP curves (approach 2): held-out loss against size at each compute budget, the parabola in ln N through"
        f" {numbers.window(fit)}, and its vertex."
    )
    if any(one.get("n_outside") for one in fit["optima"]):
        caption += " Hollow points lie outside the window and are not used."
    if refused:
        reasons = groups.grouped([(str(number), vertex["refused"]) for number, vertex in enumerate(refused, 1)])
        caption += f" Dashed parabolas with a cross were refused ({'; '.join(group.shown() for group in reasons)})."
    return caption


def frontier(results: dict) -> Picture | None:
    """Every run, and the loss that the parametric law gives the best split of each budget."""
    fit = results.get("parametric") or {}
    optima = [one for one in fit.get("optima") or [] if one.get("loss")]
    if len(optima) < 2:
        return None
    figure, [[axes]] = style.figure(height=3.5)
    points = results["points"]
    handles = _cloud(axes, points)
    x = [one["flops"] for one in optima]
    intervals = [[(one.get(key) or {}).get("loss") for one in optima] for key in ("interval80", "interval95")]
    style.band(axes, x, *intervals, style.VERMILION)
    handles += [_law_line(axes, x, [one["loss"] for one in optima], fit), style.bands_key(style.VERMILION)]
    ends = [bound for interval in intervals[1] if interval and None not in interval for bound in interval]
    style.log_axis(axes, "x", x + [point["flops"] for point in points], style.power)
    style.loss_axis(axes, "y", [point["loss"] for point in points] + [one["loss"] for one in optima] + ends)
    axes.set(xlabel=_with_convention(FLOPS, results, "flops"), ylabel=LOSS)
    style.legend(figure, handles, "N")
    caption = "Compute frontier: every run, and the loss of the best split of each budget under the parametric law"
    return Picture("frontier", f"{caption}.{_refusal(fit)}", figure)


def _law_line(axes, x, y, fit: dict):
    line = "--" if fit.get("refused") else "-"
    [drawn] = axes.plot(*style.smooth(x, y), line, color=style.VERMILION, zorder=3, gid="frontier", label="best split")
    return drawn


def _cloud(axes, points: list[dict]) -> list:
    """Points by size; handles of at most twelve sizes for the legend."""
    sizes = sorted({point["params"] for point in points})
    colours, handles = style.ordered(len(sizes)), []
    for size, colour in zip(sizes, colours):
        chosen = [point for point in points if point["params"] == size]
        [drawn] = axes.plot(*_columns(chosen, "flops", "loss"), "o", color=colour, markersize=3.4, alpha=0.85,
                            markeredgewidth=0, label=numbers.count(size))  # fmt: skip
        handles.append(drawn)
    return handles[:: -(-len(handles) // 12)]


def split(results: dict) -> Picture | None:
    """N* and D* against compute, of every method that gives them, with intervals."""
    methods = [(name, results[name]) for name in catalogue.by_rank() if _splits(results.get(name) or {}, "params")]
    if not methods:
        return None
    figure, [row] = style.figure(columns=2, height=3.1, width=6.4)
    handles = []
    for axes, key, label in zip(row, ("params", "tokens"), ("$N^*$", "$D^*$ (tokens)")):
        drawn = [_optima(axes, key, name, fit) for name, fit in methods]
        seen = [value for _, values in drawn for value in values]
        flops = [one["flops"] for _, fit in methods for one in fit["optima"]]
        style.log_axis(axes, "x", flops, style.power)
        style.log_axis(axes, "y", seen)
        axes.set(xlabel="C (FLOPs)", ylabel=_with_convention(label, results, key))
        handles = [handle for handle, _ in drawn]
    style.legend(figure, [*handles, style.line_key(style.SOFT, "95% interval", ":")], below=True, columns=1)
    caption = "The best split of a budget: parameters and tokens against compute, by each method."
    if any(catalogue.of(name).shows_vertices for name, _ in methods):
        caption += " Diamonds: the vertices of the isoFLOP parabolas, with bars for their 80% and 95% intervals."
    return Picture("split", caption, figure)


def _splits(fit: dict, key: str) -> list[dict]:
    """Those of a method that are numbers and stand; of isoFLOP curves the vertices."""
    optima = [one for one in fit.get("optima") or [] if one.get(key) and not one.get("refused")]
    return [one for one in optima if one.get("window")] or optima


def _optima(axes, key: str, name: str, fit: dict) -> tuple:
    """The handle of a method's line or markers, and all it drew."""
    method = catalogue.of(name)
    optima = _splits(fit, key)
    x, y = _columns(optima, "flops", key)
    eighty, ninety_five = ([(one.get(k) or {}).get(key) for one in optima] for k in ("interval80", "interval95"))
    label = method.label
    label += f": $N^* \\propto C^{{{fit['a']:.3f}}}$, $D^* \\propto C^{{{fit['b']:.3f}}}$" if fit.get("a") else ""
    label += " (refused)" if fit.get("refused") else ""
    if method.shows_vertices:
        for at, low, wide in zip(x, eighty, ninety_five):
            style.bars(axes, at, low, wide, method.colour, horizontal=False)
        [handle] = axes.plot(x, y, "D", color=method.colour, markersize=4.5, label=label, gid=name, zorder=4)
        scale, exponent = (fit.get("N_scale"), fit["a"]) if key == "params" else (fit.get("D_scale"), fit["b"])
        if scale and exponent:
            span = np.array([min(x), max(x)])
            axes.plot(span, scale * span**exponent, color=method.colour, linewidth=method.line_width, gid=f"{name} law")
    else:
        style.edges(axes, x, ninety_five, method.colour)
        look = dict(color=method.colour, linewidth=method.line_width, label=label, gid=name)
        [handle] = axes.plot(x, y, "--" if fit.get("refused") else "-", **look)
    ends = [bound for interval in ninety_five if interval and None not in interval for bound in interval]
    return handle, y + ends


def residuals(results: dict) -> Picture | None:
    """What the parametric law leaves of each loss, against N, D and the loss it predicts."""
    fit = results.get("parametric") or {}
    law, points = _law(fit), results["points"]
    if law is None or not points:
        return None
    N, D, L = (np.array([point[key] for point in points], float) for key in ("params", "tokens", "loss"))
    left = 100 * (np.log(L) - np.log(law.loss(N, D)))
    figure, [row] = style.figure(columns=3, height=2.5, width=6.6, sharey=True)
    noise = ((results.get("seed_noise") or {}).get("relative") or 0) * 100
    for axes, x, label in zip(row, (N, D, law.loss(N, D)), ("N", "D (tokens)", "predicted loss")):
        axes.axhspan(-2 * noise, 2 * noise, color=style.FAINT, alpha=0.35, linewidth=0)
        axes.axhline(0, color=style.INK, linewidth=0.7)
        axes.plot(x, left, "o", color=style.BLUE, markersize=3.2, alpha=0.7, markeredgewidth=0, gid="residuals")
        axes.set_xlabel(label)
        if label != "predicted loss":
            style.log_axis(axes, "x", x, most=4)
    row[0].set_ylabel("ln L − ln L̂ (%)")
    keys = [style.point_key(style.BLUE, "run")]
    keys += [style.bands_key(style.FAINT, "two standard deviations between seeds")] if noise else []
    style.legend(figure, keys, below=True)
    caption = "Residuals of the parametric law: ln of measured over predicted loss, for the points it was fitted to"
    refused = " This law was refused; its section says why." if fit.get("refused") else ""
    return Picture("residuals", f"{caption}.{refused}", figure)


def _law(fit: dict):
    from gptjax.study.fits.laws import ParametricLaw

    names = ("E", "A", "B", "alpha", "beta")
    return None if any(fit.get(name) is None for name in names) else ParametricLaw(*(fit[name] for name in names))


def _refusal(fit: dict) -> str:
    return " Dashed: this law was refused; its section says why." if fit.get("refused") else ""


def _with_convention(label: str, results: dict, key: str) -> str:
    convention = (results.get("conventions") or {}).get(key)
    return f"{label} ({convention.replace('_', '-')})" if convention and key != "flops" else label


def _by_budget(points: list[dict], flops: list[float]) -> list[list[dict]]:
    """Points of each budget: those whose compute is nearest to it."""
    groups = [[] for _ in flops]
    for point in points:
        nearest = min(range(len(flops)), key=lambda i: abs(math.log(point["flops"] / flops[i])))
        groups[nearest].append(point)
    return groups


def _columns(rows: list[dict], *names: str) -> list[list]:
    return [[row[name] for row in rows] for name in names]
