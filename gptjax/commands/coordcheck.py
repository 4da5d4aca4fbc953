"""`gptjax coordcheck`: how it is asked for, its table and its picture. What is measured: coordcheck.py."""

import dataclasses
import json
import math
import pathlib

from gptjax import start
from gptjax.commands import flags
from gptjax.config import bounds
from gptjax.config.extras import library
from gptjax.errors import UserError, choose
from gptjax.storage import outputs
from gptjax.terminal import Progress, finite


def add_flags(parser) -> None:
    flags.add_config_flag(parser)
    parser.add_argument(
        "--widths",
        default="64,128,256,512,1024",
        metavar="D,D",
        help="the widths to compare, multiples of the head size (default: %(default)s)",
    )
    parser.add_argument(
        "--depths",
        metavar="N,N",
        help="compare instead: these numbers of layers, at the config's width, as completep scales them",
    )
    parser.add_argument(
        "--form", metavar="NAME", help="mup | completep (default: the config's; mup, completep for depths)"
    )
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="optimizer steps (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=4, metavar="B", help="sequences in a step (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--out", metavar="PICTURE", help="also draw a picture: a .png, .svg or .pdf file; needs '.[study]'"
    )


def sizes(args) -> list[int]:
    """Raises UserError: no list of at least two whole numbers."""
    name, text = ("--depths", args.depths) if args.depths is not None else ("--widths", args.widths)
    words = text.split(",")
    if not all(map(bounds.whole_number, words)) or len(set(words)) < 2:
        raise UserError(f"{name}={text}: expected at least two sizes, as in {name}=64,128,256.")
    return sorted({int(word) for word in words})


def run(args) -> int:
    """0 if the parametrisation is flat in every part, else 1."""
    config = flags.load_config(args)
    chosen, of_depth = sizes(args), args.depths is not None  # wrong ones are said before JAX starts
    start.refuse_several("coordcheck")
    start.start_jax(config)
    form = _form(args, config, of_depth)
    if args.steps < 1 or args.rows < 1:
        raise UserError(f"--steps={args.steps} and --rows={args.rows}: both must be at least 1.")
    if not config.model.has_attention:
        raise UserError(
            f"coordcheck compares parametrizations of transformers; model.architecture={config.model.architecture!r} has only one."
        )
    if args.out is not None:
        _check_picture(args.out)
    from gptjax.diagnostics import coordcheck

    progress = Progress()
    found = coordcheck.check(config, form, chosen, args.steps, args.rows, of_depth, progress.message)
    slopes = coordcheck.slopes(found)
    flat = all(slope.flat for slope in slopes if slope.form == form)
    if args.out is not None:
        draw(found, slopes, form, of_depth, args.out)
    if args.json:
        measured = [dataclasses.asdict(one) for one in found]
        known = [dataclasses.asdict(slope) | {"flat": slope.flat} for slope in slopes]
        print(json.dumps(finite({"form": form, "flat": flat, "slopes": known, "measured": measured}), indent=2))
    else:
        print(table(found, slopes, form, of_depth))
    return 0 if flat else 1


def _form(args, config, of_depth: bool) -> str:
    default = config.model.parametrization if config.model.parametrization != "standard" else "mup"
    form = args.form or ("completep" if of_depth else default)
    return choose({"mup": "mup", "completep": "completep"}, form, "--form")


def _check_picture(path: str) -> None:
    """Raises UserError before minutes of training, not after."""
    if pathlib.Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--out={path} does not name a picture; use a name that ends in .png, .svg or .pdf.")
    library("matplotlib", "--out", otherwise=", or leave it out")
    outputs.check_file("--out", path)


def table(found, slopes, form: str, of_depth: bool) -> str:
    """Change of each part after the last step, at each size, in both forms; slopes; the verdict."""
    last = max(one.step for one in found)
    known = {(one.form, one.part, one.size): one.change for one in found if one.step == last}
    columns = sorted({one.size for one in found})
    lines = [f"RMS change of each part's output after {last} steps, by {'depth' if of_depth else 'width'}"]
    for name in (form, "standard"):
        lines += ["", f"{name:<18}" + "".join(f"{size:>10}" for size in columns) + "     slope"]
        for slope in (one for one in slopes if one.form == name):
            cells = "".join(f"{known[name, slope.part, size]:>10.3g}" for size in columns)
            lines.append(f"  {slope.part:<16}{cells}{slope.slope:>10.2f}  {_said(slope)}")
    return "\n".join([*lines, "", verdict(slopes, form)])


def _said(slope) -> str:
    if math.isnan(slope.slope):
        return "not finite"
    return "flat" if slope.flat else "GROWS" if slope.slope > 0 else "SHRINKS"


def verdict(slopes, form: str) -> str:
    """One line for each form."""
    said = []
    for name in (form, "standard"):
        bad = [slope for slope in slopes if slope.form == name and not slope.flat]
        worst = max(bad, key=lambda slope: abs(slope.slope) if math.isfinite(slope.slope) else math.inf, default=None)
        where = "" if worst is None else f": {worst.part} goes as size^{worst.slope:.2f}, {len(bad)} parts in all"
        said.append(f"{name}: {'flat' if worst is None else 'NOT flat'}{where}")
    return "\n".join(said)


def draw(found, slopes, form: str, of_depth: bool, path: str) -> None:
    """A panel for each form: change against size, a line a part."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    last = max(one.step for one in found)
    names = list(dict.fromkeys(slope.part for slope in slopes))
    figure, panels = pyplot.subplots(1, 2, figsize=(8.4, 3.6), sharey=True, constrained_layout=True)
    colours = pyplot.get_cmap("viridis")([i / max(1, len(names) - 1) * 0.92 for i in range(len(names))])
    for axes, name in zip(panels, (form, "standard")):
        for part, colour in zip(names, colours):
            points = sorted((o.size, o.change) for o in found if (o.form, o.part, o.step) == (name, part, last))
            axes.plot(*zip(*points), "o-", color=colour, label=part, markersize=3.5, linewidth=1.2)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(*[sorted({one.size for one in found})] * 2)
        axes.minorticks_off()
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("layers" if of_depth else "width", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"RMS change after {last} steps", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=7.5, frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
