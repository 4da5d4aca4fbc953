"""Where documents come from: a source is a name in SOURCES, and gives the same documents in the same order each time.

`documents(config)` streams them, one in memory at a time; `identity(config)` says in a small dict which text that
is, so that tokens made from it can be found again. `units(config)` are parts that processes read alone with `read`;
together, in order, they are the documents, whatever their size. Text is taken as it stands: no newline, space or
byte-order mark is changed. Whatever cannot be read is a UserError with the file and the line, byte, row or record:
`documents` raises it; `read` gives it to on_error, which raises it or counts it and has the reading go on behind it.
A SPEC (see spec.py) is a source in one word, such as "jsonl:gs://bucket/c4/*.gz" or "tfds:lm1b@test".
"""

import itertools
from collections import deque
from collections.abc import Iterator

import numpy as np

from gptjax.config import DataConfig
from gptjax.data.hashing import permute
from gptjax.data.sources import arrays, columns, jsonl, text, warc
from gptjax.data.sources.records import Document, OnError, Source, Unit
from gptjax.data.sources.spec import from_spec, kind_of_path
from gptjax.errors import UserError, choose

__all__ = [
    "SOURCES",
    "Document",
    "OnError",
    "Source",
    "Unit",
    "documents",
    "from_spec",
    "identity",
    "read",
    "spread_documents",
    "units",
]

UNIT_BYTES = 64 << 20
_SPREAD_BYTES = 1 << 20  # of a unit, where documents are taken from all over
_SPREAD_UNITS = 64  # read in turns

SOURCES = {
    "corpus": text.CORPUS,
    "text": text.TEXT,
    "jsonl": jsonl.JSONL,
    "parquet": columns.PARQUET,
    "arrayrecord": arrays.ARRAYRECORD,
    "warc": warc.WARC,
    "tfds": arrays.TFDS,
    "hf": columns.HF,
}


def documents(config: DataConfig) -> Iterator[str]:
    """Raises UserError: an unknown source, nothing at data.path, text that cannot be read."""
    for unit in units(config):
        for document in read(config, unit, _raise):
            yield document.text


def spread_documents(config: DataConfig) -> Iterator[str]:
    """The documents in another order, the same each time, in which the first ones are from all over the source.

    Raises UserError as documents does.
    """
    parts = units(config, _SPREAD_BYTES)
    order = deque(parts[i] for i in permute(np.arange(len(parts)), len(parts), 0, 0)) if parts else deque()
    reading = deque()
    while order or reading:
        if order and len(reading) < _SPREAD_UNITS:
            reading.append(read(config, order.popleft(), _raise))
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
    return SOURCES[unit.source].read(config, unit, on_error)


def source_name(config: DataConfig) -> str:
    """data.source; where data.path stands beside the default source, the kind that its ending says, or else text."""
    return kind_of_path(config.path) if config.source == "corpus" and config.path is not None else config.source


def _source(config: DataConfig) -> Source:
    name = source_name(config)
    if name == "prepared":
        raise UserError(f"data.path={config.path} is a folder of gptjax prepare: it holds tokens, and no text to read.")
    return choose(SOURCES | {"prepared": None}, name, "data.source")
