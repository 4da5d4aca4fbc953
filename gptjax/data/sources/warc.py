"""WARC and WET files, as Common Crawl has them: the text of `conversion` records, the HTML of `response` records.

HTML is given as it came, decoded; making text of it is a step of cleaning. Whatever else such files hold (requests,
metadata, images, answers that are no success) is no document.
"""

import codecs
import functools
import re
from collections.abc import Iterator

from gptjax.config import DataConfig
from gptjax.data.sources import files
from gptjax.data.sources.records import Damaged, Document, OnError, Source, Unit, decoded, library
from gptjax.errors import UserError, first_line

_KINDS = (".warc", ".wet")
ENDINGS = tuple(kind + packing for kind in _KINDS for packing in ("", ".gz", ".zst"))
_HTML = ("text/html", "application/xhtml+xml")


def _identity(config: DataConfig) -> dict:
    return {"files": files.identity(files.find_files(config.path, ENDINGS))}


def _units(config: DataConfig, unit_bytes: int) -> list[Unit]:
    return files.units("warc", files.find_files(config.path, ENDINGS), unit_bytes)


def _read(config: DataConfig, unit: Unit, on_error: OnError) -> Iterator[Document]:
    return files.read(unit, on_error, functools.partial(_documents, on_error))


def _documents(on_error: OnError, file) -> Iterator[Document]:
    n = 0
    with file.open("rb") as stream:
        try:
            for n, found in enumerate(_whole_records(files.unpacker(file, stream)), start=1):
                where = f"{file} record {n}"
                try:
                    text = _text(*found, where)
                except UserError as error:
                    on_error(error)
                    continue
                if text is not None:
                    yield Document(text, where)
        except files.BadPacking as error:
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
        data = _content(record) if _is_document(record) else None
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
    except files.BadPacking:
        raise
    except Exception as error:  # ArchiveLoadFailed, and whatever else damaged headers make warcio raise
        raise _bad(first_line(error)) from error


def _bad(why: str) -> files.BadPacking:
    return files.BadPacking(f"damaged or no WARC file ({why})")


def _is_document(record) -> bool:
    if record.rec_type == "conversion":
        return True
    if record.rec_type != "response" or not record.http_headers:
        return False
    kind = (record.http_headers.get_header("Content-Type") or "").partition(";")[0].strip().lower()
    return kind in _HTML and record.http_headers.get_statuscode().startswith("2")


def _content(record) -> bytes | Exception:
    """The bytes of the document, or why they cannot be unpacked, which is for the reader of the record to say."""
    try:
        stream = record.content_stream()
        return b"".join(iter(lambda: stream.read(1 << 20), b""))
    except files.BadPacking:
        raise
    except Exception as error:  # what the decompressor of the HTTP Content-Encoding raises
        return error


def _text(record, data: bytes | Exception | None, where: str) -> str | None:
    if data is None:
        return None
    if record.rec_type == "conversion":
        return decoded(data, where)
    packing = (record.http_headers.get_header("Content-Encoding") or "identity").strip().lower()
    if isinstance(data, Exception):
        raise UserError(f"{where} cannot be unpacked as {packing}: {first_line(data)}.") from data
    if packing not in ("identity", *_unpacked_here()):
        raise UserError(
            f"{where} has the Content-Encoding {packing!r}; expected one of: {', '.join(_unpacked_here())}."
        )
    return _html(data, record.http_headers.get_header("Content-Type"), where)


def _unpacked_here() -> list[str]:
    return sorted(library("warcio.bufferedreaders", "source warc").BufferedReader.get_supported_decompressors())


# ---- the encoding of HTML


def _html(data: bytes, content_type: str, where: str) -> str:
    """Decoded by its byte-order mark, the HTTP header's charset, the document's own, else as UTF-8."""
    said = _charset(data, content_type)
    try:
        return data.decode(_WEB_NAMES.get(codecs.lookup(said).name, said)).removeprefix("\ufeff")
    except LookupError as error:
        raise UserError(f"{where} says that it is encoded in {said!r}, which is not known.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where} is not {said}, as it says, at byte {error.start} (0x{data[error.start]:02x})."
        ) from error


def _charset(data: bytes, content_type: str) -> str:
    if data.startswith(codecs.BOM_UTF8):
        return "utf-8"
    for mark, name in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if data.startswith(mark):
            return name
    header = re.search(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", content_type, re.IGNORECASE)
    if header:
        return header[1]
    meta = re.search(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]+)", data[:_META_WITHIN], re.IGNORECASE)
    return meta[1].decode() if meta and not meta[1].lower().startswith(b"utf-16") else "utf-8"


_META_WITHIN = 4096  # bytes; the HTML standard asks for 1024, and pages are laxer

# What browsers take a name for (WHATWG, Encoding, section 4.2), where Python's codec of that name is a smaller set.
_WEB_NAMES = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
}


WARC = Source(_identity, _units, _read)
