"""Types of a GGUF file's tensors: floats, and blocks of 32 small integers that share a scale, decoded and encoded.

Formulas: ggml's ggml-quants.c, and ggml-common.h for how a block lies in memory. All arithmetic is float32, in their
order, so that decoded values are theirs to the bit. Of the two halves of a byte the low one holds the first 16 values of
a block, the high one the last 16.

Shapes: n blocks, each [bytes] encoded, [values] decoded.
"""

import dataclasses
import functools
import importlib
import typing

import ml_dtypes
import numpy as np

from gptjax.errors import UserError

BLOCK = 32  # values
_AT_ONCE = 1 << 21  # values decoded or encoded together: what lies between has a few times their size
_HALVES = np.array([0, 4], np.uint8).reshape(1, 2, 1)  # bits to shift a byte by


@dataclasses.dataclass(frozen=True)
class BlockType:
    """values: in a block, of `bytes` bytes. decode: uint8 [n, bytes] -> float32 [n, values]. encode: the way back, None
    where gptjax does not write the type. file_type: of a file that is mostly of this type (general.file_type)."""

    name: str
    number: int
    values: int
    bytes: int
    decode: typing.Callable
    encode: typing.Callable | None = None
    file_type: int | None = None

    def size(self, values: int) -> int:
        """Bytes of so many values."""
        return values // self.values * self.bytes


def decoded(data: np.ndarray, kind: BlockType, shape: tuple[int, ...]) -> np.ndarray:
    """float32 of this shape. data: uint8, a tensor's bytes."""
    data_of_block = data.reshape(-1, kind.bytes)
    array = np.empty((len(data_of_block), kind.values), np.float32)
    step = _AT_ONCE // kind.values
    for start in range(0, len(data_of_block), step):
        array[start : start + step] = kind.decode(data_of_block[start : start + step])
    return array.reshape(shape)


def encoded(array: np.ndarray, kind: BlockType) -> typing.Iterator[bytes]:
    """A tensor's bytes, in parts."""
    of_block = np.ascontiguousarray(array, np.float32).reshape(-1, kind.values)
    step = _AT_ONCE // kind.values
    for start in range(0, len(of_block), step):
        yield kind.encode(of_block[start : start + step]).tobytes()


# ---- floats


def _floats(dtype):
    little = np.dtype(dtype).newbyteorder("<")

    def decode(data):
        return np.ascontiguousarray(data).view(little).astype(np.float32)

    def encode(array):
        with np.errstate(over="ignore"):  # the caller asks whether a float16 overflowed
            return array.astype(little).view(np.uint8)

    return decode, encode


# ---- 32 integers and a scale


def half(data: np.ndarray) -> np.ndarray:
    """float32 [n, 1] of float16's two bytes each."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def _nibbles(data: np.ndarray) -> np.ndarray:
    """uint8 [n, 32] of [n, 16]."""
    return (data[:, None, :] >> _HALVES & 15).reshape(-1, BLOCK)


def _fifth_bits(data: np.ndarray) -> np.ndarray:
    """uint8 [n, 32]: 16 where a bit of four bytes is set."""
    return np.unpackbits(data, axis=1, bitorder="little") << 4


def _decode_q4_0(data):
    return half(data[:, :2]) * (_nibbles(data[:, 2:]).astype(np.int8) - np.int8(8)).astype(np.float32)


def _decode_q4_1(data):
    return half(data[:, :2]) * _nibbles(data[:, 4:]).astype(np.float32) + half(data[:, 2:4])


def _decode_q5_0(data):
    five_bits = _nibbles(data[:, 6:]) | _fifth_bits(data[:, 2:6])
    return half(data[:, :2]) * (five_bits.astype(np.int8) - np.int8(16)).astype(np.float32)


def _decode_q5_1(data):
    five_bits = _nibbles(data[:, 8:]) | _fifth_bits(data[:, 4:8])
    return half(data[:, :2]) * five_bits.astype(np.float32) + half(data[:, 2:4])


def _decode_q8_0(data):
    return half(data[:, :2]) * data[:, 2:].view(np.int8).astype(np.float32)


def _reciprocal(scale: np.ndarray) -> np.ndarray:
    """0 of 0."""
    with np.errstate(divide="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale)


def _half_bytes(scale: np.ndarray) -> np.ndarray:
    return scale.astype("<f2").view(np.uint8)


def _packed_nibbles(of_four_bits: np.ndarray) -> np.ndarray:
    return of_four_bits[:, :16] | of_four_bits[:, 16:] << 4


def _encode_q8_0(array):
    """The largest magnitude becomes 127; halves are rounded away from zero, as C's roundf does."""
    scale = np.abs(array).max(axis=1, keepdims=True) / np.float32(127)
    scaled = array * _reciprocal(scale)
    size = np.abs(scaled)
    whole = np.floor(size)
    rounded = np.sign(scaled) * (whole + np.floor(2 * (size - whole)))
    return np.concatenate([_half_bytes(scale), rounded.astype(np.int8).view(np.uint8)], axis=1)


