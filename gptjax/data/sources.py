"""Where documents come from: a source is a name in SOURCES, and gives the same documents in the same order each time.

`documents(config)` streams them, one in memory at a time; `identity(config)` says in a small dict which text that
is, so that tokens made from it can be found again. Text is taken as it stands: no newline, space or byte-order
mark is changed. Whatever cannot be read is a UserError with the file and the line or byte.
"""

import glob
import gzip
import hashlib
import importlib.resources
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gptjax.config import DataConfig
from gptjax.errors import UserError, choose, did_you_mean


class Source(NamedTuple):
    documents: Callable[[DataConfig], Iterator[str]]
    identity: Callable[[DataConfig], dict]


def documents(config: DataConfig) -> Iterator[str]:
    """Raises UserError: an unknown source, nothing at data.path, text that cannot be read."""
    return _source(config).documents(config)


def identity(config: DataConfig) -> dict:
    """JSON values that change when the text does. Raises UserError as documents, but reads no text."""
    return {"source": source_name(config)} | _source(config).identity(config)


def source_name(config: DataConfig) -> str:
    """data.source, except that data.path beside the default source means text."""
    return "text" if config.source == "corpus" and config.path is not None else config.source


def _source(config: DataConfig) -> Source:
    return choose(SOURCES, source_name(config), "data.source")


# ---- corpus: public-domain text shipped with gptjax


def _corpus_documents(config: DataConfig) -> Iterator[str]:
    for file in _corpus_files():
        yield file.read_bytes().decode()


def _corpus_identity(config: DataConfig) -> dict:
    return {"files": [{"name": f.name, "sha256": hashlib.sha256(f.read_bytes()).hexdigest()} for f in _corpus_files()]}


def _corpus_files() -> list:
    folder = importlib.resources.files("gptjax.data") / "corpus"
    return sorted((f for f in folder.iterdir() if f.name.endswith(".txt")), key=lambda f: f.name)


# ---- text and jsonl: files, local or gs://


def find_files(path: str, endings: tuple[str, ...]) -> list:
    """The epath files that path names, in the order of their names: itself, a folder's with endings, or a glob's.

    Raises UserError: there are none.
    """
    from etils import epath

    where = epath.Path(path).expanduser()
    if where.is_dir():
        files = [f for f in _walk(where) if f.name.endswith(endings)]
        if not files:
            wanted = " or ".join("*" + e for e in endings)
            raise UserError(f"data.path={path} is a folder without {wanted} files; name others by a glob.")
    elif where.exists():
        files = [where]
    elif any(c in path for c in "*?["):
        files = [f for f in _glob(str(where)) if f.is_file()]
        if not files:
            raise UserError(f"data.path={path} matches no file; check the glob.")
    else:
        raise UserError(f"data.path={path} does not exist; expected a file, a folder or a glob.")
    for file in files:
        if not file.stat().length:
            raise UserError(f"{file} is empty; remove it, or name the files to read by a glob.")
    return sorted(files, key=str)


def _walk(folder) -> Iterator:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry)
        else:
            yield entry


def _glob(pattern: str) -> list:
    from etils import epath

    if "://" not in pattern:
        return [epath.Path(name) for name in glob.glob(pattern, recursive=True)]
    if "**" in pattern:
        raise UserError(f"data.path={pattern}: '**' is for local files; use '*' for each level, or name the folder.")
    cut = pattern.rindex("/", 0, re.search(r"[*?[]", pattern).start())
    return list(epath.Path(pattern[:cut]).glob(pattern[cut + 1 :]))


def _file_identity(files: list) -> list[dict]:
    return [{"path": _absolute(file), "size": file.stat().length, "mtime": _mtime(file)} for file in files]


def _absolute(file) -> str:
    return str(file) if "://" in str(file) else os.path.abspath(file)


def _mtime(file) -> int:
    """Nanoseconds on a local disk (a file may be rewritten within a second), what the store gives elsewhere."""
    return file.stat().mtime if "://" in str(file) else os.stat(file).st_mtime_ns


_TEXT_ENDINGS = (".txt",)
_JSONL_ENDINGS = (".jsonl", ".jsonl.gz")


def _text_documents(config: DataConfig) -> Iterator[str]:
    for file in find_files(config.path, _TEXT_ENDINGS):
        if config.separator is None:
            yield _decoded(file.read_bytes(), file, 0)
        else:
            yield from _separated(file, config.separator)


def _text_identity(config: DataConfig) -> dict:
    return {"files": _file_identity(find_files(config.path, _TEXT_ENDINGS)), "separator": config.separator}


