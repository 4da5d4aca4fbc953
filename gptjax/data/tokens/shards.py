"""Tokens on disk. A shard is a folder: the tokens as a one-dimensional zarr array, and a table of its documents.

    zarr.json       shape, type and layout of the array (Zarr 3, sharding codec)
    c/0             blocks of BLOCK tokens, each with its CRC-32C, and after them where each block lies
    documents.bin   int64 [documents, 2]: the token each document starts at, and its UTF-8 bytes
    weights/        of conversations: zarr.json and c/0 of a second array, float32: the weight of each token as a target

Weights are float32 because a user's weight of a message, such as 0.1, is then the one that is trained with, as in other
libraries; conversations are few beside the text of a pretraining, so that their four bytes a token count for little.

Documents lie end to end, each followed by end-of-text if the tokenizer has one. A local shard is mapped into memory; one
on gs:// is read by tensorstore, a block at a time. Either way a row costs the same wherever it lies, depends on no
context length, and every block is held against its CRC when it is first read.
"""

import contextlib
import functools
import hashlib
import json
import mmap
import pathlib
import typing

import google_crc32c
import numpy as np
from etils import epath

from gptjax.errors import UserError

BLOCK = 4096  # tokens, 8 or 16 KiB: what a row takes from the disk or gs://, once or twice or its length


WEIGHTS = "weights"  # folder in a shard


class ShardWriter:
    """Appends documents to a new shard in a folder, local or gs://. Memory in use is that of a document.

    weighted: whether each token has a weight as a target, as those of conversations do.
    """

    def __init__(self, folder, dtype: np.dtype, weighted: bool = False):
        folder = epath.Path(folder)
        self._token = _ArrayWriter(folder, dtype)
        self._weight = _ArrayWriter(folder / WEIGHTS, np.float32) if weighted else None
        self._document = _HashedFile(folder / "documents.bin")
        self.counts = {"documents": 0, "tokens": 0, "bytes": 0} | ({"targets": 0} if weighted else {})

    def add(self, ids: np.ndarray, n_bytes: int, weight_L: np.ndarray | None = None) -> None:
        """A document: its tokens, with end-of-text where it ends, and the UTF-8 bytes of its text."""
        self._document.write(np.array([self.counts["tokens"], n_bytes], "<i8"))
        self._token.add(ids)
        counts = (1, len(ids), n_bytes)
        if self._weight is not None:
            assert len(weight_L) == len(ids)
            self._weight.add(weight_L)
            counts += (int(np.count_nonzero(weight_L)),)
        for name, n in zip(self.counts, counts, strict=True):
            self.counts[name] += n

    def close(self) -> dict:
        """The shard's entry in a manifest: counts, and the size and SHA-256 of each file."""
        files = self._token.close() | {"documents.bin": self._document.close()}
        if self._weight is not None:
            files |= {f"{WEIGHTS}/{name}": about for name, about in self._weight.close().items()}
        return self.counts | {"files": files}


class _ArrayWriter:
    """Appends values to a new one-dimensional zarr array in a folder."""

    def __init__(self, folder, dtype: np.dtype):
        self._folder, self._dtype = folder, np.dtype(dtype).newbyteorder("<")
        (folder / "c").mkdir(parents=True, exist_ok=True)
        self._file = _HashedFile(folder / "c" / "0")
        self._waiting, self._n_waiting, self._blocks, self._size = [], 0, 0, 0

    def add(self, values: np.ndarray) -> None:
        self._waiting.append(values.astype(self._dtype))
        self._n_waiting += len(values)
        self._size += len(values)
        if self._n_waiting >= BLOCK:
            self._write_blocks()

    def close(self) -> dict:
        """{name: size and SHA-256} of its files."""
        self._waiting.append(np.zeros(-self._n_waiting % BLOCK if self._size else BLOCK, self._dtype))
        self._write_blocks()
        size = BLOCK * self._dtype.itemsize + 4
        index = np.array([(i * size, size) for i in range(self._blocks)], "<u8").tobytes()
        self._file.write(index + _crc(index))
        metadata = _HashedFile(self._folder / "zarr.json")
        metadata.write(json.dumps(_metadata(self._size, self._blocks, self._dtype), indent=2).encode())
        return {"zarr.json": metadata.close(), "c/0": self._file.close()}

    def _write_blocks(self) -> None:
        values = np.concatenate(self._waiting)
        whole = len(values) // BLOCK
        for block in values[: whole * BLOCK].reshape(whole, BLOCK):
            data = block.tobytes()
            self._file.write(data + _crc(data))
        self._blocks += whole
        self._waiting, self._n_waiting = [values[whole * BLOCK :]], len(values) - whole * BLOCK


