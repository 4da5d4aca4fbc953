"""Files cut into passages, for an index: at empty lines first, then at ends of sentences, then between words.

A passage says where it comes from, so that a reader finds what an answer cites.
"""

import pathlib
import re
from typing import NamedTuple

from gptjax.errors import UserError

LENGTH = 800  # characters of a passage at most: some 200 tokens of English
SUFFIXES = (".txt", ".md", ".rst", ".html.md")
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
_WORD = re.compile(r"\s+")


class Passage(NamedTuple):
    text: str
    source: str  # the file, as it was named
    line: int  # of its first character, from 1

    @property
    def place(self) -> str:
        return f"{self.source}:{self.line}"


def read(paths: list[str]) -> list[Passage]:
    """The passages of files, and of the texts (.txt, .md, .rst) in folders by name. Raises UserError: a file that is no
    UTF-8 text, or nothing but spaces in all of them."""
    passages = []
    for file in [file for path in paths for file in _files(path)]:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} cannot be read as UTF-8 text: {error}.") from error
        passages += cut(text, str(file))
    if not passages:
        raise UserError(f"there is no text in {', '.join(paths)}.")
    return passages


def _files(path: str) -> list[pathlib.Path]:
    here = pathlib.Path(path)
    if not here.exists():
        raise UserError(f"{path} is not there; give text files, or folders of them.")
    if not here.is_dir():
        return [here]
    found = sorted(file for file in here.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not found:
        raise UserError(f"{path} has no file that ends in {', '.join(SUFFIXES[:3])}.")
    return found


def cut(text: str, source: str, length: int = LENGTH) -> list[Passage]:
    """Passages of at most so many characters, which together hold all of the text but spaces between them."""
    passages = []
    for start, stop in _spans(text, 0, len(text), length, (_PARAGRAPH, _SENTENCE, _WORD)):
        body = text[start:stop]
        first = start + len(body) - len(body.lstrip())
        if body.strip():
            passages.append(Passage(body.strip(), source, text.count("\n", 0, first) + 1))
    return passages


def _spans(text: str, start: int, stop: int, length: int, separators) -> list[tuple[int, int]]:
    """(start, stop) of neighbouring pieces, each as long as it may be, cut at the coarsest separator that does."""
    size = lambda start, stop: len(text[start:stop].strip())  # noqa: E731
    if size(start, stop) <= length:
        return [(start, stop)]
    if not separators:
        return [(at, min(at + length, stop)) for at in range(start, stop, length)]
    ends = [*(match.end() for match in separators[0].finditer(text, start, stop) if match.end() > start), stop]
    spans, first, last = [], start, start
    for end in ends:
        if last > first and size(first, end) > length:
            spans.append((first, last))
            first = last
        if size(first, end) > length:
            spans += _spans(text, first, end, length, separators[1:])
            first = end
        last = end
    return spans + ([(first, last)] if last > first else [])
