"""Text as it stands: the plays shipped with gptjax, and files of one document or of documents between separators.

No newline, space or byte-order mark is changed.
"""

import functools
import hashlib
import importlib.resources
from collections.abc import Iterator

from gptjax.config.fields import DataConfig
from gptjax.data.sources import files, packing
from gptjax.data.sources.records import Damaged, Document, OnError, Source, Unit, documents
from gptjax.errors import UserError

ENDINGS = files.endings("text")


# ---- corpus: public-domain text shipped with gptjax


def _corpus_files() -> list:
    folder = importlib.resources.files("gptjax.data") / "corpus"
    return sorted((f for f in folder.iterdir() if f.name.endswith(".txt")), key=lambda f: f.name)


def _corpus_identity(config: DataConfig) -> dict:
    return {"files": [{"name": f.name, "sha256": hashlib.sha256(f.read_bytes()).hexdigest()} for f in _corpus_files()]}


def _corpus_units(config: DataConfig, unit_bytes: int) -> list[Unit]:
    return [Unit("corpus", ("corpus",), i, i + 1) for i in range(len(_corpus_files()))]


def _read_corpus(config: DataConfig, unit: Unit, on_error: OnError) -> Iterator[Document]:
    for file in _corpus_files()[unit.first : unit.stop]:
        yield Document(file.read_bytes().decode(), f"corpus/{file.name}")


CORPUS = Source(_corpus_identity, _corpus_units, _read_corpus)


# ---- text: files, local or gs://


def _identity(config: DataConfig) -> dict:
    return {"files": files.identity(files.find_files(config.path, ENDINGS)), "separator": config.separator}


def _units(config: DataConfig, unit_bytes: int) -> list[Unit]:
    _check_separator(config.separator)
    cut = files.whole if config.separator is None else files.byte_ranges
    return files.units("text", files.find_files(config.path, ENDINGS), unit_bytes, cut)


def _check_separator(separator: str | None) -> None:
    if separator is not None and ("\n" in separator or "\r" in separator):
        raise UserError(f"data.separator={separator!r} is more than one line; give the line without its end.")


def _read(config: DataConfig, unit: Unit, on_error: OnError) -> Iterator[Document]:
    if config.separator is None:
        return files.read(unit, on_error, functools.partial(_whole, on_error))
    return files.read(unit, on_error, functools.partial(_separated, config.separator.encode(), unit, on_error))


def _whole(on_error: OnError, file) -> Iterator[Document]:
    def to_document(data: bytes, where: str) -> Document:
        return Document(_decoded(data, file, 0), where)

    return documents([(str(file), _content(file))], to_document, on_error)


def _content(file) -> bytes:
    """Raises Damaged: it is longer than a document may be, or its packing is damaged."""
    with file.open("rb") as stream:
        text, parts, size = packing.buffered(file, stream), [], 0
        try:
            while (part := text.read(1 << 24)) and size <= files.LONGEST_DOCUMENT:
                parts.append(part)
                size += len(part)
        except packing.BadPacking as error:
            raise Damaged(f"{file} is a {error}; fetch it again.") from error
    if size > files.LONGEST_DOCUMENT:
        limit = f"{files.LONGEST_DOCUMENT >> 30} GiB"
        raise Damaged(f"{file} would be one document of more than {limit}; set data.separator, or cut the file.")
    return b"".join(parts)


def _separated(separator: bytes, unit: Unit, on_error: OnError, file) -> Iterator[Document]:
    """The runs of lines between separator lines. Where two separators follow each other there is no document.

    The unit's are the first document of a file, if it starts there, and those that follow a separator within it.
    """

    def to_document(run: tuple[int, bytes], where: str) -> Document:
        return Document(_decoded(run[1], file, run[0]), where)

    runs = _runs(file, separator, unit.first, unit.stop)
    return documents(((f"{file} at byte {at}", (at, data)) for at, data in runs), to_document, on_error)


def _runs(file, separator: bytes, first: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """Byte where each run starts, in the unpacked file, and its bytes. Raises Damaged: nothing behind a run can be read."""
    with file.open("rb") as stream:
        lines, behind = files.lines_from(packing.buffered(file, stream), file, first), 0
        try:
            for at, run in _runs_of_lines(lines, file, separator, first, stop):
                yield at, run
                behind = at + len(run)
        except packing.BadPacking as error:
            what = f"nothing after the document that ends at byte {behind} of its text can be read"
            raise Damaged(f"{file} is a {error}: {what}; fetch it again.") from error


def _runs_of_lines(lines, file, separator: bytes, first: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    wanted, size, run_at = [] if first == 0 else None, 0, 0
    for at, line in lines:
        if not line.startswith(separator) or line.rstrip(b"\r\n") != separator:
            if wanted is not None:
                wanted.append(line)
                size = _checked_size(size + len(line), file, run_at)
            elif stop is not None and at >= stop:
                return
            continue
        if wanted:
            yield run_at, b"".join(wanted)
        if stop is not None and at >= stop:
            return
        wanted, size, run_at = [], 0, at + len(line)
    if wanted:
        yield run_at, b"".join(wanted)


def _checked_size(size: int, file, offset: int) -> int:
    if size > files.LONGEST_DOCUMENT:
        limit = f"{files.LONGEST_DOCUMENT >> 30} GiB"
        raise Damaged(f"{file} has no separator line for {limit} from byte {offset} on; check data.separator.")
    return size


def _decoded(data: bytes, file, offset: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 at byte {offset + error.start} (0x{data[error.start]:02x}); convert it to UTF-8."
        ) from error


TEXT = Source(_identity, _units, _read)
