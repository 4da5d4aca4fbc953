"""WARC and WET files, as Common Crawl has them: the text of `conversion` records, the HTML of `response` records.

HTML is given as it came, decoded; making text of it is a step of cleaning, which is told what is HTML: a `conversion` is
none, a `response` is by its Content-Type, or where it has none by the WARC-Identified-Payload-Type, or else by how it
begins. Whatever else such files hold (requests, metadata, images, answers that are no success) is no document.
"""

import functools
from collections.abc import Iterator

from gptjax.config.fields import DataConfig
from gptjax.data.sources import files, packing
from gptjax.data.sources.markup import begins_as_html, decode_html
from gptjax.data.sources.records import Damaged, Document, OnError, Source, Unit, decoded, documents, library
from gptjax.errors import UserError, first_line

ENDINGS = files.endings("warc")
_HTML = ("text/html", "application/xhtml+xml")
_READING = 2  # of the rules by which records become documents; raise it when the same file gives others


def _identity(config: DataConfig) -> dict:
    return {"files": files.identity(files.find_files(config.path, ENDINGS)), "reading": _READING}


def _units(config: DataConfig, unit_bytes: int) -> list[Unit]:
    return files.units("warc", files.find_files(config.path, ENDINGS), unit_bytes)


def _read(config: DataConfig, unit: Unit, on_error: OnError) -> Iterator[Document]:
    return files.read(unit, on_error, functools.partial(_documents, on_error))


def _documents(on_error: OnError, file) -> Iterator[Document]:
    return documents(_placed(file), _document_of, on_error)


def _placed(file) -> Iterator[tuple[str, tuple]]:
    """Where each record is, and what _whole_records says of it. Raises Damaged."""
    n = 0
    with file.open("rb") as stream:
        try:
            for n, found in enumerate(_whole_records(packing.unpacked(file, stream)), start=1):
                yield f"{file} record {n}", found
        except packing.BadPacking as error:
            raise Damaged(f"{file} is a {error}: nothing after record {n} can be read; fetch it again.") from error


def _whole_records(stream) -> Iterator[tuple]:
    """(record, its bytes or None if it is no document) of those that are as long as they say. Raises BadPacking."""
    iterator = library("warcio.archiveiterator", "source warc")

    class Archive(iterator.ArchiveIterator):
        INC_RECORD = ""  # which it prints

    archive, next_line = Archive(stream), b"of a first record"
    while (record := _or_bad(next, archive, None)) is not None:
        if not (record.rec_headers.get_header("Content-Length") or "").strip().isdigit():
            raise _bad("a record has no Content-Length")
        data = _content(record) if _may_be_document(record) else None
        _or_bad(archive.read_to_end)
        if archive.err_count or record.raw_stream.limit:
            raise _bad("a record is not as long as its Content-Length says")
        next_line = archive.next_line
        yield record, data
    if next_line:  # and no record, which warcio takes for the end
        raise _bad("it ends too early")


def _or_bad(function, *args):
    try:
        return function(*args)
    except (packing.BadPacking, MemoryError):
        raise
    except Exception as error:  # ArchiveLoadFailed, and whatever else damaged headers make warcio raise
        raise _bad(first_line(error)) from error


def _bad(why: str) -> packing.BadPacking:
    return packing.BadPacking(f"damaged or no WARC file ({why})")


def _may_be_document(record) -> bool:
    if record.rec_type == "conversion":
        return True
    if record.rec_type != "response" or not record.http_headers:
        return False
    return _media_type(record) in ("", *_HTML) and (record.http_headers.get_statuscode() or "").startswith("2")


def _media_type(record) -> str:
    """What the record says its text is, such as text/html; "" if it does not say."""
    if record.rec_type == "conversion":
        name = record.rec_headers.get_header("Content-Type")
    else:
        name = _content_type(record) or record.rec_headers.get_header("WARC-Identified-Payload-Type")
    return (name or "").partition(";")[0].strip().lower()


def _content_type(record) -> str:
    return (record.http_headers.get_header("Content-Type") or "").strip()


def _content(record) -> bytes | Exception:
    """The bytes of the document, or why they cannot be unpacked, which is for the reader of the record to say."""
    try:
        stream = record.content_stream()
        return b"".join(iter(lambda: stream.read(1 << 20), b""))
    except (packing.BadPacking, MemoryError):
        raise
    except Exception as error:  # what the decompressor of the HTTP Content-Encoding raises
        return error


def _document_of(found: tuple, where: str) -> Document | None:
    record, data = found
    if data is None:
        return None
    media_type = _media_type(record)
    if record.rec_type == "conversion":
        return Document(decoded(data, where), where, {"": None}.get(media_type, media_type in _HTML))
    encoding = (record.http_headers.get_header("Content-Encoding") or "identity").strip().lower()
    if isinstance(data, Exception):
        raise UserError(f"{where} cannot be unpacked as {encoding}: {first_line(data)}.") from data
    if encoding not in ("identity", *_unpacked_here()):
        known = ", ".join(_unpacked_here())
        raise UserError(f"{where} has the Content-Encoding {encoding!r}; expected one of: {known}.")
    if not media_type and not begins_as_html(data.decode("latin-1")):
        return None
    return Document(decode_html(data, _content_type(record), where), where, is_html=True)


def _unpacked_here() -> list[str]:
    return sorted(library("warcio.bufferedreaders", "source warc").BufferedReader.get_supported_decompressors())


WARC = Source(_identity, _units, _read)
