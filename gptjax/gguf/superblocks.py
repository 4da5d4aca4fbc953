"""ggml's K types: blocks of 256 values in parts of 16 or 32, each with a scale (and least value) of 4 to 8 bits, which are
themselves multiples of one float16 of the block (ggml-quants.c: dequantize_row_q2_K and its like).

Shapes: n blocks, each [bytes] encoded, [256] decoded.
"""

import numpy as np

from gptjax.gguf.blocks import half

VALUES = 256


def _bits(data: np.ndarray, bits: int, run: int) -> np.ndarray:
    """uint8 [n, 256]: the values of `bits` bits in data. Of every `run` bytes the lowest bits hold the first `run` values,
    the next ones those that follow."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    return (data.reshape(len(data), -1, 1, run) >> shifts & (2**bits - 1)).reshape(len(data), -1)


def _scaled(values: np.ndarray, scale: np.ndarray, least: np.ndarray | None = None) -> np.ndarray:
    """float32 [n, 256]. values: integers [n, 256]. scale, least: [n, parts]; least is taken away."""
    parts = values.reshape(*scale.shape, -1).astype(np.float32)
    product = scale[..., None] * parts
    return (product if least is None else product - least[..., None]).reshape(-1, VALUES)


def decode_q2_k(data):
    """scales [16], 2-bit values [64], d, dmin."""
    packed, values = data[:, :16], _bits(data[:, 16:80], 2, 32)
    d, dmin = half(data[:, 80:82]), half(data[:, 82:84])
    return _scaled(values, d * (packed & 15).astype(np.float32), dmin * (packed >> 4).astype(np.float32))


def decode_q3_k(data):
    """A third bit for each value [32], 2-bit values [64], 6-bit scales [12], d."""
    third, low, d = _bits(data[:, :32], 1, 32), _bits(data[:, 32:96], 2, 32), half(data[:, 108:110])
    low_of_scale, high_of_scale = _bits(data[:, 96:104], 4, 8), _bits(data[:, 104:108], 2, 4)
    scale = (low_of_scale | high_of_scale << 4).astype(np.int8) - np.int8(32)
    values = low.astype(np.int8) - ((third ^ 1) << 2).astype(np.int8)
    return _scaled(values, d * scale.astype(np.float32))


def _scales_and_least(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scale, least) [n, 8] of 6 bits: 12 bytes hold both for four parts, and four bits of both for the other four, whose
    two high bits stand atop the first eight bytes."""
    first, second, both = data[:, :4], data[:, 4:8], data[:, 8:12]
    scale = np.concatenate([first & 63, both & 15 | first >> 2 & 48], axis=1)
    least = np.concatenate([second & 63, both >> 4 | second >> 2 & 48], axis=1)
    return scale.astype(np.float32), least.astype(np.float32)


def decode_q4_k(data):
    """d, dmin, scales and least [12], 4-bit values [128]."""
    scale, least = _scales_and_least(data[:, 4:16])
    return _scaled(_bits(data[:, 16:], 4, 32), half(data[:, :2]) * scale, half(data[:, 2:4]) * least)


def decode_q5_k(data):
    """d, dmin, scales and least [12], a fifth bit for each value [32], 4-bit values [128]."""
    scale, least = _scales_and_least(data[:, 4:16])
    values = _bits(data[:, 48:], 4, 32) | _bits(data[:, 16:48], 1, 32) << 4
    return _scaled(values, half(data[:, :2]) * scale, half(data[:, 2:4]) * least)


def decode_q6_k(data):
    """4-bit values [128], two more bits for each [64], scales of 8 bits [16], d."""
    values = (_bits(data[:, :128], 4, 64) | _bits(data[:, 128:192], 2, 32) << 4).astype(np.int8) - np.int8(32)
    scale = data[:, 192:208].view(np.int8).astype(np.float32)
    return _scaled(values, half(data[:, 208:210]) * scale)