def _encode_q4_0(array):
    """The value of the largest magnitude becomes -8."""
    largest = np.take_along_axis(array, np.abs(array).argmax(axis=1)[:, None], axis=1)
    scale = largest / np.float32(-8)
    four_bits = np.trunc(array * _reciprocal(scale) + np.float32(8.5)).clip(0, 15).astype(np.uint8)
    return np.concatenate([_half_bytes(scale), _packed_nibbles(four_bits)], axis=1)


def _encode_q4_1(array):
    """The least value becomes 0, the largest 15."""
    least = array.min(axis=1, keepdims=True)
    scale = (array.max(axis=1, keepdims=True) - least) / np.float32(15)
    four_bits = np.trunc((array - least) * _reciprocal(scale) + np.float32(0.5)).clip(0, 15).astype(np.uint8)
    return np.concatenate([_half_bytes(scale), _half_bytes(least), _packed_nibbles(four_bits)], axis=1)


# ---- the table


def _of_superblocks(name: str):
    """The decoder of a K type, whose module is imported when a tensor has the type."""
    return lambda data: getattr(importlib.import_module("gptjax.gguf.superblocks"), f"decode_{name}")(data)


TYPES = {
    kind.name: kind
    for kind in (
        BlockType("f32", 0, 1, 4, *_floats(np.float32), file_type=0),
        BlockType("f16", 1, 1, 2, *_floats(np.float16), file_type=1),
        BlockType("bf16", 30, 1, 2, *_floats(ml_dtypes.bfloat16), file_type=32),
        BlockType("q4_0", 2, BLOCK, 18, _decode_q4_0, _encode_q4_0, 2),
        BlockType("q4_1", 3, BLOCK, 20, _decode_q4_1, _encode_q4_1, 3),
        BlockType("q5_0", 6, BLOCK, 22, _decode_q5_0),
        BlockType("q5_1", 7, BLOCK, 24, _decode_q5_1),
        BlockType("q8_0", 8, BLOCK, 34, _decode_q8_0, _encode_q8_0, 7),
        BlockType("q2_k", 10, 256, 84, _of_superblocks("q2_k")),
        BlockType("q3_k", 11, 256, 110, _of_superblocks("q3_k")),
        BlockType("q4_k", 12, 256, 144, _of_superblocks("q4_k")),
        BlockType("q5_k", 13, 256, 176, _of_superblocks("q5_k")),
        BlockType("q6_k", 14, 256, 210, _of_superblocks("q6_k")),
    )
}
WRITTEN = tuple(name for name, kind in TYPES.items() if kind.encode is not None)


@functools.cache
def _numbers() -> dict[int, BlockType]:
    return {kind.number: kind for kind in TYPES.values()}


def by_number(number: int, where: str) -> BlockType:
    """Raises UserError: a type that gptjax does not read."""
    if number not in _numbers():
        raise UserError(
            f"{where} is of ggml's type {number}, which gptjax does not read; expected one of {', '.join(TYPES)}:"
            " llama-quantize --allow-requantize makes such a file."
        )
    return _numbers()[number]
