"""Which rows of a batch lie on which device, and the arrays of a batch laid out so."""

import functools

import jax


def device_batch(read, batch_size: int, batch_sharding, dim: int = 0) -> dict[str, jax.Array]:
    """A batch laid out over the mesh. read(start, stop) gives arrays whose dimension `dim` holds those rows of it.

    A process reads only the rows that its own devices hold, each once.
    """
    read = functools.lru_cache(maxsize=None)(read)
    shape = [1] * dim + [batch_size]
    index = next(iter(batch_sharding.addressable_devices_indices_map(tuple(shape)).values()))
    sample = read(*index[dim].indices(batch_size)[:2])

    def array(name):
        local = sample[name]
        whole = (*local.shape[:dim], batch_size, *local.shape[dim + 1 :])
        return jax.make_array_from_callback(
            whole, batch_sharding, lambda index: read(*index[dim].indices(batch_size)[:2])[name]
        )

    return {name: array(name) for name in sample}


def local_rows(batch_size: int, batch_sharding, dim: int = 0) -> tuple[tuple[int, int], ...]:
    """The (start, stop) of a batch that this process's devices hold."""
    held = batch_sharding.addressable_devices_indices_map((*[1] * dim, batch_size)).values()
    return tuple(sorted({index[dim].indices(batch_size)[:2] for index in held}))


@functools.lru_cache(maxsize=64)
def own_rows(batch_size: int, batch_sharding, dim: int = 0) -> tuple[tuple[int, int], ...]:
    """The (start, stop) of a batch that this process answers for: every row is one process's, the first to hold it."""
    owner = {}
    for device, index in batch_sharding.devices_indices_map((*[1] * dim, batch_size)).items():
        rows = index[dim].indices(batch_size)[:2]
        owner[rows] = min(owner.get(rows, device), device, key=lambda d: d.id)
    here = jax.process_index()
    return tuple(sorted(rows for rows, device in owner.items() if device.process_index == here))
