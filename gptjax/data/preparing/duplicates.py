"""Phase 2 of deduplication: which documents of files of fingerprints equal an earlier one, in memory of fixed size.

A document's number counts through the files in order. Pairs that are duplicates join their clusters, and the first
document of each cluster stays. Pairs are: equal fingerprints; for minhash also documents that share a band and whose
signatures agree in at least threshold of their places, compared within each bucket (documents with an equal band): the
first with all others, and every one with the 256 behind it.

On disk under workdir: keys of 64 bits with document numbers, parted by the key so that one part fits into memory
(16 bytes a document and band); a parent and a flag for each document, mapped. Fingerprints are read by document, as
they are needed. The answer depends on the fingerprints and their order alone, not on the number of parts.
"""

import errno
import os
import pathlib
from typing import NamedTuple

import numpy as np

from gptjax.data.preparing.dedup import Settings
from gptjax.data.rows.hashing import mix
from gptjax.errors import UserError

_PART_BYTES = 32 << 20
_CHUNK_BYTES = 8 << 20
_PAIRS = 8192
_WINDOW = 256
_BLOCK = 2048
_RECORD = np.dtype([("key", "<u8"), ("document", "<i8")])
_LARGEST = 10
_SHOWN_MEMBERS = 5


class Duplicates(NamedTuple):
    """keep: for each file bool [documents], mapped from disk. report: JSON values: documents, removed (equal, near),
    clusters, largest: [{"size", "members": first [file, document of the file] pairs}]."""

    keep: list[np.ndarray]
    report: dict


def find_duplicates(files: list, settings: Settings, workdir, parts: int | None = None) -> Duplicates:
    """Raises UserError: a file that is no whole number of fingerprints, no space left under workdir."""
    rows = _Rows(files, settings)
    folder = pathlib.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _find(rows, settings, folder, parts)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        size = (16 * (settings.bands if settings.kind == "minhash" else 1) + 25) * rows.count
        raise UserError(f"{folder} has no space left; deduplication needs up to {size / 1e9:.1f} GB there.") from error
    finally:
        rows.close()
        for path in folder.glob("part-*.bin"):
            path.unlink()


