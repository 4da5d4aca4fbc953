"""Checksums of arrays that do not depend on where their parts lie: of a parameter on one device or over any mesh.

The checksum of an array is the sum, over its elements, of mix(bits of the element, its index in the whole array), in two
lanes of 32 bits. Sums of integers are exact in any order, so it is the same on every mesh, and that of an array is the
sum of those of its pieces. mix is a bijection of the bits: one element that changed always changes the checksum, and
several leave it as it was with probability 2**-64. (The mixer is MurmurHash3's finaliser, Appleby 2011.)

An array that is saved has a checksum for each of its shards: each device works on what it holds, and nothing is sent
between them. `begin` dispatches and returns at once, before the array may be donated; `finish` waits, and gives for every
shard that this process answers for {"start", "shape", "checksum"}. Those of all processes make up the array's (`total`).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.hosts import compiling

LANES = (0x9E3779B9, 0x85EBCA77)  # what tells the lanes apart: odd constants
COMPILED_FROM = 2**18  # elements on the host: NumPy sums them in less time than XLA compiles the sum of their shape


def checksum(array) -> str:
    """Of a whole array of any sharding, as 16 hex digits. Every process of a sharded one takes part."""
    return as_hex(lanes_of(array))


def lanes_of(array):
    """uint32 [2] on the devices, not waited for: the checksum of a whole array, in every process of a sharded one."""
    shape, place = np.shape(array), getattr(array, "sharding", None)
    function = _replicated_lanes(place.mesh) if isinstance(place, NamedSharding) else lanes_at
    return function(array, np.zeros(len(shape), np.uint32), strides(shape))


@functools.cache
def _replicated_lanes(mesh):
    return compiling.jit(lanes_at, out_shardings=NamedSharding(mesh, PartitionSpec()))


def lanes_of_piece(values, start, shape):
    """uint32 [2] on the device: the part of the checksum of an array of this shape that comes from the piece `values`
    which begins at the indices `start`."""
    return lanes_at(values, np.array(start, np.uint32), strides(shape))


def lanes_on_host(values: np.ndarray, start, shape) -> np.ndarray:
    """lanes_of_piece of what is on the host, on its CPU. Small pieces by NumPy, without compiling anything."""
    if values.size > COMPILED_FROM:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            return np.asarray(lanes_of_piece(values, start, shape))
    bits = _host_bits(values)
    position = np.zeros((1,) * bits.ndim, np.uint32)
    for dim, stride in enumerate(strides(shape)):
        index = np.arange(values.shape[dim], dtype=np.uint32) + np.uint32(start[dim])
        index = _mix(index, np.uint32) if dim == 0 else index * stride
        position = position + index.reshape([-1 if other == dim else 1 for other in range(bits.ndim)])
    if bits.ndim > values.ndim:
        position = position ^ _mix(np.arange(bits.shape[-1], dtype=np.uint32), np.uint32)
    sums = [_mix(bits ^ _mix(position + np.uint32(lane), np.uint32), np.uint32).sum(dtype=np.uint32) for lane in LANES]
    return np.array(sums, np.uint32)


def _host_bits(values: np.ndarray) -> np.ndarray:
    values = np.ascontiguousarray(values)
    if values.dtype == np.bool_:
        return values.astype(np.uint32)
    size = values.dtype.itemsize
    if size == 8:
        return values.reshape(*values.shape, 1).view(np.uint32)
    return values.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[size]).astype(np.uint32)


def add(lanes) -> np.ndarray:
    """uint32 [2]: of an array from those of its pieces."""
    total = np.zeros(2, np.uint32)
    for piece in lanes:
        total = total + np.asarray(piece, np.uint32)
    return total


def as_hex(lanes) -> str:
    high, low = (int(lane) for lane in np.asarray(lanes))
    return f"{high:08x}{low:08x}"


def from_hex(text: str) -> np.ndarray:
    """uint32 [2]. Raises ValueError: not 16 hex digits."""
    if len(text) != 16:
        raise ValueError(f"{text!r} is not 16 hex digits")
    return np.array([int(text[:8], 16), int(text[8:], 16)], np.uint32)


def strides(shape) -> np.ndarray:
    """uint32: of each dimension but the first in the linear index of the rest; the first is mixed in by itself, since
    a stack of layers has more than 2**32 elements."""
    counts = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    return np.array([count % 2**32 for count in counts], np.uint32)


@jax.jit
def lanes_at(values, start, strides):
    """lanes_of_piece, with the strides of the whole array."""
    bits = _bits(values)
    position = _mix(_indices(bits.shape, 0, start)) if values.ndim else jnp.zeros(bits.shape, jnp.uint32)
    for dim in range(1, values.ndim):
        position = position + _indices(bits.shape, dim, start) * strides[dim]
    for dim in range(values.ndim, bits.ndim):  # the words of a wide element
        position = position ^ _mix(jax.lax.broadcasted_iota(jnp.uint32, bits.shape, dim))
    return jnp.stack([jnp.sum(_mix(bits ^ _mix(position + jnp.uint32(lane))), dtype=jnp.uint32) for lane in LANES])


def _indices(shape, dim: int, start):
    return jax.lax.broadcasted_iota(jnp.uint32, shape, dim) + start[dim]


def _bits(values):
    """uint32 of the same shape, with the words of 8-byte elements in a last dimension of their own."""
    if values.dtype == jnp.bool_:
        return values.astype(jnp.uint32)
    size = values.dtype.itemsize
    if size == 8:
        return jax.lax.bitcast_convert_type(values, jnp.uint32)
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[size]
    return jax.lax.bitcast_convert_type(values, unsigned).astype(jnp.uint32)


def _mix(x, uint32=jnp.uint32):
    x = (x ^ (x >> 16)) * uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * uint32(0xC2B2AE35)
    return x ^ (x >> 16)


# ---- of an array by its shards


def begin(array):
    """What `finish` takes. The array may be deleted or donated after this."""
    if not isinstance(array, jax.Array) or not isinstance(array.sharding, NamedSharding):
        own = [(None, (0,) * np.ndim(array), np.shape(array))]
        return own, lanes_of(array)
    sharding_before = array.sharding
    array = _on_devices(array)
    own = [
        (shard.device, tuple(part.indices(size)[0] for part, size in zip(shard.index, array.shape)), shard.data.shape)
        for shard in array.addressable_shards
        if shard.replica_id == 0
    ]
    starts = _starts(array.sharding, array.shape)
    lanes = _lanes_of_shards(array.sharding.mesh, array.sharding.spec)(array, starts, strides(array.shape))
    if array.sharding != sharding_before:
        jax.block_until_ready(lanes)  # or all copies would be on the device at once
    return own, lanes


def finish(begun) -> list[dict]:
    own, lanes = begun
    by_device = {shard.device: np.asarray(shard.data).reshape(2) for shard in lanes.addressable_shards}
    if own and own[0][0] is None:
        by_device = {None: np.asarray(lanes)}
    return [
        {"start": list(start), "shape": list(shape), "checksum": as_hex(by_device[device])}
        for device, start, shape in own
    ]


def total(pieces: list[dict]) -> str:
    """The checksum of the array that the pieces make up."""
    return as_hex(add(from_hex(piece["checksum"]) for piece in pieces))


def _on_devices(array):
    """Where it can be computed on: an optimizer state that waits in the host's memory is copied, one array at a time."""
    device_memory = next(iter(array.sharding.device_set)).default_memory().kind
    if array.sharding.memory_kind in (None, device_memory):
        return array
    return jax.device_put(array, array.sharding.with_memory_kind(device_memory))


@functools.cache
def _starts(sharding: NamedSharding, shape):
    """uint32 [*mesh, dims] laid out over the mesh: where each device's shard begins."""
    mesh = sharding.mesh
    where = sharding.devices_indices_map(shape)
    starts = [[part.indices(size)[0] for part, size in zip(where[d], shape)] for d in mesh.devices.flat]
    values = np.array(starts, np.uint32).reshape(*mesh.devices.shape, len(shape))
    return jax.make_array_from_callback(values.shape, NamedSharding(mesh, _everywhere(mesh)), lambda at: values[at])


def _everywhere(mesh) -> PartitionSpec:
    return PartitionSpec(*mesh.axis_names)


@functools.cache
def _lanes_of_shards(mesh, spec):
    """jit of (array, starts, strides) -> uint32 [*mesh, 2]."""

    def lanes(values, start, strides):
        return lanes_at(values, start.reshape(-1), strides).reshape(*[1] * mesh.devices.ndim, 2)

    everywhere = _everywhere(mesh)
    mapped = jax.shard_map(
        lanes, mesh=mesh, in_specs=(spec, everywhere, PartitionSpec()), out_specs=everywhere, check_vma=False
    )
    return jax.jit(mapped)
