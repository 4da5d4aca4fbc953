"""GET /quality: what the models of a server have said in the last week, beside the reference, as one page without a script."""

import base64
import hashlib
import html as escaping
import math
import time

from gptjax.pages import page, style
from gptjax.pages.blocks import Notice, Paragraph, Table
from gptjax.serve import answer_measures, drift

CSS = """
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem 2rem; margin-top: 1rem }
.charts h3 { margin: 0; font-size: .9375rem; font-weight: 600 }
.charts svg { display: block; width: 100%; height: auto }
.charts text { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums }
.now { fill: var(--link) }
.before { fill: none; stroke: var(--ink); stroke-width: 1.5 }
.base { stroke: var(--line) }
.key { color: var(--soft); font-size: .875rem }
.key i { display: inline-block; width: .8rem; height: .8rem; vertical-align: -.05rem; margin: 0 .3rem 0 .8rem }
.key .filled { background: var(--link) }
.key .line { border: 1.5px solid var(--ink) }
@media (max-width: 40rem) { td.words { white-space: normal; min-width: 9rem } }
""".lstrip()
WIDTH, HEIGHT, FOOT = 340, 120, 18  # of a chart, units


def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(f"\n{style.CSS}\n{CSS}".encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


HEADERS = {
    "Content-Security-Policy": _policy(),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def html(window: dict, reference: dict | None, drifts: dict, since: float) -> str:
    """window: model -> quality.Counts of the last days. reference, drifts: as quality.Quality gives them. since: seconds since
    1970 at which the server began."""
    parts = ["<h1>Answers in service</h1>", page.block(Paragraph(_about(reference, since)))]
    if not window:
        parts.append(page.block(Paragraph("Nothing has been answered yet.")))
    for model in sorted(window):
        before = reference["models"].get(model) if reference and reference["complete"] else None
        parts += _model(model, window[model], before, drifts.get(model, {}))
    return style.document("Answers in service", "\n".join(parts), CSS)


def _about(reference: dict | None, since: float) -> str:
    words = f"The last seven days of this server, which began at {_time(since)}. "
    if reference is None:
        return words + "There is no reference to compare with: give the server --quality_reference=FILE."
    if not reference["complete"]:
        return words + f"Since {_time(reference['from'])} a reference is recorded; it is complete after a week."
    return words + f"The reference is of {_time(reference['from'])} to {_time(reference['to'])}."


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _model(model: str, counts, before, drifts: dict[str, drift.Drift]) -> list[str]:
    parts = [f"<h2>{escaping.escape(model)}</h2>"]
    if drifts:
        moved = [answer_measures.MEASURES[name].words for name, one in drifts.items() if one.is_notable]
        words = f"Differs from the reference in: {'; '.join(moved)}." if moved else "No drift from the reference."
        parts.append(page.block(Notice(words, good=not moved)))
    ends = ", ".join(f"{reason} {count:,}" for reason, count in counts.reasons.most_common())
    parts.append(page.block(Paragraph(f"{counts.reasons.total():,} answers, by how they ended: {ends}.")))
    parts.append(page.block(_table(counts, before, drifts)))
    charts = [_chart(name, counts.bins[name], before and before.bins[name]) for name in _charted(counts)]
    shown = '<i class="filled"></i>last seven days' + ('<i class="line"></i>reference' if before else "")
    return [*parts, f'<p class="key">Shares of answers:{shown}</p>', f'<div class="charts">{"".join(charts)}</div>']


def _charted(counts) -> list[str]:
    return [name for name, one in answer_measures.MEASURES.items() if not one.per_cent and sum(counts.bins[name])]


def _table(counts, before, drifts: dict) -> Table:
    rows = []
    for name, measure in answer_measures.MEASURES.items():
        here, there = (_number(name, measure, side) if side else "-" for side in (counts, before))
        one = drifts.get(name)
        moved = ["-", "-"] if one is None else [f"{one.psi:.3f}", f"{max(drift.NOTABLE, one.chance):.3f}"]
        rows.append([measure.words, f"{sum(counts.bins[name]):,}", here, there, *moved])
    surprise = [side.mean("surprise") if side else None for side in (counts, before)]
    perplexity = ["-" if value is None else f"{math.exp(value):.3g}" for value in surprise]
    rows.append(["perplexity of answers (of that mean)", f"{sum(counts.bins['surprise']):,}", *perplexity, "-", "-"])
    return Table(["mean", "answers", "week", "reference", "drift (PSI)", "notable above"], rows)


def _number(name: str, measure: answer_measures.Measure, counts) -> str:
    value = counts.mean(name)
    if value is None:
        return "-"
    return f"{value:.1%}" if measure.per_cent or name in ("distinct_2", "repeated") else f"{value:.3g}"


def _chart(name: str, counts: list[int], before: list[int] | None) -> str:
    measure = answer_measures.MEASURES[name]
    shares = [[count / (sum(side) or 1) for count in side] for side in (counts, before) if side]
    top = max(max(side) for side in shares) or 1.0
    step, floor = WIDTH / measure.bins, HEIGHT - FOOT
    bars, outline = "", ""
    for i, share in enumerate(shares[0]):
        height = share / top * (floor - 14)
        bars += f'<rect class="now" x="{i * step + 1:.1f}" y="{floor - height:.1f}" width="{step - 2:.1f}" height="{height:.1f}"/>'
    for i, share in enumerate(shares[1] if len(shares) > 1 else []):
        outline += f"{'L' if i else 'M'}{i * step:.1f} {floor - share / top * (floor - 14):.1f}h{step:.1f}"
    marks = "".join(_mark(i, edge, step) for i, edge in enumerate(measure.edges))
    words = escaping.escape(measure.words)
    return (
        f'<section><h3>{words}</h3><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_said(measure, shares)}">'
        f'<text x="0" y="10">{top:.0%}</text>{bars}<path class="before" d="{outline or "M0 0"}"/>'
        f'<path class="base" d="M0 {floor}h{WIDTH}"/>{marks}</svg></section>'
    )


def _mark(i: int, edge: float, step: float) -> str:
    """An edge of a bin, of those that have room: a bin ends with it."""
    if step < 28 and i % 2:
        return ""
    return f'<text x="{(i + 1) * step:.1f}" y="{HEIGHT - 4}" text-anchor="middle">{edge:g}</text>'


def _said(measure: answer_measures.Measure, shares: list[list[float]]) -> str:
    """The bars in words."""
    edges = [f"to {edge:g}" for edge in measure.edges] + ["above"]
    return escaping.escape(", ".join(f"{edge}: {share:.0%}" for edge, share in zip(edges, shares[0]) if share))
