"""Meshes of devices: how many lie along each axis, in which order, and whether a config fits them. Mesh axes:

    replica    splits the batch; parameters are copied
    stage      splits the layers into a pipeline (see pipeline.py)
    fsdp       splits the batch and the width of every parameter
    sequence   splits the tokens of a sequence, in attention too (see context.py)
    tensor     splits heads, MLP and vocabulary, and the tokens of the residual stream between them

Several slices are joined by the data center network (DCN). They lie outermost along `replica` or `fsdp`, so that
nothing but parameters and gradients goes from slice to slice.
"""

import math

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from gptjax.config import catalogue
from gptjax.config.fields import MeshConfig
from gptjax.errors import UserError
from gptjax.parallel.sharding import HOST_MEMORY

AXES, DCN_AXES = MeshConfig.AXES, MeshConfig.DCN_AXES


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
        raise UserError(f"mesh {shown} does not fit {n_slices} slices; set mesh.dcn_replica=-1 to use all of them.")
    return {axis: n_slices // fixed if size == -1 else size for axis, size in sizes.items()}


def _sizes_in_slice(mesh_config, n_devices: int, n_slices: int) -> dict[str, int]:
    sizes = {axis: getattr(mesh_config, axis) for axis in AXES}
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
            f"mesh {shown} is {fixed} devices, but there are {each}{where}; set one axis to -1 to use all of them."
        )
    return sizes


def make_mesh(config, devices=None) -> Mesh:
    """The mesh of config.mesh over devices (default: all). Raises UserError if mesh, batch and model don't fit it."""
    devices = jax.devices() if devices is None else devices
    check_fit(config, mesh_sizes(config.mesh, len(devices), count_slices(devices)))
    check_memory(config, [memory.kind for memory in devices[0].addressable_memories()])
    return _laid_out(config.mesh, devices)


def for_reading(config, mesh_config, devices) -> Mesh:
    """The mesh of a MeshConfig over devices, for the model of a Config without its training. Raises UserError if the model
    does not fit it."""
    sizes = mesh_sizes(mesh_config, len(devices), count_slices(devices))
    _check_axes(config.model, sizes)
    _check_model(config, mesh_config, sizes)
    return _laid_out(mesh_config, devices)


def _laid_out(mesh_config, devices) -> Mesh:
    n_slices = count_slices(devices)
    sizes = mesh_sizes(mesh_config, len(devices), n_slices)
    return Mesh(_device_array(sizes, dcn_sizes(mesh_config, n_slices), devices), AXES, axis_types=auto_axes())


def auto_axes() -> tuple[AxisType, ...]:
    return (AxisType.Auto,) * len(AXES)


def count_slices(devices) -> int | None:
    """TPU slices that these devices belong to. None elsewhere: hosts are then slices exactly if mesh.dcn_* says so."""
    return len(set(map(_slice, devices))) if devices[0].platform == "tpu" else None


def _slice(device) -> int:
    return getattr(device, "slice_index", 0)  # the devices of a topology of one slice don't have it


