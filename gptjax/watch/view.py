"""What a page shows at one moment, before it is HTML or JSON."""

import dataclasses
import html
import time

from gptjax import terminal


@dataclasses.dataclass(frozen=True)
class View:
    """parts: name -> HTML, in the order of the page; the part "charts" is where the charts stand. going_on: whether a
    process trains now. marks: vertical lines in charts over steps. ended: why nothing more is to come, as "the run is done"; ""
    where more can come."""

    title: str
    parts: dict[str, str]
    charts: list[dict]
    going_on: bool
    marks: list[dict] = dataclasses.field(default_factory=list)
    ended: str = ""


def escaped(words) -> str:
    return html.escape(str(words))


def badge(state: str) -> str:
    return f'<span class="state {state.replace(" ", "-")}">{escaped(state)}</span>'


def progress(fraction: float) -> str:
    return f'<progress max="1" value="{fraction:.4f}">{fraction:.0%}</progress>'


def tiles(shown: dict[str, str]) -> str:
    """A few numbers in large type: {what: number}."""
    cells = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in shown.items())
    return f'<dl class="tiles">{cells}</dl>'


def facts(shown: dict[str, str]) -> str:
    cells = "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in shown.items())
    return f'<dl class="facts">{cells}</dl>'


def section(title: str, inner: str) -> str:
    return f"<section><h2>{escaped(title)}</h2>\n{inner}</section>" if inner else ""


def clock(seconds: float | None) -> str:
    """Of time.time(), in UTC."""
    return "–" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def shares(seconds: dict[str, float], order: tuple[str, ...]) -> str:
    """A bar of so many parts, and a table of them. order: of all that there can be, each with its colour of page.css."""
    total = sum(seconds.values())
    bar = "".join(
        f'<span class="colour-{order.index(what)}" style="width:{100 * value / total:.2f}%"></span>'
        for what, value in seconds.items()
    )
    rows = "".join(
        f'<tr><td class="words"><span class="swatch colour-{order.index(what)}"></span>{escaped(what)}</td>'
        f"<td>{duration(value)}</td><td>{value / total:.1%}</td></tr>"
        for what, value in seconds.items()
    )
    return f'<div class="shares">{bar}</div>\n<div class="wide"><table><tbody>{rows}</tbody></table></div>'


def duration(seconds: float) -> str:
    """3:07:05, 4:32, or 1.3 s."""
    return f"{seconds:.1f} s" if seconds < 10 else terminal.duration(seconds)
