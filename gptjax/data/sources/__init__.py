"""Where documents come from: a source is a name in text_kinds.SOURCES, and gives the same documents in the same order each time.

`documents(config)` streams them, one in memory at a time; `identity(config)` says in a small dict which text that
is, so that tokens made from it can be found again. `units(config)` are parts that processes read alone with `read`;
together, in order, they are the documents, whatever their size. Text is taken as it stands: no newline, space or
byte-order mark is changed. Whatever cannot be read is a UserError with the file and the line, byte, row or record, given
to on_error, which raises it (as that of `documents` does, if no other is given) or counts it, as Omissions do, and has
the reading go on behind it.

    records         what a source is made of: Documents, Units, and what becomes of what cannot be read
    files           files of a source, and their units
    packing         packed files, unpacked by their first bytes
    text, jsonl, columns, arrays, warc      the sources: plain files, JSON lines, tables, records by number, web archives
    markup          whether a text is HTML, and in which encoding
    spec            a source in one word

A SPEC is a source in one word, such as "jsonl:gs://bucket/c4/*.gz" or "tfds:lm1b@test". Which there are, and
how to add one: text_kinds.py.
"""

import itertools
import sys
from collections import deque
from collections.abc import Iterator

import numpy as np

from gptjax.config import chat_checks, text_kinds
from gptjax.config.fields import DataConfig
from gptjax.data.rows.hashing import permute
from gptjax.data.sources.records import Document, OnError, Source, Unit, left_out, not_tokenised, number_left_out
from gptjax.data.sources.spec import from_spec, kind_of_path, naming_field
from gptjax.errors import UserError, choose, imported

__all__ = [
    "Document",
    "Omissions",
    "OnError",
    "Source",
    "Unit",
    "documents",
    "from_spec",
    "identity",
    "left_out",
    "naming_field",
    "not_tokenised",
    "number_left_out",
    "read",
    "spread_documents",
    "units",
    "whole_documents",
]

UNIT_BYTES = 64 << 20
_SPREAD_BYTES = 1 << 20  # of a unit, where documents are taken from all over
_SPREAD_UNITS = 64  # read in turns


class Omissions:
    """An on_error that has the reading go on: what is left out is counted, and the first of it named."""

    def __init__(self, said: bool):
        """said: on stderr too, as it comes."""
        self._said = said
        self.count, self.messages = 0, []

    def __call__(self, error: UserError) -> None:
        self.count += number_left_out(error)
        if len(self.messages) < _NAMED:
            self.messages.append(str(error))
            if self._said and len(self.messages) <= _SAID:
                print(f"left out: {error}", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Says how many there were, if not all were named."""
        if self._said and self.count > min(len(self.messages), _SAID):
            print(f"left out: {self.count:,} documents in all that could not be read", file=sys.stderr, flush=True)


_NAMED, _SAID = 100, 5


def documents(config: DataConfig, omissions: Omissions | None = None) -> Iterator[str]:
    """Raises UserError: an unknown source, nothing at data.path, text that cannot be read; with omissions the last goes
    to them, and is raised only if there is no document."""
    yield from (document.text for document in whole_documents(config, omissions))


def whole_documents(config: DataConfig, omissions: Omissions | None = None) -> Iterator[Document]:
    """As documents, with all that is known of each, such as the conversation where data.chat is set."""
    on_error = _raise if omissions is None else omissions
    made = (document for unit in units(config) for document in read(config, unit, on_error))
    yield from made if omissions is None else _or_why_none(made, omissions)


def spread_documents(config: DataConfig) -> Iterator[str]:
    """The documents in another order, the same each time, in which the first ones are from all over the source.

    What cannot be read is left out, named and counted on stderr. Raises UserError as documents does with omissions.
    """
    omissions = Omissions(said=True)
    try:
        yield from _or_why_none(_spread(config, omissions), omissions)
    finally:
        omissions.end()


def _or_why_none(made: Iterator, omissions: Omissions) -> Iterator:
    one = None
    for one in made:
        yield one
    if one is None and omissions.messages:
        raise UserError(omissions.messages[0])


def _spread(config: DataConfig, on_error: OnError) -> Iterator[str]:
    parts = units(config, _SPREAD_BYTES)
    order = deque(parts[i] for i in permute(np.arange(len(parts)), len(parts), 0, 0)) if parts else deque()
    reading = deque()
    while order or reading:
        if order and len(reading) < _SPREAD_UNITS:
            reading.append(read(config, order.popleft(), on_error))
            continue
        unit = reading.popleft()
        for document in itertools.islice(unit, 1):
            yield document.text
            reading.append(unit)


def _raise(error: UserError) -> None:
    raise error


def identity(config: DataConfig) -> dict:
    """JSON values that change when the text does. Raises UserError: an unknown source, nothing at data.path."""
    return {"source": source_name(config)} | _source(config).identity(config)


def units(config: DataConfig, unit_bytes: int = UNIT_BYTES) -> list[Unit]:
    """Parts of about unit_bytes (as they lie on disk), in order. Raises UserError as identity does."""
    assert unit_bytes > 0
    return _source(config).units(config, unit_bytes)


def read(config: DataConfig, unit: Unit, on_error: OnError) -> Iterator[Document]:
    """The unit's documents. on_error is called for whatever is left out: a bad line, or all of a damaged file's rest."""
    return _code(unit.source).read(config, unit, on_error)


def source_name(config: DataConfig) -> str:
    """data.source; where data.path stands beside the default source, the kind that its ending says, or else text."""
    return kind_of_path(config.path) if config.source == "corpus" and config.path is not None else config.source


def _source(config: DataConfig) -> Source:
    name = source_name(config)
    kind = text_kinds.SOURCES.get(name)
    if config.chat is not None and kind is not None and not kind.records:
        raise UserError(
            f"{config.path or name} is read as text ({name}), but data.chat={config.chat!r} needs conversations: of"
            f" {chat_checks.with_records()}."
        )
    return _code(name, config.path)


def _code(name: str, path: str | None = None) -> Source:
    """Imported now, since it is chosen. Raises UserError: there is no such source, or it has no text."""
    kind = choose(text_kinds.SOURCES, name, "data.source")
    if kind.code is None:
        raise UserError(f"data.path={path} was made by gptjax prepare: it holds tokens instead of text.")
    return imported(kind.code, f"data.source={name!r}")
