"""Packed files: unpacked by their first bytes, whatever they are called, by one function for every source.

What a file is comes from the bytes it begins with, so that gzip under a plain name is unpacked, and plain text under the
name of a packed file is read as it is. A packing that is not unpacked here is named with what to do.
"""

import codecs
import io
import re
import zlib
from collections.abc import Callable
from typing import NamedTuple

from gptjax.data.sources.records import Damaged, library
from gptjax.errors import first_line


class Packing(NamedTuple):
    """How files of a kind are known, and unpacked member by member."""

    name: str
    ending: str  # of files that are named by it
    start: re.Pattern  # their first bytes
    decompressor: Callable  # (file) -> an object with decompress, eof and unused_data, for one member of the file
    zeros: bool  # whether zeros may stand behind a member


def _gzip(file):
    return zlib.decompressobj(wbits=31)


def _zstd(file):
    zstandard = library("zstandard", f"{file.name}, packed by zstd,")
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


def _xz(file):
    import lzma

    return lzma.LZMADecompressor(lzma.FORMAT_XZ)


def _bz2(file):
    import bz2

    return bz2.BZ2Decompressor()


# The first bytes are those of RFC 1952 (gzip, with its one method), RFC 8878 (zstd, also a skippable frame), the .xz file
# format 1.2 (section 2.1.1.1) and bzip2's manual (a block, or the end of a file without any).
PACKINGS = (
    Packing("gzip", ".gz", re.compile(rb"\x1f\x8b\x08"), _gzip, True),
    Packing("zstd", ".zst", re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"), _zstd, False),
    Packing("xz", ".xz", re.compile(rb"\xfd7zXZ\x00"), _xz, True),
    Packing("bzip2", ".bz2", re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), _bz2, False),
)

# What a file may be instead of text, and what to do. No text in UTF-8 that anyone would write begins so.
_OTHERS = (
    (rb"PK\x03\x04", "a zip archive", "unpack it"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (rb"\x04\x22\x4d\x18", "packed by lz4", "unpack it"),
    (rb"\x1f\x9d", "packed by compress", "unpack it"),
    (rb"\xff\x06\x00\x00sNaPpY", "packed by snappy", "unpack it"),
    (rb"PAR1\x15", "a Parquet file", "read it as parquet:PATH"),
    (rb"%PDF-\d\.\d", "a PDF document", "make text of it"),
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "in UTF-32", "convert it to UTF-8"),
    (rb"\xff\xfe|\xfe\xff", "in UTF-16", "convert it to UTF-8"),
)
_HEAD_BYTES = 16
_PACKED_CHUNK = 1 << 15  # bytes; where one of them is damaged, the rest of them is lost too


class BadPacking(Exception):
    """What follows in a packed file cannot be unpacked. Says what it is a file of, and why: "... gzip file (...)"."""


def with_packings(endings: tuple[str, ...]) -> tuple[str, ...]:
    """The endings, and those of the same files packed."""
    return tuple(ending + packed for packed in ("", *(packing.ending for packing in PACKINGS)) for ending in endings)


def is_ending(ending: str) -> bool:
    """Whether a name with this ending is that of a packed file."""
    return ending.endswith(tuple(packing.ending for packing in PACKINGS))


def is_plain(file) -> bool:
    """Whether the file is read as it lies on disk, so that a reader can begin anywhere in it.

    One that cannot be opened, or is of another kind, is left to its reader to report.
    """
    try:
        return _packing(file, _head(file)) is None
    except (OSError, Damaged):
        return False


def unpacked(file, stream) -> io.RawIOBase:
    """What is packed in the stream of the file; the stream itself, if nothing is. Reading may raise BadPacking.

    A read gives what there is and no error before that, as a buffer on top would that is asked for much. Raises Damaged:
    the file is of another kind, by its first bytes, or neither text nor of the packing that its name promises.
    """
    packing = _packing(file, stream.read(_HEAD_BYTES))
    stream.seek(0)
    return stream if packing is None else _Unpacked(file, stream, packing)


def _packing(file, head: bytes) -> Packing | None:
    """Of a file that begins with head. Raises Damaged as unpacked does."""
    packing = _packing_of(head)
    if packing is not None:
        return packing
    if (other := _other_kind(head)) is not None:
        raise Damaged(f"{file} is {other}.")
    promised = next((packing for packing in PACKINGS if file.name.endswith(packing.ending)), None)
    if promised is not None and not _may_be_text(head):
        what = f"{file} is damaged or no {promised.name} file: it begins with the bytes {head[:4].hex(' ')}"
        raise Damaged(f"{what}; fetch it again.")
    return None


def buffered(file, stream):
    """As unpacked, with lines to be read."""
    raw = unpacked(file, stream)
    return raw if raw is stream else io.BufferedReader(raw, 1 << 20)


def not_opened(file, kind: str, why: str) -> Damaged:
    """The error of a file that the reader of its kind, which reads it as it lies on disk, cannot open."""
    head = _head(file)
    packing, other = _packing_of(head), _other_kind(head)
    if packing is not None:
        return Damaged(f"{file} is packed by {packing.name}; unpack it: {kind} files are read where they lie.")
    if other is not None and kind not in other:
        return Damaged(f"{file} is {other}.")
    return Damaged(f"{file} is a damaged or no {kind} file ({why}); fetch it again.")


def _head(file) -> bytes:
    with file.open("rb") as stream:
        return stream.read(_HEAD_BYTES)


def _packing_of(head: bytes) -> Packing | None:
    return next((packing for packing in PACKINGS if packing.start.match(head)), None)


def _other_kind(head: bytes) -> str | None:
    return next((f"{what}; {cure}" for start, what, cure in _OTHERS if re.match(start, head)), None)


def _may_be_text(head: bytes) -> bool:
    try:
        return "\0" not in codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False


class _Unpacked(io.RawIOBase):
    """The members of a packed file, one after the other.

    zstandard's own reader takes the end of a truncated file for the end of the text, and so does warcio's for gzip.
    """

    def __init__(self, file, stream, packing: Packing):
        self._file, self._stream, self._packing = file, stream, packing
        self._member, self._packed, self._text = None, b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._text and self._fill():
            pass
        n = min(len(buffer), len(self._text))
        buffer[:n], self._text = self._text[:n], self._text[n:]
        return n

    def _fill(self) -> bool:
        """Unpacks what the next bytes of the file hold, which may be nothing; False at its end."""
        packed = self._packed or self._stream.read(_PACKED_CHUNK)
        if self._member is None and self._packing.zeros:
            packed = packed.lstrip(b"\0") if packed.count(0, 0, 1) else packed
        if not packed:
            if self._member is not None:
                raise self._bad("it ends too early")
            return False
        self._text, self._packed = memoryview(self._decompressed(packed)), b""
        if self._member.eof:
            self._packed, self._member = self._member.unused_data, None
        return True

    def _decompressed(self, packed: bytes) -> bytes:
        self._member = self._member or self._packing.decompressor(self._file)
        try:
            return self._member.decompress(packed)
        except MemoryError:
            raise
        except Exception as error:  # zlib.error, LZMAError, OSError of bz2, ZstdError of a library that may not be here
            raise self._bad(first_line(error)) from error

    def _bad(self, why: str) -> BadPacking:
        return BadPacking(f"damaged or truncated {self._packing.name} file ({why})")
