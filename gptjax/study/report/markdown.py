"""Blocks as Markdown, for a repository or an issue; pictures are files beside it."""

import html
import re

from gptjax.pages.blocks import Bullets, Cell, Code, Figure, Folded, Link, Notice, Paragraph, Section, Table


def text(title: str, sections: list[Section], pictures: dict[str, str]) -> str:
    """`pictures`: name -> path of a PNG, as seen from the Markdown file."""
    parts = [f"# {_escaped(title)}"]
    for section in sections:
        parts.append(f"{'#' * section.level} {_escaped(section.title)}")
        parts += [_block(block, pictures) for block in section.blocks]
    return "\n\n".join(parts) + "\n"


def _block(block, pictures: dict[str, str]) -> str:
    match block:
        case Paragraph(words):
            return _escaped(words)
        case Notice(words, _):
            return f"> **{_escaped(words)}**"
        case Bullets(items):
            return "\n".join(f"- {_escaped(item)}" for item in items)
        case Code(words):
            fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", words)), default=0))
            return f"{fence}\n{words}\n{fence}"
        case Table():
            return _table(block)
        case Folded(summary, inner):
            line = html.escape(_escaped(summary), quote=False)
            return f"<details>\n<summary>{line}</summary>\n\n{_block(inner, pictures)}\n\n</details>"
        case Figure(name, caption):
            return f"![{_escaped(caption)}]({pictures[name]})\n\n*{_escaped(caption)}*"


def _table(table: Table) -> str:
    rules = ["---" if table.is_words(i) else "---:" for i in range(len(table.header))]
    lines = [_row(table.header), f"|{'|'.join(rules)}|", *(_row(row) for row in table.rows)]
    return "\n".join([*([f"{_escaped(table.caption)}\n"] if table.caption else []), *lines])


def _row(cells: list[Cell]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(cell: Cell) -> str:
    if isinstance(cell, Link):
        return f"[{_escaped(cell.text)}]({cell.target.replace(' ', '%20')})"
    return _escaped(cell)


def _escaped(words: str) -> str:
    """What Markdown would read as its own marks; a line break ends no paragraph and no row of a table."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(words.split()))
