"""What the runs did, before any law: learning rates, loss curves, two texts, two architectures."""

from gptjax.pages import numbers
from gptjax.study.pictures import style
from gptjax.study.pictures.style import Picture

LOSS = "held-out loss (nats per token)"


def learning_rate(results: dict) -> Picture | None:
    """Loss against learning rate of each size, its best, and the sensitivity of Wortsman et al. 2023."""
    sizes = [one for one in (results.get("learning_rate") or {}).get("sizes") or [] if one.get("points")]
    if not sizes:
        return None
    figure, [[axes]] = style.figure(height=3.4)
    losses = [point["loss"] for one in sizes for point in one["points"] if _ended(point)]
    top = max(losses) + 0.08 * (max(losses) - min(losses)) if losses else 1
    step = 0.2 * (top - max(losses)) if losses else 0
    handles = [
        _size(axes, one, colour, top + i * step)
        for i, (one, colour) in enumerate(zip(sizes, style.ordered(len(sizes))))
    ]
    rates = [point["learning_rate"] for one in sizes for point in one["points"]]
    style.log_axis(axes, "x", rates, numbers.setting)
    axes.set(xlabel="peak learning rate", ylabel=LOSS)
    handles.append(style.point_key(style.VERMILION, "best", markerfacecolor="none"))
    if any(not _ended(point) for one in sizes for point in one["points"]):
        handles.append(style.point_key(style.SOFT, "diverged", "^"))
    style.legend(figure, handles, "N (sensitivity)")
    caption = (
        "Loss against learning rate, by size. The sensitivity in brackets is the mean loss over learning rates minus the"
        " lowest loss; a diverged run counts with the loss at initialisation (Wortsman et al. 2023)."
    )
    return Picture("learning_rate", caption, figure)


def _ended(point: dict) -> bool:
    return point.get("loss") is not None and not point.get("diverged")


def _size(axes, one: dict, colour: str, top: float):
    ended = sorted((point for point in one["points"] if _ended(point)), key=lambda point: point["learning_rate"])
    label = numbers.count(one["params"])
    if one.get("sensitivity") is not None:
        label += f" ({one['sensitivity']:.3f})"
    x, y = [point["learning_rate"] for point in ended], [point["loss"] for point in ended]
    [line] = axes.plot(x, y, "o-", color=colour, markersize=3.8, linewidth=1.2, label=label, gid="learning rates")
    best = [point for point in ended if point["learning_rate"] == one.get("best")]
    axes.plot([p["learning_rate"] for p in best], [p["loss"] for p in best], "o", markersize=8.5, markerfacecolor="none",
              markeredgecolor=style.VERMILION, markeredgewidth=1.3, gid="best")  # fmt: skip
    fallen = [point["learning_rate"] for point in one["points"] if not _ended(point)]
    axes.plot(fallen, [top] * len(fallen), "^", color=colour, markersize=5.5, gid="diverged")
    return line


