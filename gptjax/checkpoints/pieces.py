"""The checksums of an array by its shards: each device works on what it holds, and nothing is sent between them.

`begin` dispatches and returns at once, before the array may be donated; `finish` waits, and gives for every shard that
this process answers for {"start", "shape", "checksum"}. Those of all processes add up to the array's (`checksums.add`).
"""

import functools

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.checkpoints import checksums


def begin(array):
    """What `finish` takes. The array may be deleted or donated after this."""
    if not isinstance(array, jax.Array) or not isinstance(array.sharding, NamedSharding):
        own = [(None, (0,) * np.ndim(array), np.shape(array))]
        return own, checksums.lanes_of(array)
    given = array.sharding
    array = _on_devices(array)
    own = [
        (shard.device, tuple(part.indices(size)[0] for part, size in zip(shard.index, array.shape)), shard.data.shape)
        for shard in array.addressable_shards
        if shard.replica_id == 0
    ]
    starts = _starts(array.sharding, array.shape)
    lanes = _lanes_of_shards(array.sharding.mesh, array.sharding.spec)(array, starts, checksums.strides(array.shape))
    if array.sharding != given:
        jax.block_until_ready(lanes)  # or all copies would be on the device at once
    return own, lanes


def finish(begun) -> list[dict]:
    own, lanes = begun
    by_device = {shard.device: np.asarray(shard.data).reshape(2) for shard in lanes.addressable_shards}
    if own and own[0][0] is None:
        by_device = {None: np.asarray(lanes)}
    return [
        {"start": list(start), "shape": list(shape), "checksum": checksums.as_hex(by_device[device])}
        for device, start, shape in own
    ]


def total(pieces: list[dict]) -> str:
    """The checksum of the array that the pieces make up."""
    return checksums.as_hex(checksums.add(checksums.from_hex(piece["checksum"]) for piece in pieces))


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
        found = checksums.lanes_at(values, start.reshape(-1), strides)
        return found.reshape(*[1] * mesh.devices.ndim, 2)

    everywhere = _everywhere(mesh)
    mapped = jax.shard_map(
        lanes, mesh=mesh, in_specs=(spec, everywhere, PartitionSpec()), out_specs=everywhere, check_vma=False
    )
    return jax.jit(mapped)