def _device_array(sizes: dict[str, int], dcn: dict[str, int], devices) -> np.ndarray:
    """Devices by mesh coordinates. Along each axis whole slices follow one another."""
    inner = [sizes[axis] // dcn.get(axis, 1) for axis in AXES]
    if devices[0].platform == "tpu":
        devices = sorted(devices, key=_slice)
    slices = np.split(np.array(devices, object), math.prod(dcn.values()))
    return _joined(np.stack([_device_mesh(inner, list(devices)) for devices in slices]), sizes, dcn)


def device_order(sizes: dict[str, int], dcn: dict[str, int]) -> np.ndarray:
    """Indices of devices by mesh coordinates, where those of a slice have no other order than their own, as GPUs."""
    return _joined(np.arange(math.prod(sizes.values())), sizes, dcn)


def _joined(devices: np.ndarray, sizes: dict[str, int], dcn: dict[str, int]) -> np.ndarray:
    """Meshes of slices, one after the other, as one mesh."""
    outer = [dcn.get(axis, 1) for axis in AXES]
    inner = [sizes[axis] // n for axis, n in zip(AXES, outer)]
    alternate = [dim for pair in zip(range(len(outer)), range(len(outer), 2 * len(outer))) for dim in pair]
    return devices.reshape(*outer, *inner).transpose(alternate).reshape([sizes[axis] for axis in AXES])


def _device_mesh(shape, devices) -> np.ndarray:
    """Devices of one slice along its physical axes; where those don't give the shape, an axis of the torus is cut."""
    try:
        return mesh_utils.create_device_mesh(shape, devices)
    except NotImplementedError:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def check_fit(config, sizes: dict[str, int]) -> None:
    """Raises UserError if batch or model do not divide over a mesh of these sizes."""
    _check_axes(config.model, sizes)
    _check_batches(config, sizes)
    _check_model(config, config.mesh, sizes)
    if sizes["stage"] > 1 and config.train.log_activations:
        raise UserError("train.log_activations reads layer by layer, which a pipeline does not; use mesh.stage=1.")


def _check_axes(model, sizes: dict[str, int]) -> None:
    for axis in () if model.has_attention else ("sequence", "stage"):
        if sizes[axis] > 1:
            raise UserError(
                f"mesh.{axis}={sizes[axis]} splits what model.architecture={model.architecture!r} goes through token by"
                f" token; use mesh.{axis}=1 and another axis for the rest."
            )


def _check_model(config, mesh_config, sizes: dict[str, int]) -> None:
    """Raises UserError if the lengths of a Config's model do not divide over a mesh."""
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
    _check_pipeline(config.model, mesh_config, sizes["stage"])
    if sizes["sequence"] > 1 and config.model.attention_dropout:
        raise UserError(
            f"model.attention_dropout={config.model.attention_dropout} cannot be drawn where a sequence is split over"
            " devices; use mesh.sequence=1, or 0.0."
        )


def _check_pipeline(model, mesh_config, stages: int) -> None:
    repeats = mesh_config.pipeline_repeats
    if stages == 1:
        if repeats > 1:
            raise UserError(f"mesh.pipeline_repeats={repeats} needs a pipeline; set mesh.stage, or use 1.")
        return
    catalogue.check_stages(model, stages)
    units, rest = divmod(model.n_layers, model.layer_period * repeats)
    if rest or units % stages:
        bands = f", {model.layer_period} layers of a pattern together" if model.layer_period > 1 else ""
        fits = f"mesh.pipeline_repeats={math.gcd(model.n_layers // model.layer_period, repeats)}"
        if not rest:
            fits = f"mesh.stage={math.gcd(units, stages)} and another axis for the rest"
        raise UserError(
            f"model.n_layers={model.n_layers} does not divide over mesh.stage={stages} x mesh.pipeline_repeats={repeats}"
            f"{bands}; use {fits}."
        )
    microbatches = mesh_config.pipeline_parts(stages)
    if repeats > 1 and microbatches < stages:
        raise UserError(
            f"mesh.pipeline_microbatches={microbatches} leaves some of {stages} stages idle when they are gone round"
            f" mesh.pipeline_repeats={repeats} times; use at least {stages}."
        )


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
    return sizes["replica"] * sizes["fsdp"] * config.mesh.pipeline_parts(sizes["stage"])


def _divided(config, sizes) -> list[tuple[str, int, tuple[str, ...]]]:
    """(field, size, mesh axes) of every length of the model that has to divide evenly over devices."""
    model = config.model
    divided = [("model.d_model", model.d_model, ("fsdp",))]
    if model.has_attention:
        divided += [
            ("model.n_heads", model.n_heads, ("tensor",)),
            ("model.n_kv_heads", model.kv_heads, ("tensor",)),
            ("model.d_ff", model.ff_size, ("tensor",)),
            ("model.context_length", model.context_length, ("sequence",)),
            ("model.context_length", model.context_length, ("sequence", "tensor")),
            ("model.context_length", model.context_length, ("sequence", "stage")),
        ]
    else:
        divided.append(("model.d_model", model.d_model, ("tensor",)))
    if sizes["sequence"] > 1:
        divided.append(("half of model.context_length", model.context_length // 2, ("sequence",)))
    if model.vocab_size is not None:
        part = model.padded_vocab_size // config.train.vocab_chunks
        divided.append(("the padded vocabulary / train.vocab_chunks", part, ("tensor",)))
    return divided


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
