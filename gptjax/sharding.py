"""Which device holds what: the mesh of a config, and the one table from logical axes to mesh axes.

The model names the axes of its parameters and activations; this file alone knows what a mesh is. Mesh axes:

    replica    splits the batch; parameters are copied
    stage      splits the layers into a pipeline (see pipeline.py)
    fsdp       splits the batch and the width of every parameter
    sequence   splits the tokens of a sequence, in attention too (context parallelism)
    tensor     splits heads, MLP and vocabulary, and the tokens of the residual stream between them

Several slices are joined by the data center network (DCN). They lie outermost along `replica` or `fsdp`, so that
nothing but parameters and gradients goes from slice to slice.
"""

import functools
import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gptjax.errors import UserError

MESH_AXES = ("replica", "stage", "fsdp", "sequence", "tensor")  # outermost first: tensor gets neighbouring chips
DCN_AXES = ("replica", "fsdp")  # those that slices may lie along

HOST_MEMORY = "pinned_host"  # the memory kind that devices read and write by themselves

RULES = {
    # parameters
    "layers": "stage",
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
    "length": "sequence",  # where heads or MLP are split
    "residual": ("sequence", "tensor"),  # between them, so that norms are split too (Korthikanti et al. 2022)
    "head_length": ("sequence", "stage"),  # at the output matrix, so that no stage of a pipeline is idle there
    "width": None,
}


def mesh_sizes(mesh_config, n_devices: int, n_slices: int | None = None) -> dict[str, int]:
    """Devices along each mesh axis, all slices together, -1 resolved. n_slices: None: as many as the config names.

    Raises UserError if the devices cannot be split so.
    """
    dcn = dcn_sizes(mesh_config, n_slices)
    within = _sizes_in_slice(mesh_config, n_devices, math.prod(dcn.values()))
    return {axis: size * dcn.get(axis, 1) for axis, size in within.items()}


