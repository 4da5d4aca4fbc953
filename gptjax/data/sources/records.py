"""What a source is made of: its Documents, the Units it is read in, and the errors that end a file's reading."""

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gptjax.config import DataConfig
from gptjax.errors import UserError, first_line
from gptjax.errors import library as library


class Document(NamedTuple):
    text: str
    where: str  # "FILE:LINE", "FILE at byte 17", "FILE row 17", "example 17 of ...": for messages and samples


class Unit(NamedTuple):
    """A part of a source that any process reads alone; it pickles."""

    source: str  # key of SOURCES
    paths: tuple[str, ...]  # files, in order, each read whole where there are several; or a dataset's name
    first: int = 0  # byte, row group, record or example where it starts ...
    stop: int | None = None  # ... and ends; None: at the end

    @property
    def path(self) -> str:
        return self.paths[0]

    @property
    def name(self) -> str:
        """What is read, for a log."""
        more = f" and {len(self.paths) - 1} more" if self.paths[1:] else ""
        part = f" [{self.first}:{'' if self.stop is None else self.stop}]" if self.first or self.stop else ""
        return self.path + part + more


OnError = Callable[[UserError], None]
"""Called for each thing that cannot be read: raises, and so ends the reading, or counts, and so has it go on."""


class Source(NamedTuple):
    identity: Callable[[DataConfig], dict]
    units: Callable[[DataConfig, int], list[Unit]]  # (config, bytes of a unit): together all documents, in order
    read: Callable[[DataConfig, Unit, OnError], Iterator[Document]]


class Damaged(UserError):
    """What follows in this file cannot be read."""


def text_of_json(line: bytes, field: str, where: str) -> str:
    """The field of a JSON object. Raises UserError that begins with where: it is not JSON, or has no such text."""
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 at byte {error.start} there; convert it to UTF-8.") from error
    except json.JSONDecodeError as error:
        what = f"{error.msg} at column {error.colno}"
        raise UserError(f"{where} is not JSON: {what}; expected an object.") from error
    except RecursionError as error:
        raise UserError(f"{where} is not JSON that can be read: it nests too deeply; remove it.") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} holds a {type(record).__name__}; expected an object with the field {field!r}.")
    text = named_field(record, field, where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {field!r} has half of a surrogate pair, no character; repair it.") from error
    return text


def named_field(record: dict, field: str, where: str) -> str | bytes:
    if field not in record:
        raise UserError(f"{where} has no field {field!r}; it has: {', '.join(map(repr, record))}. Set data.text_field.")
    if not isinstance(record[field], (str, bytes)):
        kind = type(record[field]).__name__
        raise UserError(f"{where}: field {field!r} is a {kind}; expected a string. Set data.text_field.")
    return record[field]


def decoded(data: str | bytes, where: str) -> str:
    try:
        return data.decode() if isinstance(data, bytes) else data
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 at byte {error.start}; expected text.") from error


def ranges(source: str, name: str, n: int, n_bytes: int, unit_bytes: int) -> list[Unit]:
    """Units of about unit_bytes of a data set of n records, n_bytes in all."""
    step = max(1, n * unit_bytes // max(n_bytes, 1))
    return [Unit(source, (name,), first, min(first + step, n)) for first in range(0, n, step)]


def did_not_load(key: str, error: Exception) -> UserError:
    why = f"{type(error).__name__}: {first_line(error).rstrip('.')}"
    return UserError(f"{key} could not be loaded: {why}; check the name, the split and the network.")
