"""Files of a source, local or gs://: which they are, in which units they are read, and what cannot be read of them.

Small files are read in runs, so that a million of them make few units; large ones are cut where their kind allows.
A file that is empty, damaged or gone is found when it is read, and does not keep the others from being read.
"""

import concurrent.futures
import functools
import glob
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator

from gptjax.data.sources.records import Damaged, Document, OnError, Unit, library
from gptjax.errors import UserError, first_line

LONGEST_DOCUMENT = 1 << 30
"""Bytes. More is a file that isn't what it is taken for, and would not fit the memory."""

_FILES_OF_A_UNIT = 1 << 16


def find_files(path: str, endings: tuple[str, ...]) -> list:
    """The epath files that path names, in the order of their names: itself, a folder's with endings, or a glob's.

    Raises UserError: there are none.
    """
    try:
        return sorted(_found(path, endings), key=str)
    except ImportError as error:  # of the library for a store, which epath loads when it meets a path there
        raise UserError(f"data.path={path} cannot be read here: {error}; pip install 'etils[epath-gcs]'.") from error


def _found(path: str, endings: tuple[str, ...]) -> list:
    from etils import epath

    where = epath.Path(path).expanduser()
    if where.is_dir():
        files = [f for f in walk(where) if f.name.endswith(endings)]
        if not files:
            wanted = " or ".join("*" + e for e in endings if e) + " files"
            raise UserError(f"data.path={path} is a folder without {wanted.strip()}; name others by a glob.")
    elif where.exists():
        files = [where]
    elif any(c in path for c in "*?["):
        files = [f for f in _glob(str(where)) if f.is_file()]
        if not files:
            raise UserError(f"data.path={path} matches no file; check the glob.")
    else:
        raise UserError(f"data.path={path} does not exist; expected a file, a folder or a glob.")
    return files


def walk(folder) -> Iterator:
    """The files under an epath folder, at any depth, in no order."""
    from etils import epath

    if "://" not in str(folder):  # a fifth of the time of asking each entry whether it is a folder
        for where, _, names in os.walk(folder, followlinks=True):
            yield from (epath.Path(os.path.join(where, name)) for name in names)
        return
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from walk(entry)
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


def identity(files: list) -> list[dict] | dict:
    """Of each file its path, size and time of change, which say whether it is still the same; of very many, a hash."""
    stats = _stats(files)
    found = [{"path": _absolute(f), "size": s.length, "mtime": _mtime(f, s)} for f, s in zip(files, stats)]
    if len(found) <= _FILES_LISTED:
        return found
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    return {"count": len(found), "size": sum(s.length for s in stats), "sha256": digest}


_FILES_LISTED = 10_000


def _absolute(file) -> str:
    return str(file) if "://" in str(file) else os.path.abspath(file)


def _mtime(file, stat) -> int:
    """Nanoseconds on a local disk (a file may be rewritten within a second), what the store gives elsewhere."""
    return stat.mtime if "://" in str(file) else os.stat(file).st_mtime_ns


def _stats(files: list) -> list:
    """In threads where each is a request to a store."""
    if not any("://" in str(f) for f in files):
        return [f.stat() for f in files]
    with concurrent.futures.ThreadPoolExecutor(32) as threads:
        return list(threads.map(lambda f: f.stat(), files))


Cut = Callable[[object, int, int], list[tuple[int, int | None]]]
"""(file, its bytes, bytes of a unit) -> the parts (first, stop) it is read in; see Unit."""


def whole(file, size: int, unit_bytes: int) -> list[tuple[int, int | None]]:
    return [(0, None)]


def byte_ranges(file, size: int, unit_bytes: int) -> list[tuple[int, int | None]]:
    starts = range(0, size, unit_bytes)
    return list(zip(starts, [*starts[1:], None]))


def units(source: str, files: list, unit_bytes: int, cut: Cut = whole) -> list[Unit]:
    """Runs of files that together are smaller than unit_bytes, and the parts of larger ones. unit_bytes: at least 1."""
    found, run, run_bytes = [], [], 0
    for file, stat in zip(files, _stats(files)):
        if run and (run_bytes + stat.length > unit_bytes or len(run) == _FILES_OF_A_UNIT):
            found.append(Unit(source, tuple(run)))
            run, run_bytes = [], 0
        if stat.length > unit_bytes:
            found += [Unit(source, (str(file),), first, stop) for first, stop in cut(file, stat.length, unit_bytes)]
        else:
            run.append(str(file))
            run_bytes += stat.length
    return found + ([Unit(source, tuple(run))] if run else [])


