"""JSON lines, packed or not: one object a line, whose data.text_field is a document, or which is a conversation
(data.chat). Empty lines are none.

A plain file is cut at the line that follows any byte, so that a line belongs to the unit its first byte lies in.
Such a unit does not know the number of its lines: a document says at which byte it starts, and the lines before a
bad one are counted when there is one.
"""

import functools
import re
from collections.abc import Iterator

from gptjax.config.fields import DataConfig
from gptjax.data.sources import files, packing
from gptjax.data.sources.records import (
    Document,
    OnError,
    Source,
    Unit,
    conversation_of,
    documents,
    fields_read,
    json_value,
    text_of_json,
)
from gptjax.errors import UserError

ENDINGS = files.endings("jsonl")
_COUNTED_BYTES = 1 << 30  # before a bad line, at most: half a second from memory, so that errors don't take the time


def _identity(config: DataConfig) -> dict:
    return {"files": files.identity(files.find_files(config.path, ENDINGS))} | fields_read(config)


def _units(config: DataConfig, unit_bytes: int) -> list[Unit]:
    return files.units("jsonl", files.find_files(config.path, ENDINGS), unit_bytes, files.byte_ranges)


def _read(config: DataConfig, unit: Unit, on_error: OnError) -> Iterator[Document]:
    return files.read(unit, on_error, functools.partial(_documents, config, unit, on_error))


def _documents(config: DataConfig, unit: Unit, on_error: OnError, file) -> Iterator[Document]:
    def to_document(line: bytes, where: str) -> Document:
        if config.chat is not None:
            return conversation_of(config, json_value(line, where), where)
        return Document(text_of_json(line, config.text_field, where), where)

    if packing.is_plain(file):
        lines = _placed(file, unit.first, unit.stop)
        return documents(lines, to_document, lambda error: on_error(_with_line_number(error, file)))
    return documents(_numbered(file), to_document, on_error)


def _numbered(file) -> Iterator[tuple[str, bytes]]:
    name = str(file)  # of an epath, which puts it together anew each time
    for number, line in enumerate(files.lines(file), start=1):
        if line.strip():
            yield f"{name}:{number}", line


def _placed(file, first: int, stop: int | None) -> Iterator[tuple[str, bytes]]:
    name = str(file)
    with file.open("rb") as stream:
        for at, line in files.lines_from(stream, file, first):
            if stop is not None and at >= stop:
                return
            if line.strip():
                yield f"{name} at byte {at}", line


def _with_line_number(error: UserError, file) -> UserError:
    """The error with FILE:LINE in the place of "FILE at byte N", if the lines can be counted in little time."""
    where = re.match(re.escape(str(file)) + r" at byte (\d+)", str(error))
    if int(where[1]) > _COUNTED_BYTES:
        return error
    with file.open("rb") as stream:
        chunks = iter(lambda: stream.read(min(1 << 20, int(where[1]) - stream.tell())), b"")
        number = 1 + sum(chunk.count(b"\n") for chunk in chunks)
    return UserError(f"{file}:{number}{str(error).removeprefix(where[0])}")


JSONL = Source(_identity, _units, _read)
