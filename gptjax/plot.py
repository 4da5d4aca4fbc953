"""Loss curves of runs, read from their metrics.jsonl: python -m gptjax.plot --out=loss.png RUN [RUN ...]

Needs matplotlib: pip install 'gptjax[notebooks]'.
"""

import argparse
import sys

from gptjax import metrics, rundir
from gptjax.errors import UserError


def loss_curves(workdirs: list[str], out: str) -> None:
    """A picture at `out`: training loss (thin) and held-out loss with two standard errors (dots) against tokens.

    Raises UserError: a directory that is no run, no matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("loss curves need matplotlib; pip install 'gptjax[notebooks]'.") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    for workdir in workdirs:
        directory = rundir.open_run(workdir)
        directory.config()  # raises UserError if this is no run
        train = metrics.read_metrics(directory.metrics, "train")
        held_out = [row for row in metrics.read_metrics(directory.metrics, "eval") if "loss" in row]
        tokens_at = {row["step"]: row["tokens"] for row in train}
        [line] = axes.plot(
            [row["tokens"] for row in train], [row["loss"] for row in train], linewidth=0.7, alpha=0.5, label="training"
        )
        axes.errorbar(
            [tokens_at[row["step"]] for row in held_out],
            [row["loss"] for row in held_out],
            yerr=[2 * row["standard_error"] for row in held_out],
            fmt="o-",
            markersize=3,
            linewidth=1.2,
            color=line.get_color(),
            label=f"{directory.path.name}, held out: {held_out[-1]['loss']:.3f}" if held_out else directory.path.name,
        )
    axes.set(xlabel="tokens", ylabel="loss (nats per token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=120)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m gptjax.plot", description="Loss curves of runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory")
    parser.add_argument("--out", required=True, help="the picture: .png, .svg or .pdf")
    args = parser.parse_args()
    try:
        loss_curves(args.runs, args.out)
    except UserError as error:
        print(f"gptjax: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
