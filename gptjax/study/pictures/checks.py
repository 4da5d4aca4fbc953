"""How far a law is to be believed: points it had not seen, the choices behind it, larger runs told beforehand."""

from gptjax.pages import numbers
from gptjax.study.methods import catalogue
from gptjax.study.pictures import style
from gptjax.study.pictures.style import Picture

LOSS = "held-out loss (nats per token)"


def holdout(results: dict) -> Picture | None:
    """Measured against predicted loss of the points left out of the fit, with intervals of the prediction."""
    held = ((results.get("parametric") or {}).get("holdout") or {}).get("points") or []
    held = [one for one in held if one.get("predicted") is not None]
    if not held:
        return None
    figure, [[axes]] = style.figure(height=3.4, width=5.6)
    ends = [one[key] for one in held for key in ("loss", "predicted")]
    for one in held:
        style.bars(axes, one["loss"], one.get("interval80"), one.get("interval95"), style.BLUE)
        ends += [bound for bound in one.get("interval95") or [] if bound is not None]
    axes.plot(*zip(*((one["predicted"], one["loss"]) for one in held)), "o", color=style.VERMILION, markersize=4,
              markeredgecolor="white", markeredgewidth=0.5, zorder=3, gid="held out")  # fmt: skip
    low, high = min(ends), max(ends)
    pad = 0.05 * (high - low) or 0.01
    span = low - pad, high + pad
    axes.plot(span, span, color=style.SOFT, linewidth=0.8, zorder=1)
    axes.set(xlim=span, ylim=span, xlabel=f"predicted {LOSS.removeprefix('held-out ')}", ylabel=f"measured {LOSS}")
    axes.set_aspect("equal")
    keys = [
        style.point_key(style.VERMILION, "held-out run"),
        style.line_key(style.SOFT, "measured = predicted", linewidth=0.8),
    ]
    keys += (
        [style.line_key(style.BLUE, "80%, 95% interval", linewidth=3)]
        if any(one.get("interval95") for one in held)
        else []
    )
    style.legend(figure, keys)
    caption = "Extrapolation: runs that the fit did not see, their measured loss against the predicted one."
    return Picture("holdout", caption, figure)


def sensitivity(results: dict) -> Picture | None:
    """The exponent a of N* under each change of the headline's fit, beside its intervals."""
    standing = (results.get("verdict") or {}).get("standing") or ["parametric"]
    fit = results.get(standing[0]) or {}
    changes = [one for one in fit.get("sensitivity") or [] if one.get("a") is not None]
    if not changes or fit.get("a") is None:
        return None
    figure, [[axes]] = style.figure(height=1.2 + 0.2 * len(changes))
    for key, alpha in (("interval95", 0.16), ("interval80", 0.28)):
        interval = (fit.get(key) or {}).get("a") or [None]
        if None not in interval:
            axes.axvspan(*interval, color=style.VERMILION, alpha=alpha, linewidth=0)
    axes.axvline(fit["a"], color=style.VERMILION, linewidth=1)
    rows = range(len(changes))
    refused = [bool(one.get("refused")) for one in changes]
    for hollow in (False, True):
        chosen = [i for i in rows if refused[i] == hollow]
        axes.plot([changes[i]["a"] for i in chosen], chosen, "o", color=style.BLUE, markersize=5, gid="changes",
                  markerfacecolor="white" if hollow else style.BLUE)  # fmt: skip
    axes.set_yticks(rows, [one["change"] for one in changes])
    axes.invert_yaxis()
    axes.grid(axis="y", color=style.FAINT, linewidth=0.4)
    axes.set_axisbelow(True)
    axes.set_xlabel("exponent $a$, in $N^* \\propto C^a$")
    keys = [style.point_key(style.BLUE, "with the change"), style.line_key(style.VERMILION, "as fitted", linewidth=1)]
    keys += [style.bands_key(style.VERMILION)] if axes.patches else []
    keys += [style.point_key(style.BLUE, "refused", markerfacecolor="white")] if any(refused) else []
    style.legend(figure, keys, below=True, columns=4)
    caption = f"Sensitivity: the exponent of {catalogue.of(standing[0]).called} under each change of the fit."
    return Picture("sensitivity", caption, figure)


def prediction(results: dict) -> Picture | None:
    """Of each larger run: the loss told before it was started, with intervals, and what came."""
    told = [one for one in results.get("prediction") or [] if one.get("loss") is not None]
    if not told:
        return None
    from matplotlib.lines import Line2D

    figure, [[axes]] = style.figure(height=1.2 + 0.32 * len(told))
    for row, one in enumerate(told):
        style.bars(axes, row, one.get("interval80"), one.get("interval95"), style.BLUE)
    rows = range(len(told))
    axes.plot(
        [one["loss"] for one in told], rows, "|", color=style.BLUE, markersize=11, markeredgewidth=1.6, gid="told"
    )
    came = [row for row in rows if told[row].get("outcome") is not None]
    outcome = dict(color=style.VERMILION, markersize=6, markeredgecolor="white", markeredgewidth=0.7)
    axes.plot([told[row]["outcome"] for row in came], came, "D", **outcome, zorder=4, gid="came")
    axes.set_yticks(
        rows, [f"{one['run']}\nN {numbers.count(one['params'])}, C {numbers.flops(one['flops'])}" for one in told]
    )
    axes.set(ylim=(len(told) - 0.5, -0.5), xlabel=LOSS)
    keys = [Line2D([], [], color=style.BLUE, linewidth=3, marker="|", markersize=10, label="predicted, 80% and 95%")]
    keys += [Line2D([], [], linestyle="", marker="D", **outcome, label="measured")] if came else []
    style.legend(figure, keys, below=True)
    return Picture(
        "prediction", "Larger runs: the loss predicted before they started, and the loss they reached.", figure
    )