def read(unit: Unit, on_error: OnError, read_file: Callable[[object], Iterator[Document]]) -> Iterator[Document]:
    """The documents of the unit's files. What ends a file's reading is reported, and the next file is read."""
    from etils import epath

    for path in unit.paths:
        file = epath.Path(path)
        try:
            if not file.stat().length:
                raise Damaged(f"{file} is empty; remove it, or name the files to read by a glob.")
            yield from read_file(file)
        except Damaged as error:
            on_error(error)
        except OSError as error:
            on_error(UserError(f"{file} cannot be read: {error.strerror or first_line(error)}; check it and its disk."))


class BadPacking(Exception):
    """What follows in a packed file cannot be unpacked. Says what it is a file of, and why: "... gzip file (...)"."""


def lines(file) -> Iterator[bytes]:
    """The lines of a file, unpacked by its ending: .gz, .zst. Raises Damaged: the packing is, or a line has no end."""
    n = at = 0
    with file.open("rb") as stream:
        unpacked = io.BufferedReader(unpacker(file, stream), 1 << 20)
        try:
            for line in iter(functools.partial(unpacked.readline, LONGEST_DOCUMENT), b""):
                _check_length(line, file, at)
                yield line
                n, at = n + 1, at + len(line)
        except BadPacking as error:
            raise Damaged(f"{file} is a {error}: nothing after line {n} can be read; fetch it again.") from error


def lines_from(stream, file, first: int) -> Iterator[tuple[int, bytes]]:
    """Byte where it starts, and line, of the lines of an open plain file that start at byte first or later."""
    if first:  # a line starts at first only if a newline stands before it
        stream.seek(first - 1)
        while (part := stream.readline(1 << 20)) and not part.endswith(b"\n"):
            pass
        first = stream.tell()
    for line in iter(functools.partial(stream.readline, LONGEST_DOCUMENT), b""):
        _check_length(line, file, first)
        yield first, line
        first += len(line)


def _check_length(line: bytes, file, at: int) -> None:
    if len(line) == LONGEST_DOCUMENT:
        limit = f"{LONGEST_DOCUMENT >> 30} GiB"
        raise Damaged(
            f"{file}: the line at byte {at} is longer than {limit}; expected a document a line, or lines of text."
        )


def unpacker(file, stream) -> io.RawIOBase:
    """What is packed in the stream of the file, as its ending has it. Reading may raise BadPacking.

    A read gives what there is and no error before that, as a buffer on top would that is asked for much.
    """
    if file.name.endswith(".gz"):
        return _Unpacked(stream, "gzip", lambda: zlib.decompressobj(wbits=31))
    if file.name.endswith(".zst"):
        zstd = library("zstandard", f"{file.name}, packed by zstd,").ZstdDecompressor(max_window_size=1 << 31)
        return _Unpacked(stream, "zstd", zstd.decompressobj)
    return stream


class _Unpacked(io.RawIOBase):
    """The members of a packed file, one after the other.

    zstandard's own reader takes the end of a truncated file for the end of the text, and so does warcio's for gzip.
    """

    def __init__(self, stream, kind: str, decompressor: Callable):
        self._stream, self._kind, self._decompressor = stream, kind, decompressor
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
        if self._member is None and self._kind == "gzip":
            packed = packed.lstrip(b"\0") if packed.count(0, 0, 1) else packed  # gzip files may be padded by zeros
        if not packed:
            if self._member is not None:
                raise BadPacking(f"damaged or truncated {self._kind} file (it ends too early)")
            return False
        self._text, self._packed = memoryview(self._decompressed(packed)), b""
        if self._member.eof:
            self._packed, self._member = self._member.unused_data, None
        return True

    def _decompressed(self, packed: bytes) -> bytes:
        self._member = self._member or self._decompressor()
        try:
            return self._member.decompress(packed)
        except Exception as error:  # zlib.error or zstandard.ZstdError, a library that may not be here
            raise BadPacking(f"damaged or truncated {self._kind} file ({first_line(error)})") from error


# Bytes. Where one of them is damaged, the rest of them is lost too.
_PACKED_CHUNK = 1 << 15
