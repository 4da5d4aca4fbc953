"""A picture of the lengths of documents: for each source a histogram in bins that double, of documents and of tokens.

Needs matplotlib: pip install 'gptjax[study]'.
"""

import pathlib

from gptjax.config.extras import library
from gptjax.errors import UserError

_ENDINGS = (".png", ".svg", ".pdf")
_MANY = 24  # sources


def check(path: str) -> None:
    """Raises UserError, before any work is done, where no picture could be made."""
    if not path.endswith(_ENDINGS):
        raise UserError(f"--picture={path}: use a name that ends in {', '.join(_ENDINGS)}.")
    if not pathlib.Path(path).expanduser().parent.is_dir():
        raise UserError(f"--picture={path}: there is no folder {pathlib.Path(path).parent}; make it first.")
    library("matplotlib", f"--picture={path}")


def lengths(facts: dict, path: str) -> None:
    """Draws `statistics` to a file. Raises UserError: more sources than a picture has room for."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sources = facts["sources"]
    if len(sources) > _MANY:
        raise UserError(f"--picture: there are {len(sources)} sources, but a picture has room for {_MANY} only.")
    columns = 1 if len(sources) <= 4 else 2
    lines = -(-len(sources) // columns)
    figure, axes = pyplot.subplots(
        lines,
        columns,
        figsize=(6.8 * columns, 1.0 + 2.2 * lines),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    span = _span(sources)
    for axis, (name, source) in zip(axes.flat, sources.items()):
        _histogram(axis, name, source["lengths"], facts["run"]["context_length"], span)
    for axis in axes.flat[len(sources) :]:
        axis.set_visible(False)
    for column in range(columns):
        last = axes.flat[max(i for i in range(len(sources)) if i % columns == column)]
        last.set_xlabel("length of a document (tokens)")
        last.xaxis.set_tick_params(labelbottom=True)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    figure.suptitle("Documents of the training text by length", fontsize=11)
    figure.savefig(pathlib.Path(path).expanduser(), dpi=130)
    pyplot.close(figure)


def _span(sources: dict) -> tuple[int, int]:
    bins = [one for source in sources.values() for one in source["lengths"]["histogram"]]
    return min((max(1, one["from"]) for one in bins), default=1), max((one["to"] + 1 for one in bins), default=2)


def _histogram(axis, name: str, lengths: dict, context_length: int, span: tuple[int, int]) -> None:
    bins = [one for one in lengths["histogram"] if one["from"]]  # documents without tokens have no place on the axis
    n = sum(one["documents"] for one in lengths["histogram"])
    total = sum(one["tokens"] for one in bins)
    left = [one["from"] for one in bins]
    width = [one["to"] + 1 - one["from"] for one in bins]
    axis.bar(
        left,
        [100 * one["documents"] / n for one in bins],
        width,
        align="edge",
        color="#4c78a8",
        edgecolor="white",
        linewidth=0.6,
        label="share of documents",
    )
    axis.stairs(
        [100 * one["tokens"] / total for one in bins],
        [*left, bins[-1]["to"] + 1] if bins else [1, 2],
        color="#e4572e",
        linewidth=1.6,
        label="share of tokens",
    )
    axis.axvline(context_length, color="0.35", linestyle="--", linewidth=1, label=f"a row: {context_length:,} tokens")
    axis.set_xscale("log", base=2)
    axis.set_xlim(min(span[0], context_length) / 1.2, max(span[1], context_length) * 1.2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.tick_params(axis="x", labelsize=8)
    axis.tick_params(axis="x", which="minor", bottom=False)
    axis.set_ylabel("share (%)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_title(_title(name, lengths, n), fontsize=9, loc="left")


def _title(name: str, lengths: dict, n: int) -> str:
    if not n:
        return f"{name}: no documents"
    return f"{name}: {n:,} document{'s' * (n > 1)}, median {lengths['median']:,.0f}, longest {lengths['longest']['tokens']:,} tokens"