def _crc(data) -> bytes:
    return google_crc32c.value(data).to_bytes(4, "little")


def _metadata(n_tokens: int, blocks: int, dtype: np.dtype) -> dict:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    checked = [little, {"name": "crc32c"}]
    sharding = {"chunk_shape": [BLOCK], "codecs": checked, "index_codecs": checked, "index_location": "end"}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [n_tokens],
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [blocks * BLOCK]}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "fill_value": 0,
    }


class _HashedFile:
    """A file that is only appended to, and hashed as it grows."""

    def __init__(self, path):
        self._stream, self._sha256, self._size = path.open("wb"), hashlib.sha256(), 0

    def write(self, data) -> None:
        data = data if isinstance(data, bytes) else data.tobytes()
        self._stream.write(data)
        self._sha256.update(data)
        self._size += len(data)

    def close(self) -> dict:
        self._stream.close()
        return {"size": self._size, "sha256": self._sha256.hexdigest()}


# ---- reading a shard: after `expect`, or without, `read` begins, and `wait` gives the tokens of what it returned


class MemoryShard:
    """A shard made of arrays."""

    def __init__(self, token: np.ndarray, document_start=(0,), document_bytes=None):
        self._token, self.n_tokens = np.asarray(token), len(token)
        self.document_start = np.asarray(document_start, np.int64)
        self.document_bytes = np.zeros(len(self.document_start), np.int64) if document_bytes is None else document_bytes

    def expect(self, start: int, stop: int) -> None:
        pass

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._token[start:stop]

    def wait(self, part: np.ndarray) -> np.ndarray:
        return part


class _DiskShard:
    """What shards on disk have in common: the table of documents, read, and held against its hash, when it is asked for."""

    def __init__(self, folder, n_tokens: int, dtype: str, documents_sha256: str | None = None):
        self._folder, self.n_tokens, self._dtype = str(folder), n_tokens, np.dtype(dtype).newbyteorder("<")
        self._documents_sha256 = documents_sha256

    def __reduce__(self):  # a process that reads ahead opens the files itself
        return type(self), (self._folder, self.n_tokens, self._dtype.name, self._documents_sha256)

    def _table(self, data) -> np.ndarray:
        """int64 [documents, 2] from the bytes of documents.bin. Raises UserError: they were altered."""
        if self._documents_sha256 not in (None, hashlib.sha256(data).hexdigest()):
            raise _altered(self._folder, "documents.bin has another SHA-256")
        return np.frombuffer(data, "<i8").reshape(-1, 2)

    @contextlib.contextmanager
    def _blamed(self) -> typing.Iterator[None]:
        """Raises UserError for what numpy and tensorstore raise at a file that is missing or another one."""
        try:
            yield
        except (OSError, KeyError, ValueError) as error:
            how = str(error).splitlines()[0].partition(" [tensorstore_spec=")[0]
            raise _altered(self._folder, how) from error

    @property
    def document_start(self) -> np.ndarray:
        return self._document[:, 0]

    @property
    def document_bytes(self) -> np.ndarray:
        return self._document[:, 1]


