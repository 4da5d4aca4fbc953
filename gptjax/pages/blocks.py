"""What a report is made of before it is HTML or Markdown: sections of blocks. Both twins are printed from this alone."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Link:
    """Text that leads to a folder or file beside the report."""

    text: str
    target: str

    def __str__(self) -> str:
        return self.text


Cell = str | Link


@dataclasses.dataclass(frozen=True)
class Paragraph:
    text: str


@dataclasses.dataclass(frozen=True)
class Notice:
    """A sentence that has to be seen; `good` or not."""

    text: str
    good: bool


@dataclasses.dataclass(frozen=True)
class Bullets:
    items: list[str]


@dataclasses.dataclass(frozen=True)
class Code:
    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """The first column names a row, and is set to the left; so are columns of `words`."""

    header: list[str]
    rows: list[list[Cell]]
    caption: str = ""
    words: tuple[str, ...] = ()

    def is_words(self, column: int) -> bool:
        return column == 0 or self.header[column] in self.words

    def without_empty(self, none: str) -> "Table":
        """The table less the columns in which every cell says `none`."""
        kept = [i for i in range(len(self.header)) if i == 0 or any(str(row[i]) != none for row in self.rows)]
        rows = [[row[i] for i in kept] for row in self.rows]
        return dataclasses.replace(self, header=[self.header[i] for i in kept], rows=rows)


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture by the name of its files, without ending."""

    name: str
    caption: str


LONG = 24  # rows or items: more are folded


@dataclasses.dataclass(frozen=True)
class Folded:
    """What is shown when a reader asks for it: a long list or table under one line."""

    summary: str
    block: "Bullets | Table"


Block = Paragraph | Notice | Bullets | Code | Table | Figure | Folded


def folded(block: Table | Bullets, summary: str) -> Table | Bullets | Folded:
    """The block, under a line of its own where it is LONG."""
    length = len(block.rows if isinstance(block, Table) else block.items)
    return Folded(f"{summary} ({length})", block) if length > LONG else block


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    blocks: list[Block]
    level: int = 2  # of its heading
