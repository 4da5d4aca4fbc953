"""A GGUF file (versions 2 and 3, little-endian): header, metadata and tensors.

Layout (ggml's docs/gguf.md): the magic number, version, number of tensors, number of metadata entries; the entries, each a
name, a type and a value; for each tensor its name, its dimensions (the one that runs fastest first), its type and its
offset; padding to the alignment; the tensors' bytes.

The file is mapped: a tensor's bytes are read when it is asked for. Every length is checked against the file before
anything of that length is made, so that a truncated or hostile file costs no more memory than its own size.
"""

import dataclasses
import math
import mmap
import struct

import numpy as np
from etils import epath

from gptjax.errors import UserError, shorten
from gptjax.gguf import blocks

MAGIC = b"GGUF"
VERSION = 3
_VERSIONS = (2, 3)
ALIGNMENT = 32  # of tensors, where general.alignment says nothing else
_MOST_DIMENSIONS = 4
_MOST_NESTED = 8  # arrays in arrays
_STRING, _ARRAY = 8, 9
SCALARS = {  # number of a type of values: its form in struct
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
U32, I32, F32, BOOL = 4, 5, 6, 7
# The least bytes that an entry, an array's element and a tensor's description take.
_LEAST_ENTRY, _LEAST_STRING, _LEAST_ARRAY, _LEAST_TENSOR = 8 + 4 + 1, 8, 4 + 8, 8 + 4 + 8 + 4 + 8


class _Cursor:
    """Reads a mapped file from front to back. Raises UserError: it ends too early."""

    def __init__(self, view: memoryview, where):
        self._view, self.where, self.at = view, where, 0

    @property
    def left(self) -> int:
        return len(self._view) - self.at

    def take(self, size: int, what: str) -> memoryview:
        if size > self.left:
            raise UserError(
                f"{self.where} ends inside {what}: {size:,} bytes from byte {self.at:,} on, and the file has"
                f" {len(self._view):,}; copy the file again."
            )
        self.at += size
        return self._view[self.at - size : self.at]

    def number(self, form: str, what: str):
        return struct.unpack(form, self.take(struct.calcsize(form), what))[0]

    def count(self, form: str, least: int, what: str) -> int:
        """A number of things of at least so many bytes each, which the rest of the file can hold."""
        count = self.number(form, what)
        if count * least > self.left:
            raise UserError(
                f"{self.where} says that it has {count:,} {what}, more than its {len(self._view):,} bytes can hold; copy"
                " the file again."
            )
        return count

    def text(self, what: str) -> str:
        size = self.count("<Q", 1, f"characters of {what}")
        return bytes(self.take(size, what)).decode("utf-8", errors="replace")

    def value(self, kind: int, what: str, depth: int = 0):
        """A value of metadata: a number, a text, an array of numbers, a list of texts."""
        if kind in SCALARS:
            return self.number(SCALARS[kind], what)
        if kind == _STRING:
            return self.text(what)
        if kind != _ARRAY or depth == _MOST_NESTED:
            problem = f"has a value of type {kind}" if kind != _ARRAY else f"nests more than {depth} arrays"
            raise UserError(f"{self.where}: {what} {problem}, which GGUF {VERSION} does not have; copy the file again.")
        return self._array(what, depth)

    def _array(self, what: str, depth: int):
        kind = self.number("<I", what)
        if kind in SCALARS:
            form = np.dtype(SCALARS[kind])
            count = self.count("<Q", form.itemsize, f"values of {what}")
            return np.frombuffer(self.take(count * form.itemsize, what), form).copy()
        count = self.count("<Q", _LEAST_STRING if kind == _STRING else _LEAST_ARRAY, f"values of {what}")
        return [self.value(kind, what, depth + 1) for _ in range(count)]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One of a file. shape: as NumPy has it, the dimension that runs fastest last. start: its first byte in the file."""

    shape: tuple[int, ...]
    type: blocks.BlockType
    start: int

    @property
    def nbytes(self) -> int:
        return self.type.size(math.prod(self.shape))


class Reader:
    """A file's metadata, {name: value}, and its tensors, {name: Tensor}. Use it in a `with`.

    Raises UserError: no such file, another kind of file, or one that is damaged.
    """

    def __init__(self, path: str):
        self.where = epath.Path(path).expanduser()
        self._view = memoryview(_mapped(self.where))
        cursor = _Cursor(self._view, self.where)
        tensor_count, entry_count = _header(cursor)
        self.metadata = _metadata(cursor, entry_count)
        described = _descriptions(cursor, tensor_count)
        self.tensors = _placed(cursor, described, _alignment(self.metadata, self.where))

    def read(self, name: str) -> np.ndarray:
        """float32, in the tensor's shape."""
        tensor = self.tensors[name]
        of_tensor = self._view[tensor.start : tensor.start + tensor.nbytes]
        return blocks.decoded(np.frombuffer(of_tensor, np.uint8), tensor.type, tensor.shape)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error) -> None:
        self._view = memoryview(b"")  # the mapping goes with the last array over it


