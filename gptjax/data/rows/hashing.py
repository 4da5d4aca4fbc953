"""Random numbers as arithmetic: hashes of integers, and permutations without a table. Data order is made of these.

Every run ever made depends on their values: they don't change.
"""

import hashlib

import numpy as np

_ROUNDS = 6
OFFSET_STREAM = _ROUNDS  # streams of random numbers after those of the permutation's rounds
DRAW_STREAM = _ROUNDS + 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: np.ndarray) -> np.ndarray:
    """A random-looking bijection of uint64: the output step of SplitMix64 (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2 ** 64
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def hash_of(seed: int, index: np.ndarray, stream: int) -> np.ndarray:
    """uint64, the shape of index: a random number for each index, other ones in every stream."""
    x = mix(np.full(index.shape, seed, np.uint64))
    x = mix(x ^ index.astype(np.uint64))
    return mix(x ^ np.uint64(stream))


def hash_of_name(name: str) -> int:
    """64 bits of a string, the same in every process."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def is_held_out(text: str, val_fraction: float) -> bool:
    """Whether a document is for evaluation: by a hash of its words alone. So texts that differ in white space at most
    fall to the same split, in every source and however often the text is prepared."""
    words = " ".join(text.split()).encode(errors="surrogatepass")
    number = int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")
    return number < int(val_fraction * 2**64)


def permute(index: np.ndarray, n: int, seed: int, epoch) -> np.ndarray:
    """int64, the shape of index: where a permutation of [0, n), drawn by (seed, epoch), takes each index.

    epoch is a number or an array like index. No table: a Feistel network permutes the next power of four, and a
    value outside [0, n) is permuted again until it is inside (cycle walking; Black and Rogaway, 2002, section 5),
    fewer than four times on average (from n = 16 on).
    """
    index, epoch = np.broadcast_arrays(np.asarray(index, np.int64), np.asarray(epoch, np.int64))
    if n == 1:
        return np.zeros_like(index)
    half_bits = max(3, (int(n - 1).bit_length() + 1) // 2)  # networks on fewer bits are visibly biased
    value = index.astype(np.uint64).reshape(-1)
    keys = [hash_of(seed, epoch.reshape(-1), r) for r in range(_ROUNDS)]
    value = _feistel(value, keys, half_bits)
    while (outside := value >= n).any():
        value[outside] = _feistel(value[outside], [key[outside] for key in keys], half_bits)
    return value.astype(np.int64).reshape(index.shape)


def _feistel(value: np.ndarray, keys: list[np.ndarray], half_bits: int) -> np.ndarray:
    """A bijection of [0, 4 ** half_bits), whatever the keys (uint64)."""
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = value >> shift, value & mask
    for key in keys:
        left, right = right, left ^ (mix(right ^ key) & mask)
    return (left << shift) | right


def draw(key: np.ndarray, *numbers) -> np.ndarray:
    """uint64: a random number for each key and number (which broadcast), other ones for other numbers."""
    for number in numbers:
        key = mix(key ^ mix(np.asarray(number, np.uint64)))
    return key
