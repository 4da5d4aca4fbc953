"""Records by number: ArrayRecord files, and TensorFlow Datasets by name, read as ArrayRecord without TensorFlow."""

import collections
import contextlib
import functools
import re
import typing
from collections.abc import Callable, Iterator

from etils import epath

from gptjax.config.fields import DataConfig
from gptjax.data.sources import files, packing
from gptjax.data.sources.records import (
    Damaged,
    Document,
    LeftOut,
    OnError,
    Source,
    Unit,
    conversation_of,
    decoded,
    documents,
    fields_read,
    json_value,
    named_field,
    ranges,
    text_of_json,
)
from gptjax.errors import UserError, did_you_mean, first_line

ENDINGS = files.endings("arrayrecord")
_BATCH = 256
"""Records read at once: one by one, reading takes three times as long."""


# ---- arrayrecord: files of records, each the text of a document or a JSON object that has it


def _identity(config: DataConfig) -> dict:
    return {"files": files.identity(_files(config)), "reading": _READING} | fields_read(config)


def _units(config: DataConfig, unit_bytes: int) -> list[Unit]:
    return files.units("arrayrecord", _files(config), unit_bytes, _record_ranges)


def _files(config: DataConfig) -> list:
    if "://" in config.path:
        raise UserError(
            f"data.path={config.path}: ArrayRecord files are read from a disk; copy them to one, or mount it."
        )
    return files.find_files(config.path, ENDINGS)


def _record_ranges(file, size: int, unit_bytes: int) -> list[tuple[int, int | None]]:
    """A file that cannot be opened is left to its reader to report."""
    try:
        with _opened(file) as reader:
            parts = ranges("arrayrecord", str(file), reader.num_records(), size, unit_bytes)
    except Damaged:
        return [(0, None)]
    return [(part.first, part.stop) for part in parts]


@contextlib.contextmanager
def _opened(file) -> Iterator:
    """The reader. Raises Damaged: it is no ArrayRecord file, which the library takes for one without records."""
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(file))
    try:
        if not reader.ok():
            reader.read([0])
        reader.num_records()
    except RuntimeError as error:
        raise packing.not_opened(file, "ArrayRecord", first_line(error)) from error
    try:
        yield reader
    finally:
        if reader.ok():  # else it raises once more
            reader.close()


def _read(config: DataConfig, unit: Unit, on_error: OnError) -> Iterator[Document]:
    return files.read(unit, on_error, functools.partial(_documents, config, unit, on_error))


def _documents(config: DataConfig, unit: Unit, on_error: OnError, file) -> Iterator[Document]:
    with _opened(file) as reader:
        n = reader.num_records()
        to_document = (
            _conversation(config) if config.chat is not None else _to_document(_reader_of_records(file), config)
        )
        numbers = range(unit.first, n if unit.stop is None else unit.stop)
        read = lambda some: reader.read(some.start, some.stop)  # noqa: E731
        yield from _documents_of(read, numbers, to_document, lambda number: f"{file} record {number}", on_error)


def _documents_of(read, numbers: range, to_document, name: Callable[[str], str], on_error) -> Iterator[Document]:
    """read(numbers) -> records; to_document(record, where) -> Document; name("7") -> where that record is."""
    records = ((name(f"{i}"), record) for i, record in _whole_records(read, numbers, name, on_error))
    return documents(records, to_document, on_error)


def _to_document(text_of: Callable, config: DataConfig) -> Callable[[typing.Any, str], Document]:
    """text_of(field, record, where) -> text."""
    return lambda record, where: Document(text_of(config.text_field, record, where), where)


def _conversation(config: DataConfig) -> Callable[[bytes, str], Document]:
    return lambda record, where: conversation_of(config, json_value(record, where), where)


