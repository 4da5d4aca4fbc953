"""How the pictures of a study look, and their files: SVG for paper and page, a small PNG for Markdown."""

import dataclasses
import io
import math
import typing

from gptjax.config.extras import library
from gptjax.pages import numbers
from gptjax.pages.palette import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW

INK, SOFT, FAINT = "#222222", "#6b6b6b", "#bdbdbd"
KINDS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, YELLOW)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH = 5.6  # inches: a column of text and a half
PNG_DPI = 150
_COLOURS = 96  # of a PNG; more weigh more and look the same
_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "svg.hashsalt": "gptjax",  # the same numbers give the same bytes
    "svg.fonttype": "path",
    "path.simplify_threshold": 0.2,
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A matplotlib figure, under what its caption says."""

    name: str
    caption: str
    figure: typing.Any


def settings():
    """The context in which pictures are drawn and saved. Raises UserError where matplotlib is missing."""
    matplotlib = library("matplotlib", "the pictures of a report", verb="need")
    return matplotlib.rc_context(_SETTINGS)


def figure(columns: int = 1, rows: int = 1, height: float = 3.4, width: float = WIDTH, **kwargs):
    """A figure and its array of axes [rows, columns]; no window, no global state."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), layout="constrained")
    made.get_layout_engine().set(w_pad=0.06, h_pad=0.05)
    return made, made.subplots(rows, columns, squeeze=False, **kwargs)


def svg(picture: Picture) -> bytes:
    file = io.BytesIO()
    picture.figure.savefig(file, format="svg", metadata={"Date": None, "Title": picture.name})
    return file.getvalue()


def png(picture: Picture) -> bytes:
    """In few colours: a tenth of the bytes, and nothing to be seen of it."""
    from PIL import Image

    drawn, file = io.BytesIO(), io.BytesIO()
    picture.figure.savefig(drawn, format="png", dpi=PNG_DPI)
    image = Image.open(drawn).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    image.save(file, format="png", optimize=True)
    return file.getvalue()


def ordered(n: int) -> list[str]:
    """n colours from dark to light, for sizes and budgets; the palest end is left out, it is lost on paper."""
    import matplotlib
    from matplotlib.colors import to_hex

    return [to_hex(matplotlib.colormaps["viridis"](0.88 * i / max(n - 1, 1))) for i in range(n)]


def tick(value: float) -> str:
    """Of parameters or tokens: 30M, not 30.0M."""
    shown = numbers.count(value)
    digits = shown.rstrip("kMBT")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + shown[len(digits) :]


def log_axis(axes, which: str, values, shown=tick, most: int = 6) -> None:
    """`which` is x or y: logarithmic over `values`, few ticks, each labelled in full."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter

    low, high = _padded([value for value in values if value and value > 0])
    getattr(axes, f"set_{which}scale")("log")
    getattr(axes, f"set_{which}lim")(low, high)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(FixedLocator(ticks(low, high, most)))
    axis.set_minor_locator(LogLocator(base=10, subs=range(2, 10)))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: shown(value))


def loss_axis(axes, which: str, values) -> None:
    """Logarithmic, with round losses as ticks: the powers of ten are all outside."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    log_axis(axes, which, values)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:.4g}")


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within a logarithmic range: all of 1, 2, 5; else 1, 3; else powers of ten, if need be not each. A short
    range has more digits."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    few = (tuple(range(1, 10)), tuple(i / 10 for i in range(10, 100)))
    for digits in ((1, 2, 5), (1, 3), (1,)):
        found = [d * 10.0**p for p in decades for d in digits if low <= d * 10.0**p <= high]
        for more in few if len(found) < 2 else ():
            shown = [d * 10.0**p for p in decades for d in more if low <= d * 10.0**p <= high]
            found = shown[:: -(-len(shown) // most)] if len(shown) > len(found) and len(found) < 2 else found
        if len(found) <= most:
            return found
    return found[:: -(-len(found) // most)]


def _padded(values, share: float = 0.06) -> tuple[float, float]:
    low, high = math.log(min(values)), math.log(max(values))
    pad = share * (high - low) or 0.1
    return math.exp(low - pad), math.exp(high + pad)


def power(value: float) -> str:
    """Of FLOPs on an axis: 3e12 as 3 times ten to the 12."""
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = value / 10.0**exponent
    digits = f"{mantissa:.2g}"
    return f"$10^{{{exponent}}}$" if digits == "1" else rf"${digits}{{\times}}10^{{{exponent}}}$"


def legend(figure, handles, title: str | None = None, below: bool = False, columns: int = 3) -> None:
    """Outside the axes, where it covers no data."""
    if not handles:
        return
    where = dict(loc="outside lower center", ncols=columns) if below else dict(loc="outside right upper")
    figure.legend(handles=handles, title=title, alignment="left", handlelength=1.6, **where)


def smooth(x, y) -> tuple:
    """A curve through all points that overshoots none of them, monotone between (Fritsch and Carlson 1980), in ln x."""
    import numpy as np
    from scipy.interpolate import PchipInterpolator

    x, y = zip(*sorted(zip(x, y)))
    if len(x) < 3:
        return np.array(x), np.array(y)
    between = np.union1d(np.geomspace(x[0], x[-1], 60), x)
    between[0], between[-1] = x[0], x[-1]
    return between, np.exp(PchipInterpolator(np.log(x), np.log(y))(np.log(between)))


def band(axis, x, intervals80, intervals95, colour: str) -> None:
    """80% within 95%. x [n], intervals [(low, high)], where there are any."""
    for intervals, alpha in ((intervals95, 0.16), (intervals80, 0.28)):
        given = [(at, *one) for at, one in zip(x, intervals) if one is not None and None not in one]
        if len(given) > 1:
            at, low, high = zip(*given)
            between, lows = smooth(at, low)
            axis.fill_between(between, lows, smooth(at, high)[1], color=colour, alpha=alpha, linewidth=0)


def edges(axis, x, intervals95, colour: str) -> None:
    """The bounds of 95% as thin dotted lines, where bands of several laws would cover each other."""
    given = [(at, *one) for at, one in zip(x, intervals95) if one is not None and None not in one]
    if len(given) > 1:
        at, *bounds = zip(*given)
        for bound in bounds:
            axis.plot(*smooth(at, bound), ":", color=colour, linewidth=0.9, gid="95%")


def bands_key(colour: str, words: str = "80%, 95% interval"):
    """The handle of `band` in a legend."""
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, alpha=0.3, label=words)


def point_key(colour: str, words: str, marker: str = "o", **look):
    """The handle of single points in a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker=marker, markersize=4.5, color=colour, label=words, **look)


def line_key(colour: str, words: str, linestyle="-", **look):
    """The handle of a line in a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle=linestyle, color=colour, label=words, **look)


def bars(axis, at, interval80, interval95, colour: str, horizontal: bool = True) -> None:
    """80% thick, 95% thin, at one height (or place)."""
    draw = axis.hlines if horizontal else axis.vlines
    for interval, width in ((interval95, 1.1), (interval80, 3.2)):
        if interval is not None and None not in interval:
            draw(at, *interval, color=colour, linewidth=width, alpha=0.75, zorder=2)
