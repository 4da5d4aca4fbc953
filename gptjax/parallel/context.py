"""Context parallelism: the tokens of a sequence split over the devices of the mesh axis `sequence`.

Of 2 S equal chunks of a sequence device i of S holds chunk i and chunk 2 S - 1 - i. So every device has as many
(query, key) pairs to attend to, which equal shares in order would not give: the last would see all keys, the first
hardly any (as in Llama 3, Grattafiori et al. 2024, section 3.3.2). Keys and values are gathered from all devices
before attention, and their gradients summed and scattered after it.

Axes: B batch, L a device's tokens (2 C), C tokens of a chunk, M all tokens of a sequence, S devices.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gptjax.parallel import sharding


def device_order(length: int) -> np.ndarray | None:
    """The order in which a sequence's tokens lie on the devices of the mesh in context; None: as they are."""
    shards = sharding.mesh_axis_size("sequence")
    if shards == 1:
        return None
    chunk_SC = np.arange(length).reshape(2 * shards, -1)
    return np.stack([chunk_SC[:shards], chunk_SC[: shards - 1 : -1]], axis=1).reshape(-1)


def device_chunks():
    """The numbers of this device's two chunks. Inside a shard_map over `sequence`."""
    device = jax.lax.axis_index("sequence")
    return device, 2 * sharding.mesh_axis_size("sequence") - 1 - device


def gather_length(x_BL):
    """[B, L, ...] of this device, in device_order -> [B, M, ...] of all, in the order of the sequence.

    Inside a shard_map over `sequence`; x_BL itself on a mesh that does not split sequences.
    """
    shards = sharding.mesh_axis_size("sequence")
    if shards == 1:
        return x_BL
    B, L = x_BL.shape[:2]
    x_SB2C = jax.lax.all_gather(x_BL.reshape(B, 2, L // 2, *x_BL.shape[2:]), "sequence")
    x_cBC = jnp.concatenate([x_SB2C[:, :, 0], x_SB2C[::-1, :, 1]])
    return x_cBC.swapaxes(0, 1).reshape(B, L * shards, *x_BL.shape[2:])
