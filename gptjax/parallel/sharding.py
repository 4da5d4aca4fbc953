"""Which device holds what: the one table from logical axes to mesh axes, and what follows from it.

The model names the axes of its parameters and activations, `meshes.py` makes a mesh of devices; this file alone knows
both.
"""

import functools
import math
import typing

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gptjax.hosts import compiling

HOST_MEMORY = "pinned_host"  # the memory kind that devices read and write by themselves

RULES = {
    # parameters
    "layers": "stage",
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "mlp": "tensor",
    "cells": "tensor",  # of an LSTM's state
    "position": None,
    "qkv": None,
    "gate": None,
    "head_dim": None,
    "outputs": None,  # of a task head
    "rank": None,  # of an adapter
    # activations
    "batch": ("replica", "fsdp"),
    "length": "sequence",  # where heads or MLP are split
    "residual": ("sequence", "tensor"),  # between them, so that norms are split too (Korthikanti et al. 2022)
    "head_length": ("sequence", "stage"),  # at the output matrix, so that no stage of a pipeline is idle there
    "width": None,
}


def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions carry these logical axes (None: not sharded)."""
    return PartitionSpec(*(None if axis is None else RULES[axis] for axis in axes))


def constrain(x, *axes: str | None):
    """x, laid out by its logical axes on the mesh in context (`jax.set_mesh`); x itself where there is none.

    A dimension too short for its mesh axes stays whole: a cache is extended by one token, which nobody can split. What
    training splits was checked by `check_fit`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*map(functools.partial(_fitting, mesh), x.shape, axes)))


def _fitting(mesh, size: int, axis: str | None):
    """The leading mesh axes of a logical axis that divide a dimension of this size."""
    names = () if axis is None or RULES[axis] is None else RULES[axis]
    names = (names,) if isinstance(names, str) else names
    while size % math.prod(mesh.shape[name] for name in names):
        names = names[:-1]
    return names or None


def mesh_axis_size(axis: str) -> int:
    """Devices along a mesh axis of the mesh in context; 1 where there is none."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def platform() -> str:
    """cpu, gpu or tpu: of the mesh in context, whose devices need not be here; where there is none, of JAX's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def length_is_split(at_head: bool = False) -> bool:
    """Whether the mesh in context splits the tokens of a sequence, so that they don't merge with the batch.

    at_head: at the output matrix, where the stages of a pipeline split them too.
    """
    split = mesh_axis_size("sequence") * mesh_axis_size("tensor") > 1
    return split or (at_head and mesh_axis_size("stage") > 1)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


@functools.lru_cache(maxsize=8)
def everywhere(mesh: Mesh):
    """arrays -> arrays, whole on every device, so that each process can read them."""

    def whole(arrays):
        return arrays

    return compiling.jit(whole, out_shardings=replicated(mesh))


def on_host(arrays):
    """Arrays on the host, whole, also where other processes of the mesh in context have parts of them."""
    if all(a.is_fully_addressable for a in jax.tree.leaves(arrays)):
        return jax.device_get(arrays)
    return jax.device_get(everywhere(jax.sharding.get_mesh())(arrays))


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Of arrays [batch, ...] with so many unsharded dimensions in front (steps of a call, microbatches)."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * leading, RULES["batch"]))


def param_shardings(axes_by_path: dict, mesh: Mesh) -> dict:
    """NamedSharding of every parameter from its logical axes, both as flat dicts keyed by path.

    Raises ValueError that names the parameter if its axes are missing or not in RULES.
    """
    shardings = {}
    for path, axes in axes_by_path.items():
        name = "/".join(path)
        if axes is None:
            raise ValueError(
                f"parameter {name} states no logical axes; give nnx.Param(..., axes=...) beside its shape."
            )
        unknown = [axis for axis in axes if axis not in RULES]
        if unknown:
            raise ValueError(
                f"parameter {name} has the logical axis {unknown[0]!r}, which sharding.RULES does not place."
            )
        shardings[path] = NamedSharding(mesh, spec(axes))
    return shardings


