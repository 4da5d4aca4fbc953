"""Loss curves of runs, read from their metrics.jsonl: python -m gptjax.plot --out=loss.png RUN [RUN ...]

With --by_source: bits per byte of the held-out text of each source of one run. Needs matplotlib: pip install 'gptjax[study]'.
"""

import argparse
import io
import itertools
import pathlib
import sys

from etils import epath

from gptjax import schedule
from gptjax.config.extras import library
from gptjax.errors import UserError
from gptjax.rundir import metrics, run_directory
from gptjax.storage import outputs

KINDS = (".png", ".svg", ".pdf")


def loss_curves(workdirs: list[str], out: str) -> None:
    """A picture at `out`: training loss (thin) and held-out loss with two standard errors (dots) against tokens.

    Raises UserError: a directory that is no run, no matplotlib.
    """
    runs = [_read(workdir) for workdir in workdirs]
    figure, axes = _figure()
    for name, (_, config, train, held_out) in zip(names_apart([str(run[0].path) for run in runs]), runs):
        [line] = axes.plot(
            [row["tokens"] for row in train],
            [float(row["loss"]) for row in train],
            linewidth=0.7,
            alpha=0.5,
            label=f"{name}, training",
        )
        if not held_out:
            continue
        axes.errorbar(
            [schedule.tokens_before(config, row["step"]) for row in held_out],
            [float(row["loss"]) for row in held_out],
            yerr=[2 * float(row["standard_error"]) for row in held_out],
            fmt="o-",
            markersize=3,
            linewidth=1.2,
            color=line.get_color(),
            label=f"{name}, held out: {float(held_out[-1]['loss']):.3f}",
        )
    axes.set(xlabel="tokens", ylabel="loss (nats per token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, out)


def names_apart(paths: list[str]) -> list[str]:
    """A short name for each path, no two alike: as many of its last parts as that takes; of one that is given twice, twice
    the same."""
    for length in itertools.count(1):
        names = ["/".join(path.split("/")[-length:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names


def source_curves(workdir: str, out: str) -> None:
    """A picture at `out`: bits per byte of each source's held-out text, with two standard errors, against tokens.

    Raises UserError: a directory that is no run, a run whose text has one source, no matplotlib.
    """
    figure, axes = _figure()
    directory, config, _, held_out = _read(workdir)
    names = [key.partition("/")[2] for key in (held_out[-1] if held_out else {}) if key.startswith("bits_per_byte/")]
    if not names:
        raise UserError(f"{workdir} has no held-out loss by source; --by_source is for a run of a data.mixture.")
    for name in sorted(names, key=lambda name: -held_out[-1][f"bits_per_byte/{name}"]):
        bits = [row[f"bits_per_byte/{name}"] for row in held_out]
        relative = [row[f"standard_error/{name}"] / row[f"loss/{name}"] for row in held_out]
        axes.errorbar(
            [schedule.tokens_before(config, row["step"]) for row in held_out],
            bits,
            yerr=[2 * error * value for error, value in zip(relative, bits)],
            fmt="o-",
            markersize=3,
            linewidth=1.2,
            label=f"{name}: {bits[-1]:.2f}",
        )
    for tokens, _ in config.data.weight_stages:
        axes.axvline(tokens, color="grey", linestyle="--", linewidth=0.8)
        axes.annotate("other weights", (tokens, axes.get_ylim()[1]), ha="right", va="top", rotation=90, fontsize=8)
    axes.set(xlabel="tokens", ylabel="bits per byte, held out", title=directory.path.name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, out)


def _read(workdir: str) -> tuple:
    """(RunDirectory, Config, training rows, held-out rows). Raises UserError: no run, or one that has logged nothing."""
    directory = run_directory.open_run(workdir)
    config = directory.config()
    if not directory.metrics.exists() or not (train := metrics.read_metrics(directory.metrics, "train")):
        raise UserError(f"{workdir} has logged no step yet; wait for the first one.")
    return directory, config, train, [row for row in metrics.read_metrics(directory.metrics, "eval") if "loss" in row]


def _save(figure, out: str) -> None:
    """Local or gs://. The same numbers give the same bytes."""
    from matplotlib import pyplot

    drawn, kind = io.BytesIO(), pathlib.PurePath(out).suffix[1:]
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with pyplot.rc_context({"svg.hashsalt": "gptjax"}):
        figure.savefig(drawn, format=kind, dpi=120, metadata=dates)
    pyplot.close(figure)
    epath.Path(out).expanduser().write_bytes(drawn.getvalue())


def _figure():
    library("matplotlib", "loss curves", verb="need").use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gptjax.plot", description="Loss curves of runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory")
    parser.add_argument("--out", required=True, help="the picture: .png, .svg or .pdf")
    parser.add_argument("--by_source", action="store_true", help="bits per byte of each source of one run")
    args = parser.parse_args()
    try:
        if args.by_source and len(args.runs) > 1:
            raise UserError(f"--by_source is for one run, and {len(args.runs)} are given.")
        if pathlib.PurePath(args.out).suffix not in KINDS:
            raise UserError(f"--out={args.out}: expected a name that ends in {', '.join(KINDS)}.")
        outputs.check_file("--out", args.out)
        source_curves(args.runs[0], args.out) if args.by_source else loss_curves(args.runs, args.out)
    except UserError as error:
        print(f"gptjax: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