def curves(results: dict) -> Picture | None:
    """Loss of every run while it trains, against compute, and the runs that were best at some compute."""
    drawn = [
        one for one in results.get("curves") or (results.get("envelope") or {}).get("curves") or [] if one.get("loss")
    ]
    if not drawn:
        return None
    figure, [[axes]] = style.figure(height=3.5)
    sizes = sorted({one["params"] for one in drawn})
    colours = dict(zip(sizes, style.ordered(len(sizes))))
    handles = {}
    for one in drawn:
        [line] = axes.plot(one["flops"], one["loss"], color=colours[one["params"]], linewidth=0.9, alpha=0.75,
                           label=numbers.count(one["params"]), gid="curve")  # fmt: skip
        handles[one["params"]] = line
    keys = [handles[size] for size in sizes][:: -(-len(sizes) // 12)]
    winners = _winners(axes, results.get("envelope") or {})
    keys += winners
    style.log_axis(axes, "x", [value for one in drawn for value in one["flops"]], style.power)
    style.loss_axis(axes, "y", [value for one in drawn for value in one["loss"]])
    axes.set(xlabel="training compute C (FLOPs)", ylabel=LOSS)
    style.legend(figure, keys, "N")
    best = " Dotted: the runs that were best at some compute (approach 1)." if winners else ""
    return Picture("curves", f"Held-out loss during training, by size.{best}", figure)


def _winners(axes, fit: dict) -> list:
    winners = [one for one in fit.get("winners") or [] if not one.get("refused")]
    if not winners:
        return []
    x, y = [one["flops"] for one in winners], [one["loss"] for one in winners]
    return axes.plot(x, y, color=style.INK, linewidth=1.6, linestyle=(0, (1, 1)), label="best", gid="winners")


def loss_to_loss(results: dict) -> Picture | None:
    """Loss on one text against loss on another, a point a run."""
    pair = results.get("loss_to_loss") or {}
    if not pair.get("points"):
        return None
    figure, [[axes]] = style.figure(height=3.2, width=5.6)
    x, y = ([point[key] for point in pair["points"]] for key in ("x", "y"))
    axes.plot(x, y, "o", color=style.BLUE, markersize=4, alpha=0.85, markeredgewidth=0, gid="runs")
    keys = [style.point_key(style.BLUE, "run")]
    if pair.get("curve"):
        axes.plot(pair["curve"]["x"], pair["curve"]["y"], color=style.VERMILION, linewidth=1.2, gid="law")
        keys.append(style.line_key(style.VERMILION, "law", linewidth=1.2))
    style.legend(figure, keys)
    axes.set(xlabel=f"loss on {pair['x']} (nats per token)", ylabel=f"loss on {pair['y']} (nats per token)")
    return Picture("loss_to_loss", f"Loss on {pair['y']} against loss on {pair['x']}; each point is a run.", figure)


def architectures(results: dict) -> Picture | None:
    """Two architectures side by side as Kaplan et al. 2020 show them (figure 7): loss by size, and by place in the context."""
    others = (results.get("families") or {}).values()
    everyone = [*results["points"], *(point for other in others for point in other["points"])]
    points = [point for point in everyone if point.get("architecture")]
    names = sorted({point["architecture"] for point in points})
    if len(names) < 2:
        return None
    places = [one for one in results.get("per_position") or [] if one.get("loss")]
    figure, [row] = style.figure(columns=2 if places else 1, height=3.2, width=6.4 if places else style.WIDTH)
    handles = [_by_size(row[0], points, name, i) for i, name in enumerate(names)]
    sizes = [_non_embedding(point) for point in points]
    style.log_axis(row[0], "x", sizes)
    style.loss_axis(row[0], "y", [point["loss"] for point in points])
    row[0].set(xlabel="non-embedding parameters", ylabel=LOSS)
    if places:
        _by_place(row[1], places, names)
    style.legend(figure, handles, below=True)
    right = " Right: by position in the context; darker lines are larger models." if places else ""
    caption = (
        "Architectures side by side (after Kaplan et al. 2020, figure 7). Each point is a run. A line joins the runs that no"
        " smaller run beats."
    )
    return Picture("architectures", caption + right, figure)


def _non_embedding(point: dict) -> float:
    return point.get("params_non_embedding") or point["params"]


def _by_size(axes, points: list[dict], name: str, number: int):
    chosen = [point for point in points if point["architecture"] == name]
    look = dict(color=style.KINDS[number], marker=style.MARKERS[number])
    axes.plot(*zip(*((_non_embedding(p), p["loss"]) for p in chosen)), **look, linestyle="", markersize=3.5, alpha=0.5,
              markeredgewidth=0)  # fmt: skip
    [line] = axes.plot(*zip(*_best(chosen)), **look, markersize=4.5, label=name, gid=name)
    return line


def _best(points: list[dict]) -> list[tuple[float, float]]:
    """(size, loss) of the runs that no run of their size or a smaller one beats."""
    best = []
    for size, loss in sorted((_non_embedding(point), point["loss"]) for point in points):
        if not best or loss < best[-1][1]:
            best.append((size, loss))
    return best


def _by_place(axes, places: list[dict], names: list[str]) -> None:
    sizes = sorted({one["params"] for one in places})
    for one in places:
        alpha = 0.35 + 0.65 * sizes.index(one["params"]) / max(len(sizes) - 1, 1)
        colour = style.KINDS[names.index(one["architecture"])]
        axes.plot(one["positions"], one["loss"], color=colour, alpha=alpha, linewidth=1.1, gid="place")
    style.log_axis(axes, "x", [place for one in places for place in one["positions"]])
    axes.set_xlabel("position in the context")