def _find(rows: "_Rows", settings: Settings, folder: pathlib.Path, parts: int | None) -> Duplicates:
    clusters = _Clusters(folder / "parents.bin", rows.count)
    spill = _Parts(folder, parts or 1 + 2 * 16 * rows.count // _PART_BYTES)
    for first, row in rows.chunks():
        spill.add(_keys(row), np.arange(first, first + len(row)))
    for part in spill.parts():
        _join_equal(part, rows, clusters)
    n_equal = clusters.removed()
    if settings.kind == "minhash":
        spill = _Parts(folder, parts or 1 + 2 * 16 * rows.count * settings.bands // _PART_BYTES)
        for first, row in rows.chunks():
            alone = np.flatnonzero(clusters.parent[first : first + len(row)] == np.arange(first, first + len(row)))
            key_NB = _band_keys(row[alone], settings)
            spill.add(key_NB.ravel(), np.repeat(alone + first, settings.bands))
        for part in spill.parts():
            _join_near(np.fromfile(part, _RECORD), rows, clusters, settings)
    return _answer(rows, clusters, folder, n_equal)


def _answer(rows: "_Rows", clusters: "_Clusters", folder: pathlib.Path, n_equal: int) -> Duplicates:
    flag = _mapped(folder / "keep.bin", bool, rows.count)
    size = _mapped(folder / "sizes.bin", np.int64, rows.count)
    for a, b in _ranges(rows.count):
        root = clusters.roots(np.arange(a, b))
        flag[a:b] = root == np.arange(a, b)
        np.add.at(size, root, 1)
    removed = clusters.removed()
    report = {"documents": rows.count, "removed": removed, "equal": n_equal, "near": removed - n_equal}
    report |= _largest(rows, clusters, size)
    return Duplicates([flag[a:b] for a, b in zip(rows.starts, rows.starts[1:])], report)


def _largest(rows: "_Rows", clusters: "_Clusters", size: np.ndarray) -> dict:
    n_clusters, best = 0, []
    for a, b in _ranges(len(size)):
        place = np.flatnonzero(size[a:b] > 1)
        n_clusters += len(place)
        best += [
            (-int(size[a + i]), int(a + i)) for i in place[np.argsort(-size[a:b][place], kind="stable")[:_LARGEST]]
        ]
        best = sorted(best)[:_LARGEST]
    members: dict[int, list] = {root: [] for _, root in best}
    for a, b in _ranges(len(size) if best else 0):
        root = clusters.roots(np.arange(a, b))
        for r, found in members.items():
            lacking = _SHOWN_MEMBERS - len(found)
            found += [rows.place(int(a + i)) for i in np.flatnonzero(root == r)[:lacking]]
    return {"clusters": n_clusters, "largest": [{"size": -n, "members": members[root]} for n, root in best]}


# ---- fingerprints


class _Rows:
    """The fingerprints of all files by number, read when asked for (not mapped: that would count as memory in use)."""

    def __init__(self, files: list, settings: Settings):
        self._settings, self._files = settings, files
        counts = []
        for file in files:
            size = os.stat(file).st_size
            if size % settings.row_bytes:
                what = f"{settings.row_bytes} bytes of a {settings.kind} fingerprint"
                raise UserError(f"{file} has {size} bytes, no multiple of the {what}; write it again.")
            counts.append(size // settings.row_bytes)
        self.starts = [0, *np.cumsum(counts).tolist()] if counts else [0]
        self.count = self.starts[-1]
        self._open: dict[int, int] = {}

    def chunks(self):
        """(number of the first, rows [n, length]), in order."""
        step = _CHUNK_BYTES // self._settings.row_bytes
        for file, (a, b) in enumerate(zip(self.starts, self.starts[1:])):
            for first in range(a, b, step):
                n = min(step, b - first)
                yield first, self._read(file, first - a, n)

    def __getitem__(self, number: np.ndarray) -> np.ndarray:
        """Rows [n, length] of documents by ascending number, each read by itself."""
        file = np.searchsorted(self.starts, number, side="right") - 1
        return np.concatenate([self._read(f, i - self.starts[f], 1) for f, i in zip(file.tolist(), number.tolist())])

    def place(self, number: int) -> list[int]:
        file = int(np.searchsorted(self.starts, number, side="right")) - 1
        return [file, number - self.starts[file]]

    def _read(self, file: int, first: int, n: int) -> np.ndarray:
        if file not in self._open:
            if len(self._open) >= 64:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[file] = os.open(self._files[file], os.O_RDONLY)
        size = self._settings.row_bytes
        data = os.pread(self._open[file], n * size, first * size)
        return np.frombuffer(data, self._settings.dtype).reshape(n, self._settings.length)

    def close(self) -> None:
        for handle in self._open.values():
            os.close(handle)
        self._open.clear()


def _keys(row: np.ndarray) -> np.ndarray:
    """uint64 [n] of rows [n, length]."""
    key = np.zeros(len(row), np.uint64)
    for value in row.T:
        key = mix(key ^ value)
    return key


def _band_keys(row: np.ndarray, settings: Settings) -> np.ndarray:
    """uint64 [n, bands]; those of different bands are unrelated."""
    band = row[:, : settings.bands * settings.rows].reshape(len(row), settings.bands, settings.rows)
    key = np.broadcast_to(mix(np.arange(settings.bands, dtype=np.uint64)), band.shape[:2])
    for i in range(settings.rows):
        key = mix(key ^ band[:, :, i])
    return key


# ---- on disk


def _mapped(path: pathlib.Path, dtype, count: int) -> np.ndarray:
    """Zeros, mapped from a new file; its space is taken at once, so that a full disk is an error and not a crash."""
    size = count * np.dtype(dtype).itemsize
    if not size:
        return np.zeros(0, dtype)
    with path.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, size)
    return np.memmap(path, dtype, mode="r+", shape=(count,))


def _ranges(count: int) -> list[tuple[int, int]]:
    return [(a, min(a + 65536, count)) for a in range(0, count, 65536)]


class _Parts:
    """Records (key, document) in files by the key's highest bits, in the order in which they were added."""

    def __init__(self, folder: pathlib.Path, count: int):
        self._paths = [folder / f"part-{i:05d}.bin" for i in range(count)]
        for path in self._paths:
            path.write_bytes(b"")

    def add(self, key: np.ndarray, document: np.ndarray) -> None:
        record = np.empty(len(key), _RECORD)
        record["key"], record["document"] = key, document
        part = ((key >> np.uint64(32)) * np.uint64(len(self._paths))) >> np.uint64(32)
        order = np.argsort(part, kind="stable")
        edges = np.searchsorted(part[order], np.arange(len(self._paths) + 1))
        for path, a, b in zip(self._paths, edges, edges[1:]):
            if a < b:
                with path.open("ab") as stream:
                    stream.write(record[order[a:b]].tobytes())

    def parts(self):
        for path in self._paths:
            yield path
            path.unlink()


class _Clusters:
    """Union-find: the root of a cluster is its first document."""

    def __init__(self, path: pathlib.Path, count: int):
        self.parent = _mapped(path, np.int64, count)
        for a, b in _ranges(count):
            self.parent[a:b] = np.arange(a, b)

    def roots(self, document: np.ndarray) -> np.ndarray:
        root = self.parent[document]
        while True:
            above = self.parent[root]
            if np.array_equal(above, root):
                self.parent[document] = root
                return root
            root = above

    def join(self, a: int, b: int) -> None:
        a, b = self._root(a), self._root(b)
        if a != b:
            self.parent[max(a, b)] = min(a, b)

    def _root(self, document: int) -> int:
        while (above := int(self.parent[document])) != document:
            self.parent[document] = self.parent[above]
            document = above
        return document

    def removed(self) -> int:
        return sum(int((self.parent[a:b] != np.arange(a, b)).sum()) for a, b in _ranges(len(self.parent)))


# ---- pairs


def _join_equal(path: pathlib.Path, rows: _Rows, clusters: _Clusters) -> None:
    """Documents come in ascending order; only the distinct keys of a part are held, however often one repeats."""
    known, first = np.zeros(0, np.uint64), np.zeros(0, np.int64)
    with path.open("rb") as stream:
        while data := stream.read(_CHUNK_BYTES):
            record = np.frombuffer(data, _RECORD)
            key, where, inverse = np.unique(record["key"], return_index=True, return_inverse=True)
            document = record["document"][where]
            if len(known):
                at = np.minimum(np.searchsorted(known, key), len(known) - 1)
                old = known[at] == key
                document = np.where(old, first[at], document)
            _join_same(document[inverse], record["document"], rows, clusters)
            known, place = np.unique(np.concatenate([known, key]), return_index=True)
            first = np.concatenate([first, document])[place]


def _join_same(a: np.ndarray, b: np.ndarray, rows: _Rows, clusters: _Clusters) -> None:
    """Sets the parent of b to a where their fingerprints are equal, as those with equal keys of 64 bits should be."""
    a, b = a[a != b], b[a != b]
    for first in range(0, len(a), _PAIRS):
        x, y = a[first : first + _PAIRS], b[first : first + _PAIRS]
        number, place = np.unique(np.concatenate([x, y]), return_inverse=True)
        row = rows[number]
        same = (row[place[: len(x)]] == row[place[len(x) :]]).all(axis=1)
        clusters.parent[y[same]] = x[same]


def _join_near(record: np.ndarray, rows: _Rows, clusters: _Clusters, settings: Settings) -> None:
    record = record[np.lexsort((record["document"], record["key"]))]
    edge = np.flatnonzero(np.diff(record["key"])) + 1
    start = np.concatenate([[0], edge]) if len(record) else edge
    size = np.diff(np.concatenate([start, [len(record)]]))
    document, bucket = record["document"], np.repeat(np.arange(len(size)), size)
    head = document[start][bucket]
    other = document != head
    _join_similar(head[other], document[other], rows, clusters, settings)
    for i in np.flatnonzero(size > 2):
        _join_bucket(document[start[i] : start[i] + size[i]], rows, clusters, settings)


def _join_bucket(member: np.ndarray, rows: _Rows, clusters: _Clusters, settings: Settings) -> None:
    """Compares each with the _WINDOW behind it, where the bucket is not one cluster already."""
    root = clusters.roots(member)
    if (root == root[0]).all():
        return
    for first in range(0, len(member), _BLOCK):
        block = member[first : first + _BLOCK + _WINDOW]
        row = rows[block]
        for shift in range(1, min(_WINDOW, len(block) - 1) + 1):
            n = min(_BLOCK, len(block) - shift)
            agree = (row[:n] == row[shift : shift + n]).sum(axis=1)
            for i in np.flatnonzero(agree >= settings.threshold * settings.permutations).tolist():
                clusters.join(int(block[i]), int(block[i + shift]))


def _join_similar(a: np.ndarray, b: np.ndarray, rows: _Rows, clusters: _Clusters, settings: Settings) -> None:
    """Joins the pairs that are not in one cluster yet and whose signatures agree often enough."""
    least = settings.threshold * settings.permutations
    for first in range(0, len(a), _PAIRS):
        x, y = a[first : first + _PAIRS], b[first : first + _PAIRS]
        apart = clusters.roots(x) != clusters.roots(y)
        x, y = x[apart], y[apart]
        if not len(x):
            continue
        number, place = np.unique(np.concatenate([x, y]), return_inverse=True)
        row = rows[number]
        similar = (row[place[: len(x)]] == row[place[len(x) :]]).sum(axis=1) >= least
        for pair in zip(x[similar].tolist(), y[similar].tolist()):
            clusters.join(*pair)
