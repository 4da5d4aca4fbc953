"""Which device holds what: the mesh of a config, and the one table from logical axes to mesh axes.

The model names the axes of its parameters and activations; this file alone knows what a mesh is. Mesh axes:
`replica` and `fsdp` split the batch (parameters are copied over the first, sharded over the second), `tensor`
splits heads, MLP and vocabulary, `sequence` splits the tokens of a sequence.
"""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gptjax.errors import UserError

MESH_AXES = ("replica", "fsdp", "sequence", "tensor")  # outermost first: tensor gets neighbouring chips

HOST_MEMORY = "pinned_host"  # the memory kind that devices read and write by themselves

RULES = {
    # parameters
    "layers": None,
    "embed": "fsdp",
    "vocab": "tensor",
    "heads": "tensor",
    "mlp": "tensor",
    "position": None,
    "qkv": None,
    "gate": None,
    "head_dim": None,
    # activations
    "batch": ("replica", "fsdp"),
    "length": "sequence",
    "width": None,
}


def mesh_sizes(mesh_config, n_devices: int) -> dict[str, int]:
    """Devices along each mesh axis, -1 resolved. Raises UserError if n_devices cannot be split so."""
    sizes = {axis: getattr(mesh_config, axis) for axis in MESH_AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    shown = " x ".join(f"{axis}={size}" for axis, size in sizes.items())
    if -1 in sizes.values():
        if n_devices % fixed:
            raise UserError(
                f"mesh {shown} needs a multiple of {fixed} devices, but there are {n_devices}; change a size."
            )
        return {axis: n_devices // fixed if size == -1 else size for axis, size in sizes.items()}
    if fixed != n_devices:
        raise UserError(
            f"mesh {shown} is {fixed} devices, but there are {n_devices}; set one axis to -1 to take them all."
        )
    return sizes


def make_mesh(config, devices=None) -> Mesh:
    """The mesh of config.mesh over devices (default: all). Raises UserError if mesh, batch and model don't fit it."""
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes(config.mesh, len(devices))
    check_fit(config, sizes)
    check_memory(config, [memory.kind for memory in devices[0].addressable_memories()])
    return jax.make_mesh(
        tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )


def check_fit(config, sizes: dict[str, int]) -> None:
    """Raises UserError if batch or model do not divide over a mesh of these sizes."""
    shards = sizes["replica"] * sizes["fsdp"]
    batches = {"train.batch_size / train.microbatches": config.train.batch_size // config.train.microbatches}
    if config.train.batch_ramp_start:
        batches["train.batch_ramp_start / train.microbatches"] = (
            config.train.batch_ramp_start // config.train.microbatches
        )
        batches["train.batch_ramp_increment / train.microbatches"] = (
            config.train.batch_ramp_increment // config.train.microbatches
        )
    batches["eval.batch_size"] = config.eval_batch_size
    for key, batch in batches.items():
        if batch % shards:
            raise UserError(
                f"{key}={batch} does not divide over {shards} data shards (mesh replica x fsdp);"
                f" use a multiple of {shards}, or a smaller mesh.fsdp and a larger mesh.tensor."
            )
    for field, size, axis in _divided(config.model):
        if size % sizes[axis]:
            fits = max(n for n in range(1, sizes[axis] + 1) if sizes[axis] % n == 0 and size % n == 0)
            raise UserError(
                f"{field}={size} does not divide over mesh.{axis}={sizes[axis]};"
                f" use mesh.{axis}={fits} and another axis for the rest."
            )


def _divided(model) -> list[tuple[str, int, str]]:
    """(field, size, mesh axis) of every length of the model that has to divide evenly over devices."""
    vocabulary = [] if model.vocab_size is None else [("the padded vocabulary", model.padded_vocab_size, "tensor")]
    return [
        ("model.d_model", model.d_model, "fsdp"),
        ("model.n_heads", model.n_heads, "tensor"),
        ("model.n_kv_heads", model.kv_heads, "tensor"),
        ("model.d_ff", model.ff_size, "tensor"),
        *vocabulary,
        ("model.context_length", model.context_length, "sequence"),
    ]


def spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The PartitionSpec of an array whose dimensions carry these logical axes (None: not sharded)."""
    return PartitionSpec(*(None if axis is None else RULES[axis] for axis in axes))


def constrain(x, *axes: str | None):
    """x, laid out by its logical axes on the mesh in context (`jax.set_mesh`); x itself where there is none."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))


def mesh_axis_size(axis: str) -> int:
    """Devices along a mesh axis of the mesh in context; 1 where there is none."""
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


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


def check_memory(config, kinds: list[str]) -> None:
    """Raises UserError if the config keeps something in pinned host memory and the devices' kinds lack it."""
    asked = {
        "mesh.offload_optimizer=True": config.mesh.offload_optimizer,
        "model.remat='offload'": config.model.remat == "offload",
    }
    for key in (key for key, wanted in asked.items() if wanted and HOST_MEMORY not in kinds):
        raise UserError(
            f"{key} needs {HOST_MEMORY} memory, but the devices here have {', '.join(kinds)} only;"
            " use mesh.offload_optimizer=False and model.remat='full'."
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