def _mapped(where):
    if "://" in str(where):
        raise UserError(f"{where} is not on this machine; copy it here, as a GGUF file is mapped into memory.")
    if not where.exists() or where.is_dir():
        problem = "is a folder" if where.is_dir() else "is not there"
        raise UserError(f"{where} {problem}; expected a GGUF file of llama.cpp.")
    with open(where, "rb") as file:
        if not where.stat().length:
            raise UserError(f"{where} is empty; expected a GGUF file of llama.cpp: copy the file again.")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _header(cursor: _Cursor) -> tuple[int, int]:
    """(number of tensors, number of metadata entries)."""
    magic = bytes(cursor.take(4, "the header"))
    if magic != MAGIC:
        raise UserError(f"{cursor.where} begins with {magic!r}, not {MAGIC!r}; expected a GGUF file of llama.cpp.")
    version = cursor.number("<I", "the header")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS
        what = "is big-endian" if swapped else f"is of version {version}"
        raise UserError(
            f"{cursor.where} {what}; expected a little-endian GGUF file of version 2 or 3: convert it anew."
        )
    tensors = cursor.count("<Q", _LEAST_TENSOR, "tensors")
    return tensors, cursor.count("<Q", _LEAST_ENTRY, "metadata entries")


def _metadata(cursor: _Cursor, count: int) -> dict:
    metadata = {}
    for _ in range(count):
        name = cursor.text("a name of metadata")
        if name in metadata:
            raise UserError(f"{cursor.where} has {shorten(repr(name), 80)} twice in its metadata; copy the file again.")
        metadata[name] = cursor.value(cursor.number("<I", "metadata"), shorten(repr(name), 80))
    return metadata


def _descriptions(cursor: _Cursor, count: int) -> dict[str, tuple]:
    """{name: (shape, type, offset from where the tensors begin)}."""
    described = {}
    for _ in range(count):
        name = cursor.text("a name of a tensor")
        shown = shorten(repr(name), 80)
        if name in described:
            raise UserError(f"{cursor.where} has the tensor {shown} twice; copy the file again.")
        dimensions = cursor.number("<I", shown)
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise UserError(f"{cursor.where}: {shown} has {dimensions} dimensions; expected 1 to {_MOST_DIMENSIONS}.")
        shape = tuple(cursor.number("<Q", shown) for _ in range(dimensions))[::-1]
        kind = blocks.by_number(cursor.number("<I", shown), f"{cursor.where}: {shown}")
        if 0 in shape or shape[-1] % kind.values:
            raise UserError(
                f"{cursor.where}: {shown} is {list(shape)} of {kind.name}, whose rows are multiples of {kind.values}; copy"
                " the file again."
            )
        described[name] = shape, kind, cursor.number("<Q", shown)
    return described


def _alignment(metadata: dict, where) -> int:
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise UserError(f"{where}: general.alignment={alignment!r}; expected a power of two.")
    return alignment


def _placed(cursor: _Cursor, described: dict[str, tuple], alignment: int) -> dict[str, Tensor]:
    """Raises UserError: a tensor that begins amid the alignment or ends behind the file."""
    start = -(-cursor.at // alignment) * alignment
    size = cursor.at + cursor.left
    tensors = {}
    for name, (shape, kind, offset) in described.items():
        tensor = tensors[name] = Tensor(shape, kind, start + offset)
        if offset % alignment or tensor.start + tensor.nbytes > size:
            raise UserError(
                f"{cursor.where}: {shorten(repr(name), 80)} lies in bytes {tensor.start:,} to"
                f" {tensor.start + tensor.nbytes:,} of a file of {size:,}, aligned to {alignment}; copy the file again."
            )
    return tensors


# ---- writing


@dataclasses.dataclass(frozen=True)
class Value:
    """One of metadata that is no text, flag or list of texts: a number, or array of numbers, with its type's number."""

    value: object
    kind: int


def _packed_text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _packed(value) -> bytes:
    """A value with its type before it."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _packed_text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, list):  # of texts
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_packed_text, value))
    if isinstance(value.value, np.ndarray):
        numbers = value.value.astype(SCALARS[value.kind])
        return struct.pack("<IIQ", _ARRAY, value.kind, numbers.size) + numbers.tobytes()
    return struct.pack("<I", value.kind) + struct.pack(SCALARS[value.kind], value.value)


class Writer:
    """A file, written from front to back: metadata, the description of all tensors, then each tensor in their order."""

    def __init__(self, file, metadata: dict, described: dict[str, tuple[tuple[int, ...], blocks.BlockType]]):
        """file: open for writing. metadata: texts, flags, lists of texts, Values. described: {name: (shape, type)}."""
        self._file, self._waiting = file, dict(described)
        parts = [MAGIC, struct.pack("<IQQ", VERSION, len(described), len(metadata))]
        parts += [_packed_text(name) + _packed(value) for name, value in metadata.items()]
        offset = 0
        for name, (shape, kind) in described.items():
            parts.append(_packed_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1]))
            parts.append(struct.pack("<IQ", kind.number, offset))
            offset += _aligned(kind.size(math.prod(shape)))
        head = b"".join(parts)
        file.write(head.ljust(_aligned(len(head)), b"\0"))

    def write(self, name: str, array: np.ndarray) -> None:
        """float32, in the order and shapes that were described."""
        shape, kind = self._waiting[name]
        assert next(iter(self._waiting)) == name and array.shape == shape
        del self._waiting[name]
        written = 0
        for part in blocks.encoded(array, kind):
            written += self._file.write(part)
        self._file.write(b"\0" * (_aligned(written) - written))

    def finish(self) -> None:
        assert not self._waiting


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
