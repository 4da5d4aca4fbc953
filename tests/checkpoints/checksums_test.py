import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptjax.checkpoints import checksums

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "bool"]


def array_of(dtype, shape=(4, 6, 8)):
    values = np.random.default_rng(0).standard_normal(shape) * 50
    return jnp.asarray(values > 0 if dtype == "bool" else values, jnp.dtype(dtype))


def reference(array) -> str:
    """Element by element, in Python's integers."""

    def mix(x):
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) % 2**32
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) % 2**32
        return x ^ (x >> 16)

    bits = np.asarray(array).view(f"u{array.dtype.itemsize}")
    rest, sums = int(np.prod(bits.shape[1:])), [0, 0]
    for i, row in enumerate(bits.reshape(len(bits), rest).tolist()):
        for j, value in enumerate(row):
            for lane, constant in enumerate(checksums.LANES):
                sums[lane] += mix(value ^ mix((mix(i) + j + constant) % 2**32))
    return "".join(f"{total % 2**32:08x}" for total in sums)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checksum_is_the_sum_over_elements_of_their_mixed_bits(dtype):
    assert checksums.checksum(array_of(dtype)) == reference(array_of(dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("spec", [("a", None, "b"), (None, ("a", "b"), None), ("b",), ()])
def test_a_checksum_is_the_same_on_every_mesh(dtype, spec):
    array = array_of(dtype, (4, 8, 16))
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    spread = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
    assert checksums.checksum(spread) == checksums.checksum(array)


def test_a_checksum_is_the_sum_of_those_of_pieces_wherever_they_are_cut():
    array = array_of("float32")
    cuts = [(slice(a, a + 2), slice(b, b + 3), slice(c, c + 4)) for a in (0, 2) for b in (0, 3) for c in (0, 4)]
    pieces = [
        checksums.lanes_of_piece(np.asarray(array[cut]), [part.start for part in cut], array.shape) for cut in cuts
    ]
    assert checksums.as_hex(checksums.add(pieces)) == checksums.checksum(array)


@pytest.mark.parametrize("dtype", DTYPES[:-1])
def test_every_flipped_bit_changes_it(dtype):
    array = np.array(array_of(dtype, (2, 3)))
    whole, bits = checksums.checksum(array), 8 * array.dtype.itemsize
    for place in range(array.size):
        for bit in range(bits):
            damaged = array.copy()
            damaged.reshape(-1).view(f"u{array.dtype.itemsize}")[place] ^= 1 << bit
            assert checksums.checksum(damaged) != whole


def test_elements_that_changed_places_change_it():
    array = array_of("float32", (3, 4))
    assert checksums.checksum(array[::-1]) != checksums.checksum(array)
    assert checksums.checksum(array[:, ::-1]) != checksums.checksum(array)
    assert checksums.checksum(array.T) != checksums.checksum(array)


def test_a_scalar_has_one_and_hex_digits_are_read_back():
    lanes = np.asarray(checksums.lanes_of(jnp.int32(7)))
    assert checksums.checksum(jnp.int32(7)) != checksums.checksum(jnp.int32(8))
    np.testing.assert_array_equal(checksums.from_hex(checksums.as_hex(lanes)), lanes)
    with pytest.raises(ValueError, match="not 16 hex digits"):
        checksums.from_hex("12")