def _whole_records(read, numbers: range, name: Callable[[str], str], on_error: OnError) -> Iterator[tuple]:
    """Number and record; runs of those that cannot be read are told to on_error."""
    bad, why = range(0), None
    for i, record in _records(read, numbers.start, numbers.stop):
        if isinstance(record, Exception):
            bad, why = range(bad.start if bad else i, i + 1), why if bad else record
            continue
        if bad:
            on_error(_damaged(bad, why, name))
            bad = range(0)
        yield i, record
    if bad:
        on_error(_damaged(bad, why, name))


def _records(read: Callable[[range], list], first: int, stop: int) -> Iterator[tuple]:
    """Number and record, or why it cannot be read."""
    for at in range(first, stop, _BATCH):
        numbers = range(at, min(at + _BATCH, stop))
        records = _or_error(read, numbers)
        if isinstance(records, Exception):
            ones = [_or_error(read, numbers[i : i + 1]) for i in range(len(numbers))]
            records = [one if isinstance(one, Exception) else one[0] for one in ones]
        yield from zip(numbers, records)


def _or_error(read: Callable[[range], list], numbers: range) -> list | Exception:
    try:
        return read(numbers)
    except MemoryError:
        raise
    except Exception as error:  # RuntimeError, ValueError, IndexError and others, of the library and of what it calls
        return error


def _damaged(bad: range, why: Exception, name: Callable[[str], str]) -> UserError:
    numbers = f"{bad[0]}" if len(bad) == 1 else f"{bad[0]} to {bad[-1]}"
    return LeftOut(f"{name(numbers)} cannot be read, damaged ({first_line(why)}); fetch the file again.", len(bad))


# ---- what the records of a file are: no record says it of the others, so that a sample of them is asked

_READING = 2  # of the rule below; in the identity, so that tokens made by another rule are made anew
_SAMPLE = 64
_OBJECT = re.compile(rb"\s*\{\s*[\"}]")  # how a JSON object begins, be it cut, of long numbers, or deep


def _reader_of_records(file) -> Callable[[str, bytes, str], str]:
    """(field, record, where) -> text, for the records of a file. Raises Damaged: they are tf.train.Examples."""
    kind = _kind_of_records(str(file), file.stat().mtime)
    if kind == "example":  # whose short ones would pass for text
        raise Damaged(
            f"{file} holds tf.train.Examples; expected text or JSON objects. Read a data set of TFDS by its name."
        )
    return _text_of_object if kind == "object" else _text_of_record


@functools.lru_cache(maxsize=1024)  # a process reads many parts of a file
def _kind_of_records(path: str, mtime: float) -> str:
    """What more than half of the records are, "object" (of JSON) or "example"; else "text".

    Asked are records from all over the file that are not empty, the same ones for whoever reads a part of it.
    """
    with _opened(epath.Path(path)) as reader:
        kinds = collections.Counter(map(_kind, _sampled(reader)))
    return next((kind for kind, n in kinds.items() if 2 * n > kinds.total()), "text")


