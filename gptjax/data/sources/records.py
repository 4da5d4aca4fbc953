"""What a source is made of: its Documents, the Units it is read in, and what becomes of what cannot be read.

`documents` is the one place where records become documents: whatever a parser raises, that document alone is left out.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gptjax.config.extras import library as library
from gptjax.config.fields import DataConfig
from gptjax.errors import UserError, first_line

if TYPE_CHECKING:
    from gptjax.data.chat import Conversation
    from gptjax.data.pairs.forms import Comparison

Record = TypeVar("Record")


class Document(NamedTuple):
    text: str
    where: str  # "FILE:LINE", "FILE at byte 17", "FILE row 17", "example 17 of ...": for messages and samples
    is_html: bool | None = None  # as its source says; None: it doesn't say
    conversation: "Conversation | None" = None  # that the text is of, where data.chat is set
    comparison: "Comparison | None" = None  # of answers to the prompt that the text is, where data.preferences is set


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


class LeftOut(UserError):
    """Several documents in a row cannot be read."""

    def __init__(self, message: str, count: int):
        super().__init__(message)
        self.count = count


def number_left_out(error: UserError) -> int:
    """How many documents an error is about; one, where nobody can know, as of a file that is damaged."""
    return error.count if isinstance(error, LeftOut) else 1


# ---- records to documents


def documents(
    records: Iterable[tuple[str, Record]],
    to_document: Callable[[Record, str], Document | None],
    on_error: OnError,
) -> Iterator[Document]:
    """What to_document(record, where) makes of each (where, record); None is no document.

    A record of which it can make none is left out and told to on_error. What the reading of records raises is raised.
    """
    for where, record in records:
        try:
            document = to_document(record, where)
        except BaseException as error:
            on_error(left_out(error, where))
            continue
        if document is not None:
            yield document


def left_out(error: BaseException, where: str, doing: str = "be read") -> UserError:
    """The line on a document with which a parser, cleaning step or tokenizer could not do what it does.

    Raises error itself, where the document is not to blame.
    """
    if isinstance(error, UserError):
        return error
    check_blame(error)
    return UserError(f"{where} cannot {doing} ({type(error).__name__}: {first_line(error).rstrip('.')}).")


def not_tokenised(error: BaseException, where: str) -> UserError:
    """The line on a document that a tokenizer fails on, or whose text it cannot write. Raises error itself as `left_out` does."""
    if isinstance(error, UserError) and not str(error).startswith(where):
        return UserError(f"{where}: {error}")
    return left_out(error, where, "be tokenised")


def check_blame(error: BaseException) -> None:
    """Raises error, if the bytes that were read are not to blame: a mistake in gptjax, a full memory, Ctrl-C."""
    is_panic = type(error).__name__ == "PanicException"  # of a library in Rust; no Exception to Python
    if not (isinstance(error, Exception) or is_panic) or isinstance(error, (MemoryError, ImportError)):
        raise error
    if isinstance(error, _MISTAKES) and not isinstance(error, UnicodeError) and _is_ours(error):
        raise error


# Raised by our own lines and not by a library's, these say that a line is wrong, whatever the document.
_MISTAKES = (AssertionError, AttributeError, LookupError, NameError, TypeError)


def _is_ours(error: BaseException) -> bool:
    """Whether a line of gptjax raised it, and not one of a library that it called."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "gptjax"


# ---- conversations of records


def conversation_of(config: DataConfig, record, where: str) -> Document:
    """A document whose text is that of its messages, each after its role: the same in every chat format. With
    data.preferences the messages are those of a prompt, and the document has its answers.

    Raises UserError that begins with where: the record is no conversation, or has nothing to learn.
    """
    if config.preferences is not None:
        from gptjax.data.pairs import forms

        comparison = forms.from_record(record, where, config.preferences)
        return Document(_spoken(comparison.prompt), where, comparison=comparison)
    from gptjax.data.chat import from_record

    conversation = from_record(record, where)
    return Document(_spoken(conversation.messages), where, conversation=conversation)


def _spoken(messages) -> str:
    return "\n".join(f"{message.role}: {message.content}" for message in messages)


def fields_read(config: DataConfig) -> dict:
    """Which fields of a record are read, for a source's identity."""
    if config.preferences is not None:
        return {"preferences": config.preferences}
    return {"text_field": config.text_field} if config.chat is None else {"conversations": True}


# ---- text of records


def text_of_json(line: bytes, field: str, where: str) -> str:
    """The field of a JSON object. Raises UserError that begins with where: it is not JSON, or has no such text."""
    record = json_value(line, where)
    if not isinstance(record, dict):
        raise UserError(f"{where} holds a {type(record).__name__}; expected an object with the field {field!r}.")
    text = named_field(record, field, where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {field!r} has half of a surrogate pair, no character; repair it.") from error
    return text


def json_value(line: str | bytes, where: str, expected: str = "an object"):
    """What is written in JSON, its integers of more digits than Python converts (4300) as 0: no text is a number.

    Raises UserError that begins with where: it is not JSON.
    """
    try:
        try:
            return json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError):
            raise
        except ValueError:  # a number's digits; see sys.set_int_max_str_digits
            return json.loads(line, parse_int=lambda digits: 0)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 at byte {error.start} there; convert it to UTF-8.") from error
    except json.JSONDecodeError as error:
        what = f"{error.msg.removesuffix(' at')} at column {error.colno}"
        raise UserError(f"{where} is not JSON: {what}; expected {expected}.") from error
    except RecursionError as error:
        raise UserError(f"{where} is not JSON that can be read: it nests too deeply; remove it.") from error


def named_field(record: dict, field: str, where: str) -> str | bytes:
    if field not in record:
        names = ", ".join(map(repr, record)) or "none"
        shown = names if len(names) <= _NAMES_SHOWN else f"{names[:_NAMES_SHOWN]} ..."
        chat = " or, for conversations, data.chat" if {"messages", "conversations"} & set(record) else ""
        raise UserError(f"{where} has no field {field!r}; it has: {shown}. Set data.text_field{chat}.")
    if not isinstance(record[field], (str, bytes)):
        kind = type(record[field]).__name__
        raise UserError(f"{where}: field {field!r} is a {kind}; expected a string. Set data.text_field.")
    return record[field]


_NAMES_SHOWN = 300  # characters


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