def _separated(file, separator: str) -> Iterator[str]:
    """The runs of lines between separator lines. Where two separators follow each other there is no document."""
    if "\n" in separator or "\r" in separator:
        raise UserError(f"data.separator={separator!r} is more than one line; give the line without its end.")
    wanted, lines, offset = separator.encode(), [], 0
    with file.open("rb") as stream:
        for line in stream:
            if line.rstrip(b"\r\n") != wanted:
                lines.append(line)
                continue
            size = sum(map(len, lines))
            if lines:
                yield _decoded(b"".join(lines), file, offset)
            offset, lines = offset + size + len(line), []
    if lines:
        yield _decoded(b"".join(lines), file, offset)


def _decoded(data: bytes, file, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 at byte {offset + error.start} (0x{data[error.start]:02x}); convert it to UTF-8."
        ) from error


def _jsonl_documents(config: DataConfig) -> Iterator[str]:
    for file in find_files(config.path, _JSONL_ENDINGS):
        for number, line in enumerate(_lines(file), start=1):
            if line.strip():
                yield _field_of_line(line, config.text_field, f"{file}:{number}")


def _jsonl_identity(config: DataConfig) -> dict:
    return {"files": _file_identity(find_files(config.path, _JSONL_ENDINGS)), "text_field": config.text_field}


def _lines(file) -> Iterator[bytes]:
    with file.open("rb") as stream:
        if not file.name.endswith(".gz"):
            yield from stream
            return
        try:
            with gzip.open(stream) as unpacked:
                yield from unpacked
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{file} is a damaged or truncated gzip file ({error}); fetch it again.") from error


def _field_of_line(line: bytes, field: str, where: str) -> str:
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 at byte {error.start} of the line; convert it to UTF-8.") from error
    except json.JSONDecodeError as error:
        what = f"{error.msg} at column {error.colno}"
        raise UserError(f"{where} is not JSON: {what}; expected one object a line.") from error
    if not isinstance(record, dict):
        raise UserError(f"{where} holds a {type(record).__name__}; expected an object with the field {field!r}.")
    text = _named_field(record, field, where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {field!r} has half of a surrogate pair, no character; repair the line.") from error
    return text


def _named_field(record: dict, field: str, where: str) -> str | bytes:
    if field not in record:
        raise UserError(f"{where} has no field {field!r}; it has: {', '.join(map(repr, record))}. Set data.text_field.")
    if not isinstance(record[field], (str, bytes)):
        kind = type(record[field]).__name__
        raise UserError(f"{where}: field {field!r} is a {kind}; expected a string. Set data.text_field.")
    return record[field]


# ---- tfds: TensorFlow Datasets by name, read as ArrayRecord without TensorFlow


def _tfds_documents(config: DataConfig) -> Iterator[str]:
    builder = _tfds_builder(config)
    records = builder.as_data_source(_tfds_split(builder, config))
    for first in range(0, len(records), _TFDS_BATCH):
        batch = records.__getitems__(range(first, min(first + _TFDS_BATCH, len(records))))
        for i, record in enumerate(batch, start=first):
            yield _field_of_example(record, config, i)


# One by one, reading takes three times as long.
_TFDS_BATCH = 256


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
    """The builder, its data downloaded and prepared if they were not."""
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text  # registers wikipedia, c4 and others

    key = f"data.tfds_name={config.tfds_name!r}"
    folder = None if config.tfds_dir is None else str(config.tfds_dir)
    try:
        builder = tfds.builder(config.tfds_name, data_dir=folder, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = did_you_mean(config.tfds_name.split("/")[0].split(":")[0], known) or "."
        raise UserError(f"{key} is not known to TFDS{near} Nor is it a folder in data.tfds_dir={folder}.") from error
    except (ValueError, AssertionError) as error:  # an unknown config or version
        raise UserError(f"{key}: {_first_line(error)}") from error
    try:
        builder.download_and_prepare()
    except Exception as error:  # no network, no space, a source that moved
        raise UserError(
            f"{key} could not be prepared: {type(error).__name__}: {_first_line(error)}; prepare it as ArrayRecord"
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


def _field_of_example(record: dict, config: DataConfig, i: int) -> str:
    where = f"example {i} of data.tfds_name={config.tfds_name!r}"
    text = _named_field(record, config.text_field, where)
    try:
        return text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {config.text_field!r} is not UTF-8 at byte {error.start}; expected text.") from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


SOURCES = {
    "corpus": Source(_corpus_documents, _corpus_identity),
    "text": Source(_text_documents, _text_identity),
    "jsonl": Source(_jsonl_documents, _jsonl_identity),
    "tfds": Source(_tfds_documents, _tfds_identity),
}