class MappedShard(_DiskShard):
    """A shard on a local disk."""

    @functools.cached_property
    def _document(self) -> np.ndarray:
        path = pathlib.Path(self._folder) / "documents.bin"
        if path.exists() and not path.stat().st_size:  # numpy cannot map an empty file
            return np.zeros((0, 2), np.int64)
        with self._blamed():
            return self._table(np.memmap(path, np.uint8, mode="r"))

    @functools.cached_property
    def _block(self) -> np.ndarray:
        """Records of BLOCK tokens and a CRC."""
        with self._blamed():
            return np.frombuffer(self._map, self._record, count=max(1, -(-self.n_tokens // BLOCK)))

    @functools.cached_property
    def _record(self) -> np.dtype:
        return np.dtype([("token", self._dtype, BLOCK), ("crc", "<u4")])

    @functools.cached_property
    def _map(self) -> mmap.mmap:
        """Read at random: without that advice the kernel reads 100 KiB and more around each row."""
        with self._blamed(), open(f"{self._folder}/c/0", "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped.madvise(mmap.MADV_RANDOM)
        return mapped

    @functools.cached_property
    def _checked(self) -> np.ndarray:
        return np.zeros(len(self._block), bool)

    def expect(self, start: int, stop: int) -> None:
        """Lets the disk begin with what will be read: so the rows of a batch are waited for together."""
        first = start // BLOCK * self._record.itemsize // mmap.PAGESIZE * mmap.PAGESIZE
        self._map.madvise(mmap.MADV_WILLNEED, first, ((stop - 1) // BLOCK + 1) * self._record.itemsize - first)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Raises UserError: a block was altered."""
        first, offset = divmod(start, BLOCK)
        last = (stop - 1) // BLOCK
        for i in range(first, last + 1):
            if not self._checked[i]:
                self._check(i)
        token = self._block["token"]
        if first == last:
            return token[first, offset : offset + stop - start]
        return token[first : last + 1].reshape(-1)[offset : offset + stop - start]

    def wait(self, part: np.ndarray) -> np.ndarray:
        return part

    def _check(self, i: int) -> None:
        block = self._block[i]
        if google_crc32c.value(block["token"].tobytes()) != block["crc"]:
            raise _altered(self._folder, f"block {i} of c/0 has another CRC")
        self._checked[i] = True


class RemoteShard(_DiskShard):
    """A shard on gs:// or another store that tensorstore reads; many reads go on at once."""

    @functools.cached_property
    def _document(self) -> np.ndarray:
        import tensorstore

        with self._blamed():
            read = tensorstore.KvStore.open(f"{self._folder}/").result().read("documents.bin").result()
            if read.state != "value":
                raise FileNotFoundError("documents.bin is missing")
            return self._table(read.value)

    @functools.cached_property
    def _array(self):
        import tensorstore

        spec = {"driver": "zarr3", "kvstore": f"{self._folder}/", "recheck_cached_metadata": "open"}
        spec |= {"fill_missing_data_reads": False}  # else a lost file would read as zeros
        spec |= {"recheck_cached_data": "open"}
        with self._blamed():
            return tensorstore.open(spec, read=True, open=True, context=_cache()).result()

    def expect(self, start: int, stop: int) -> None:
        """Nothing: `read` itself does not wait."""

    def read(self, start: int, stop: int):
        return self._array[start:stop].read()

    def wait(self, part) -> np.ndarray:
        """Raises UserError: a block was altered."""
        with self._blamed():
            return part.result()


@functools.cache
def _cache():
    """Of the last blocks read, and of where blocks lie: without it a row would cost its shard's whole index again."""
    import tensorstore

    return tensorstore.Context({"cache_pool": {"total_bytes_limit": 1 << 26}})


def _altered(folder: str, how: str) -> UserError:
    return UserError(f"{folder} was altered after it was written ({how}); make it again with gptjax prepare.")


def open_shard(folder, n_tokens: int, dtype: str, documents_sha256: str | None = None):
    return (RemoteShard if "://" in str(folder) else MappedShard)(folder, n_tokens, dtype, documents_sha256)


class Tokens:
    """One split of a source: the documents of its shards, end to end.

    weights: of conversations, each token's weight as a target, float32, read by `fill` as tokens are; None: of text.
    n_targets: how many of them are not 0.
    """

    def __init__(
        self, shards: list, byte_count: int = 0, weights: "Tokens | None" = None, n_targets: int | None = None
    ):
        self._shards, self.weights, self.n_targets = shards, weights, n_targets
        self._first = np.cumsum([0, *(shard.n_tokens for shard in self._shards)])  # token of each shard, and the end
        self.n_tokens = int(self._first[-1])
        self.byte_count = byte_count  # UTF-8 bytes of the text

    @functools.cached_property
    def _first_document(self) -> np.ndarray:
        return np.cumsum([0, *(len(shard.document_start) for shard in self._shards)])

    @property
    def n_documents(self) -> int:
        return int(self._first_document[-1])

    def read(self, start_B: np.ndarray, length: int) -> np.ndarray:
        """int32 [B, length]: the tokens from start_B on. Beyond the last token they repeat it."""
        token_BT = np.empty((len(start_B), length), np.int32)
        start_B = np.minimum(start_B, self.n_tokens - 1)
        stop_B = np.minimum(start_B + length, self.n_tokens)
        self.fill(token_BT, start_B, stop_B)
        for row, n in zip(token_BT, (stop_B - start_B).tolist()):
            row[n:] = row[n - 1]
        return token_BT

    def fill(self, target, start_P: np.ndarray, stop_P: np.ndarray) -> None:
        """Writes tokens start_P to stop_P - 1 into the arrays of target, one after the other."""
        parts = [
            (row, *part)
            for row, start, stop in zip(target, start_P.tolist(), stop_P.tolist())
            for part in self._parts(start, stop)
        ]
        for _, _, shard, first, end in parts:
            shard.expect(first, end)
        reads = [(row, begin, shard, shard.read(first, end)) for row, begin, shard, first, end in parts]
        for row, begin, shard, part in reads:
            part = shard.wait(part)
            row[begin : begin + len(part)] = part

    def _parts(self, start: int, stop: int):
        """(tokens before it, shard, its first token, its end) of each piece of a span."""
        i = int(np.searchsorted(self._first, start, "right")) - 1 if len(self._shards) > 1 else 0
        begin = 0
        while start + begin < stop:
            first = int(self._first[i])
            end = min(stop - first, self._shards[i].n_tokens)
            if end:  # a shard may hold only empty documents
                yield begin, self._shards[i], start + begin - first, end
            begin, i = first + end - start, i + 1

    def document_at(self, position_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64 [B] and [B]: the number of the document that holds each token, and the token it starts at."""
        number_B, start_B = (np.empty(len(position_B), np.int64) for _ in range(2))
        shard_B = np.searchsorted(self._first, position_B, "right") - 1
        for i in np.unique(shard_B):
            here, starts = shard_B == i, self._shards[i].document_start
            inside = np.searchsorted(starts, position_B[here] - self._first[i], "right") - 1
            number_B[here] = self._first_document[i] + inside
            start_B[here] = self._first[i] + starts[inside]
        return number_B, start_B

    def document_starts(self, number_D: np.ndarray) -> np.ndarray:
        """int64 [D]: the token that each document, by number, starts at."""
        start_D = np.empty(len(number_D), np.int64)
        shard_D = np.searchsorted(self._first_document, number_D, "right") - 1
        for i in np.unique(shard_D):
            here = shard_D == i
            start_D[here] = self._first[i] + self._shards[i].document_start[number_D[here] - self._first_document[i]]
        return start_D

    def documents(self, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 [stop - first, 2] and [stop - first]: first token and end, and UTF-8 bytes, of documents by number."""
        edge = self.document_starts(np.arange(first, min(stop + 1, self.n_documents)))
        edge = np.append(edge, self.n_tokens)[: stop - first + 1]
        size = [
            shard.document_bytes[max(0, first - begin) : max(0, stop - begin)]
            for shard, begin in zip(self._shards, self._first_document.tolist())
        ]
        return np.stack([edge[:-1], edge[1:]], axis=1), np.concatenate([np.zeros(0, np.int64), *size])
