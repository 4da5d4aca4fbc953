"""Blocks as one HTML page that needs nothing else: no script, no font, no picture outside it."""

import base64
import html

from gptjax.study.report.blocks import Bullets, Cell, Code, Figure, Folded, Link, Notice, Paragraph, Section, Table

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --soft: #5c5c5c; --line: #d8d8d8; --paper: #fff; --tint: #f6f6f4;
  --good: #2a7d4f; --bad: #b4531a; --link: #1f5fa8 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #a5a5a5; --line: #3c3c3c; --paper: #181818;
  --tint: #222; --good: #63c491; --bad: #f0965a; --link: #8ab8ee } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0 auto; max-width: 66rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 1rem }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .5rem; border-top: 1px solid var(--line) }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .4rem }
p, ul { margin: .5rem 0; max-width: 46rem }
a { color: var(--link) }
nav { font-size: .9rem; color: var(--soft); margin-bottom: 1rem }
nav a { margin-right: .9rem; white-space: nowrap; text-decoration: none }
.notice { border-left: 4px solid var(--bad); background: var(--tint); padding: .55rem .8rem; font-weight: 600 }
.notice.good { border-color: var(--good) }
.wide { overflow-x: auto; margin: .8rem 0 }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.35; font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--soft); padding-bottom: .3rem }
th, td { padding: .22rem .7rem .22rem 0; text-align: right; vertical-align: top; white-space: nowrap }
th { font-weight: 600; border-bottom: 1px solid var(--ink); vertical-align: bottom; white-space: normal }
td { border-bottom: 1px solid var(--line) }
.words { text-align: left }
td.words { white-space: normal; min-width: 6rem }
td.words:first-child { white-space: nowrap }
figure { margin: 1.2rem 0 }
figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 3px }
figcaption { font-size: .875rem; color: var(--soft); margin-top: .4rem; max-width: 46rem }
pre { overflow-x: auto; background: var(--tint); padding: .6rem .8rem; font-size: .8125rem }
summary { cursor: pointer; color: var(--link); margin: .5rem 0 }
@media (max-width: 40rem) { figure div { overflow-x: auto } figure img { max-width: none; width: 33rem } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; color: #000; background: #fff }
  nav { display: none } h2, h3, caption { break-after: avoid } figure, tr, .notice { break-inside: avoid }
  .wide { overflow: visible } td.words:first-child { white-space: normal } table { font-size: 7.5pt } th, td { padding-right: .4rem } pre { white-space: pre-wrap }
  figure img { max-width: 14cm } a { color: inherit; text-decoration: none } }
""".strip()


def text(title: str, sections: list[Section], pictures: dict[str, bytes]) -> str:
    """`pictures`: name -> SVG."""
    parts = [f"<h1>{html.escape(title)}</h1>", _contents(sections)]
    for number, section in enumerate(sections):
        parts.append(f'<h{section.level} id="s{number}">{html.escape(section.title)}</h{section.level}>')
        parts += [_block(block, pictures) for block in section.blocks]
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{html.escape(title)}</title>\n'
        f"<style>\n{_STYLE}\n</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def _contents(sections: list[Section]) -> str:
    links = [
        f'<a href="#s{number}">{html.escape(section.title)}</a>'
        for number, section in enumerate(sections)
        if section.level == 2
    ]
    return f"<nav>{' '.join(links)}</nav>"


def _block(block, pictures: dict[str, bytes]) -> str:
    match block:
        case Paragraph(words):
            return f"<p>{html.escape(words)}</p>"
        case Notice(words, good):
            return f'<p class="notice{" good" if good else ""}">{html.escape(words)}</p>'
        case Bullets(items):
            return "<ul>\n" + "\n".join(f"<li>{html.escape(item)}</li>" for item in items) + "\n</ul>"
        case Code(words):
            return f"<pre>{html.escape(words)}</pre>"
        case Table():
            return _table(block)
        case Folded(summary, inner):
            return f"<details><summary>{html.escape(summary)}</summary>\n{_block(inner, pictures)}\n</details>"
        case Figure(name, caption):
            source = f"data:image/svg+xml;base64,{base64.b64encode(pictures[name]).decode()}"
            words = html.escape(caption)
            return f'<figure><div><img alt="{words}" src="{source}"></div>\n<figcaption>{words}</figcaption></figure>'


def _table(table: Table) -> str:
    head = "".join(f"<th{_kind(table, i)}>{html.escape(name)}</th>" for i, name in enumerate(table.header))
    rows = ["<tr>" + "".join(_cell(table, i, cell) for i, cell in enumerate(row)) + "</tr>" for row in table.rows]
    caption = f"<caption>{html.escape(table.caption)}</caption>\n" if table.caption else ""
    body = "\n".join(rows)
    return (
        f'<div class="wide"><table>\n{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _kind(table: Table, column: int) -> str:
    return ' class="words"' if table.is_words(column) else ""


def _cell(table: Table, column: int, cell: Cell) -> str:
    words = html.escape(str(cell))
    if isinstance(cell, Link):
        words = f'<a href="{html.escape(cell.target.replace(" ", "%20"))}">{words}</a>'
    return f"<td{_kind(table, column)}>{words}</td>"