def state_shardings(state, param_axes: dict, mesh: Mesh):
    """Shardings for any tree that holds copies of the parameters, such as an optimizer state.

    state: a tree of arrays or ShapeDtypeStructs. param_axes: {path: (shape, axes)} of the parameters. A leaf whose
    path ends in a parameter's path is laid out as that parameter; one with dimensions dropped or of size 1
    (Adafactor's factors) keeps the axes of the dimensions that are left. A handful of numbers is replicated.
    Raises ValueError that names a larger leaf which belongs to no parameter.
    """

    def place(path, leaf):
        if math.prod(leaf.shape) <= 64:
            return replicated(mesh)
        keys = tuple(_key_name(key) for key in path)
        for start in range(len(keys)):
            if keys[start:] in param_axes:
                shape, axes = param_axes[keys[start:]]
                return NamedSharding(mesh, spec(_axes_left(leaf.shape, shape, axes, keys)))
        raise ValueError(
            f"state leaf {'/'.join(keys)} of shape {leaf.shape} belongs to no parameter: nobody placed it."
        )

    return jax.tree_util.tree_map_with_path(place, state)


def _key_name(key) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def _axes_left(shape, param_shape, axes, keys) -> tuple:
    """Logical axes of a leaf whose shape is param_shape, less some dimensions."""
    left, dim = [], 0
    for size in shape:
        while dim < len(param_shape) and param_shape[dim] != size:
            dim += 1
        if dim == len(param_shape):
            raise ValueError(
                f"state leaf {'/'.join(keys)} of shape {shape} does not match its parameter's {param_shape}."
            )
        left.append(axes[dim])
        dim += 1
    return tuple(left)


def bytes_on_one_device(tree, shardings) -> int:
    """Bytes one device holds of a tree of arrays or ShapeDtypeStructs laid out so; what waits on the host is not
    counted."""

    def size(leaf, place):
        held = math.prod(place.shard_shape(leaf.shape)) * np.dtype(leaf.dtype).itemsize
        return 0 if place.memory_kind == HOST_MEMORY else held

    return sum(jax.tree.leaves(jax.tree.map(size, tree, shardings)))


def host_shardings(shardings, abstract):
    """Shardings of a tree with its arrays in the host's pinned memory; a handful of numbers stays on the device."""
    return jax.tree.map(
        lambda place, leaf: place.with_memory_kind(HOST_MEMORY) if _is_offloaded(leaf) else place, shardings, abstract
    )


def _is_offloaded(leaf) -> bool:
    return math.prod(leaf.shape) > 64


def to_device(tree, mesh_config):
    """Inside a jitted function: optimizer state brought to the device if it waits on the host.

    Tried: a barrier that holds the fetch back until the gradients are known. GPT-2 medium on v5e:2x2 then needed
    2.70 GB at its peak instead of 2.23.
    """
    return _moved(tree, mesh_config, jax.memory.Space.Device)


def to_host(tree, mesh_config):
    """The inverse of to_device."""
    return _moved(tree, mesh_config, jax.memory.Space.Host)


def _moved(tree, mesh_config, space):
    if not mesh_config.offload_optimizer:
        return tree
    return jax.tree.map(lambda leaf: jax.device_put(leaf, space) if _is_offloaded(leaf) else leaf, tree)


class Schedule(typing.NamedTuple):
    """How a batch goes through the stages of a pipeline (pipeline.py)."""

    microbatches: int
    repeats: int


def pipeline_schedule(mesh_config) -> Schedule | None:
    """That of a MeshConfig on the mesh in context; None where the mesh has one stage."""
    stages = mesh_axis_size("stage")
    if stages == 1:
        return None
    return Schedule(mesh_config.pipeline_parts(stages), mesh_config.pipeline_repeats)
