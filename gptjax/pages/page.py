"""Blocks as one HTML page that needs nothing else: no script, no font, no picture outside it."""

import base64
import html
import types

from gptjax.pages import style
from gptjax.pages.blocks import Block, Bullets, Cell, Code, Figure, Folded, Link, Notice, Paragraph, Section, Table

PROSE = 28  # letters of a cell: longer ones may take several lines


def text(title: str, sections: list[Section], pictures: dict[str, bytes]) -> str:
    """`pictures`: name -> SVG."""
    parts = [f"<h1>{html.escape(title)}</h1>", _contents(sections)]
    for number, section in enumerate(sections):
        parts.append(f'<h{section.level} id="s{number}">{html.escape(section.title)}</h{section.level}>')
        parts += [block(one, pictures) for one in section.blocks]
    return style.document(title, "\n".join(parts))


def _contents(sections: list[Section]) -> str:
    links = [
        f'<a href="#s{number}">{html.escape(section.title)}</a>'
        for number, section in enumerate(sections)
        if section.level == 2
    ]
    return f"<nav>{' '.join(links)}</nav>"


def block(one: Block, pictures: dict[str, bytes] = types.MappingProxyType({})) -> str:
    """The HTML of a block."""
    match one:
        case Paragraph(words):
            return f"<p>{html.escape(words)}</p>"
        case Notice(words, good):
            return f'<p class="notice{" good" if good else ""}">{html.escape(words)}</p>'
        case Bullets(items):
            return "<ul>\n" + "\n".join(f"<li>{html.escape(item)}</li>" for item in items) + "\n</ul>"
        case Code(words):
            return f"<pre>{html.escape(words)}</pre>"
        case Table():
            return _table(one)
        case Folded(summary, inner):
            return f"<details><summary>{html.escape(summary)}</summary>\n{block(inner, pictures)}\n</details>"
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
    kind = (
        ' class="words prose"' if column and table.is_words(column) and len(str(cell)) > PROSE else _kind(table, column)
    )
    return f"<td{kind}>{words}</td>"