def dcn_sizes(mesh_config, n_slices: int | None = None) -> dict[str, int]:
    """Slices along each of DCN_AXES, -1 resolved. Raises UserError if n_slices cannot be split so."""
    sizes = {axis: getattr(mesh_config, f"dcn_{axis}") for axis in DCN_AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    n_slices = fixed if n_slices is None else n_slices
    free = -1 in sizes.values()
    if n_slices % fixed if free else n_slices != fixed:
        shown = " x ".join(f"dcn_{axis}={size}" for axis, size in sizes.items())
        raise UserError(f"mesh {shown} does not fit {n_slices} slices; set mesh.dcn_replica=-1 to take them all.")
    return {axis: n_slices // fixed if size == -1 else size for axis, size in sizes.items()}


def _sizes_in_slice(mesh_config, n_devices: int, n_slices: int) -> dict[str, int]:
    sizes = {axis: getattr(mesh_config, axis) for axis in MESH_AXES}
    fixed = math.prod(size for size in sizes.values() if size != -1)
    shown = " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1 or axis == "fsdp")
    each, where = n_devices // n_slices, f" in each of {n_slices} slices" if n_slices > 1 else ""
    if n_devices % n_slices:
        raise UserError(f"{n_devices} devices cannot be {n_slices} equal slices; change mesh.dcn_replica or dcn_fsdp.")
    if -1 in sizes.values():
        if each % fixed:
            raise UserError(
                f"mesh {shown} needs a multiple of {fixed} devices, but there are {each}{where}; change a size."
            )
        return {axis: each // fixed if size == -1 else size for axis, size in sizes.items()}
    if fixed != each:
        raise UserError(
            f"mesh {shown} is {fixed} devices, but there are {each}{where}; set one axis to -1 to take them all."
        )
    return sizes


def make_mesh(config, devices=None) -> Mesh:
    """The mesh of config.mesh over devices (default: all). Raises UserError if mesh, batch and model don't fit it."""
    devices = jax.devices() if devices is None else devices
    n_slices = count_slices(devices)
    sizes = mesh_sizes(config.mesh, len(devices), n_slices)
    check_fit(config, sizes)
    check_memory(config, [memory.kind for memory in devices[0].addressable_memories()])
    return Mesh(_device_array(sizes, dcn_sizes(config.mesh, n_slices), devices), MESH_AXES, axis_types=auto_axes())


def auto_axes() -> tuple[AxisType, ...]:
    return (AxisType.Auto,) * len(MESH_AXES)


def count_slices(devices) -> int | None:
    """TPU slices that these devices belong to. None elsewhere: hosts are then slices exactly if mesh.dcn_* says so."""
    return len(set(map(_slice, devices))) if devices[0].platform == "tpu" else None


def _slice(device) -> int:
    return getattr(device, "slice_index", 0)  # the devices of a topology of one slice don't have it


def _device_array(sizes: dict[str, int], dcn: dict[str, int], devices) -> np.ndarray:
    """Devices by mesh coordinates. Along each axis whole slices follow one another."""
    outer = [dcn.get(axis, 1) for axis in MESH_AXES]
    inner = [sizes[axis] // n for axis, n in zip(MESH_AXES, outer)]
    if devices[0].platform == "tpu":
        devices = sorted(devices, key=_slice)
    slices = np.split(np.array(devices, object), math.prod(outer))
    blocks = np.stack([_device_mesh(inner, list(devices)) for devices in slices]).reshape(*outer, *inner)
    alternate = [dim for pair in zip(range(len(outer)), range(len(outer), 2 * len(outer))) for dim in pair]
    return blocks.transpose(alternate).reshape([sizes[axis] for axis in MESH_AXES])


def _device_mesh(shape, devices) -> np.ndarray:
    """Devices of one slice along its physical axes; where those don't give the shape, an axis of the torus is cut."""
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def check_fit(config, sizes: dict[str, int]) -> None:
    """Raises UserError if batch or model do not divide over a mesh of these sizes."""
    _check_batches(config, sizes)
    for field, size, axes in _divided(config, sizes):
        parts = math.prod(sizes[axis] for axis in axes)
        if size % parts:
            *others, last = axes
            rest = math.prod(sizes[axis] for axis in others)
            fits = max(n for n in range(1, sizes[last] + 1) if sizes[last] % n == 0 and size % (rest * n) == 0)
            given = " x ".join(f"mesh.{axis}={sizes[axis]}" for axis in axes)
            raise UserError(
                f"{field}={size} does not divide over {given}; use mesh.{last}={fits} and another axis for the rest."
            )
    _check_pipeline(config, sizes["stage"])
    if sizes["sequence"] > 1 and config.model.attention_dropout:
        raise UserError(
            f"model.attention_dropout={config.model.attention_dropout} cannot be drawn where a sequence is split over"
            " devices; use mesh.sequence=1, or 0.0."
        )


def _check_pipeline(config, stages: int) -> None:
    model, repeats = config.model, config.mesh.pipeline_repeats
    if stages == 1:
        if repeats > 1:
            raise UserError(f"mesh.pipeline_repeats={repeats} needs a pipeline; set mesh.stage, or use 1.")
        return
    units, rest = divmod(model.n_layers, model.layer_period * repeats)
    if rest or units % stages:
        bands = ", a dense and a banded layer together" if model.layer_period > 1 else ""
        fits = f"mesh.pipeline_repeats={math.gcd(model.n_layers // model.layer_period, repeats)}"
        if not rest:
            fits = f"mesh.stage={math.gcd(units, stages)} and another axis for the rest"
        raise UserError(
            f"model.n_layers={model.n_layers} does not divide over mesh.stage={stages} x mesh.pipeline_repeats={repeats}"
            f"{bands}; use {fits}."
        )
    microbatches = config.mesh.pipeline_microbatches or stages
    if repeats > 1 and microbatches < stages:
        raise UserError(
            f"mesh.pipeline_microbatches={microbatches} leaves some of {stages} stages idle when they are gone round"
            f" mesh.pipeline_repeats={repeats} times; use at least {stages}."
        )
    if config.train.log_activations:
        raise UserError("train.log_activations reads layer by layer, which a pipeline does not; use mesh.stage=1.")


def _check_batches(config, sizes: dict[str, int]) -> None:
    train = config.train
    batches = {
        "train.batch_size / train.microbatches": train.batch_size // train.microbatches,
        "eval.batch_size": config.eval_batch_size,
    }
    shards, unit = sizes["replica"] * sizes["fsdp"], batch_unit(config, sizes)
    for key, batch in batches.items():
        if batch % unit:
            pipelined = f" of {unit // shards} pipeline microbatches" if unit > shards else ""
            raise UserError(
                f"{key}={batch} does not divide over {shards} data shards (mesh replica x fsdp){pipelined};"
                f" use a multiple of {unit}, or a smaller mesh.fsdp and a larger mesh.tensor."
            )


def batch_unit(config, sizes) -> int:
    """What the sequences of a microbatch are a multiple of: one for each data shard and microbatch of a pipeline."""
    in_pipeline = 1 if sizes["stage"] == 1 else config.mesh.pipeline_microbatches or sizes["stage"]
    return sizes["replica"] * sizes["fsdp"] * in_pipeline


def _divided(config, sizes) -> list[tuple[str, int, tuple[str, ...]]]:
    """(field, size, mesh axes) of every length of the model that has to divide evenly over devices."""
    model = config.model
    divided = [
        ("model.d_model", model.d_model, ("fsdp",)),
        ("model.n_heads", model.n_heads, ("tensor",)),
        ("model.n_kv_heads", model.kv_heads, ("tensor",)),
        ("model.d_ff", model.ff_size, ("tensor",)),
        ("model.context_length", model.context_length, ("sequence",)),
        ("model.context_length", model.context_length, ("sequence", "tensor")),
        ("model.context_length", model.context_length, ("sequence", "stage")),
    ]
    if sizes["sequence"] > 1:
        divided.append(("half of model.context_length", model.context_length // 2, ("sequence",)))
    if model.vocab_size is not None:
        part = model.padded_vocab_size // config.train.vocab_chunks
        divided.append(("the padded vocabulary / train.vocab_chunks", part, ("tensor",)))
    return divided


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


def length_is_split() -> bool:
    """Whether the mesh in context splits the tokens of a sequence, so that they don't merge with the batch."""
    return mesh_axis_size("sequence") * mesh_axis_size("tensor") > 1


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