def _sampled(reader) -> list[bytes]:
    n = reader.num_records()
    numbers = sorted({i * n // _SAMPLE for i in range(_SAMPLE)}) if n else []
    records = _or_error(reader.read, numbers) if numbers else []
    if isinstance(records, Exception):
        ones = [_or_error(reader.read, [i]) for i in numbers]
        records = [one[0] for one in ones if not isinstance(one, Exception)]
    return [record for record in records if record.strip()]


def _kind(record: bytes) -> str:
    return "example" if _is_example(record) else "object" if _OBJECT.match(record) else "text"


def _text_of_object(field: str, record: bytes, where: str) -> str:
    if not record.strip():
        raise UserError(f"{where} is empty; expected a JSON object, as most records of the file are.")
    return text_of_json(record, field, where)


def _text_of_record(field: str, record: bytes, where: str) -> str:
    """Raises UserError: it is of another kind than the file's records, which must not become text unseen."""
    if _is_example(record):
        raise UserError(f"{where} is a tf.train.Example, where most records of the file are text; remove it.")
    if _OBJECT.match(record) and _has_text(record, field, where):
        what = f"is a JSON object with the field {field!r}, where most records of the file are text"
        raise UserError(f"{where} {what}; keep the two in files of their own.")
    return decoded(record, where)


def _has_text(record: bytes, field: str, where: str) -> bool:
    """Whether it is a JSON object that would give a document in a file of such objects."""
    try:
        text_of_json(record, field, where)
    except UserError:
        return False
    return True


def _is_example(record: bytes) -> bool:
    """Whether it is one field 1 (features) from end to end, which begins with a field 1 (feature) or is empty."""
    size, shift, at = 0, 0, 1
    while record[:1] == b"\n" and at < len(record):
        size, shift, at = size | (record[at] & 0x7F) << shift, shift + 7, at + 1
        if record[at - 1] < 0x80:
            return at + size == len(record) and record[at : at + 1] in (b"\n", b"")
    return False


ARRAYRECORD = Source(_identity, _units, _read)


# ---- tfds: TensorFlow Datasets by name


def _tfds_units(config: DataConfig, unit_bytes: int) -> list[Unit]:
    builder = _tfds_builder(config)
    n = builder.info.splits[_tfds_split(builder, config)].num_examples
    whole = builder.info.splits.values()
    n_bytes = n * sum(s.num_bytes for s in whole) // max(sum(s.num_examples for s in whole), 1)
    return ranges("tfds", builder.info.full_name, n, n_bytes, unit_bytes)


def _read_tfds(config: DataConfig, unit: Unit, on_error: OnError) -> Iterator[Document]:
    builder = _tfds_builder(config)
    records = builder.as_data_source(_tfds_split(builder, config))
    to_document = _to_document(_field_text, config)
    name = lambda numbers: f"example {numbers} of data.tfds_name={config.tfds_name!r}"  # noqa: E731
    yield from _documents_of(records.__getitems__, range(unit.first, unit.stop), to_document, name, on_error)


def _field_text(field: str, record: dict, where: str) -> str:
    return decoded(named_field(record, field, where), where)


def _tfds_identity(config: DataConfig) -> dict:
    builder = _tfds_builder(config)
    split = builder.info.splits[_tfds_split(builder, config)]
    return {
        "name": builder.info.full_name,
        "split": config.tfds_split,
        "examples": split.num_examples,
        "text_field": config.text_field,
    }


def _tfds_builder(config: DataConfig):
    return _prepared_builder(config.tfds_name, None if config.tfds_dir is None else str(config.tfds_dir))


@functools.lru_cache(maxsize=4)  # a process reads many units of a data set
def _prepared_builder(name: str, folder: str | None):
    """The builder, its data downloaded and prepared if they were not."""
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text  # registers wikipedia, c4 and others

    key = f"data.tfds_name={name!r}"
    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = did_you_mean(name.split("/")[0].split(":")[0], known, ".")
        raise UserError(f"{key} is not known to TFDS{near} Nor is it a folder in data.tfds_dir={folder}.") from error
    except (ValueError, AssertionError) as error:  # an unknown config or version
        raise UserError(f"{key}: {first_line(error)}") from error
    try:
        builder.download_and_prepare()
    except Exception as error:  # no network, no space, a source that moved
        raise UserError(
            f"{key} could not be prepared: {type(error).__name__}: {first_line(error)}; prepare it as ArrayRecord"
            " where it can be downloaded, and set data.tfds_dir."
        ) from error
    return builder


def _tfds_split(builder, config: DataConfig) -> str:
    try:
        builder.info.splits[config.tfds_split]
    except (ValueError, KeyError) as error:
        there_are = ", ".join(builder.info.splits)
        key = f"data.tfds_split={config.tfds_split!r}"
        raise UserError(f"{key} is not a split of {builder.info.full_name}; there are: {there_are}.") from error
    return config.tfds_split


TFDS = Source(_tfds_identity, _tfds_units, _read_tfds)
