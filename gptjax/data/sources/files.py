"""Files of a source, local or gs://: which they are, in which units they are read, and what cannot be read of them.

Small files are read in runs, so that a million of them make few units; large ones are cut where their kind allows.
A file that is empty, damaged or gone is found when it is read, and does not keep the others from being read.
"""

import concurrent.futures
import functools
import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator

from gptjax.config import text_kinds
from gptjax.data.sources import packing
from gptjax.data.sources.records import Damaged, Document, OnError, Unit
from gptjax.errors import UserError, first_line

LONGEST_DOCUMENT = 1 << 30
"""Bytes. More is a file that isn't what it is taken for, and would not fit the memory."""

_FILES_OF_A_UNIT = 1 << 16


def endings(kind: str) -> tuple[str, ...]:
    """Of the names of the files of a kind of source; () for one that reads none."""
    source = text_kinds.SOURCES[kind]
    return packing.with_packings(source.endings) if source.packed else source.endings


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
            raise UserError(f"data.path={path} is a folder without {_kinds_of(endings)}; name others by a glob.")
    elif where.exists():
        files = [where]
    elif any(c in path for c in "*?["):
        files = [f for f in _glob(str(where)) if f.is_file()]
        if not files:
            raise UserError(f"data.path={path} matches no file; check the glob.")
    else:
        raise UserError(f"data.path={path} does not exist; expected a file, a folder or a glob.")
    return files


def _kinds_of(endings: tuple[str, ...]) -> str:
    """Files with these endings in words, those of packed ones together."""
    plain = [ending for ending in endings if ending and not packing.is_ending(ending)]
    packed = ", packed or not" * (len(plain) < len(endings))
    return f"{' or '.join('*' + ending for ending in plain)} files{packed}".strip()


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
    """Of a file that is not plain, the whole."""
    if not packing.is_plain(file):
        return whole(file, size, unit_bytes)
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


def lines(file) -> Iterator[bytes]:
    """The lines of a packed file. Raises Damaged: the packing is, or a line has no end."""
    n = at = 0
    with file.open("rb") as stream:
        text = packing.buffered(file, stream)
        try:
            for line in iter(functools.partial(text.readline, LONGEST_DOCUMENT), b""):
                _check_length(line, file, at)
                yield line
                n, at = n + 1, at + len(line)
        except packing.BadPacking as error:
            raise Damaged(f"{file} is a {error}: nothing after line {n} can be read; fetch it again.") from error


def lines_from(stream, file, first: int) -> Iterator[tuple[int, bytes]]:
    """Byte where it starts, and line, of the lines of an open file that start at byte first or later; 0 if it is packed."""
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
