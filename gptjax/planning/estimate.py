"""Memory, communication and time of a config on a machine by arithmetic alone, where nothing can be compiled.

The same numbers prune a search before anything is compiled. What is assumed: weights are gathered and gradients
scattered over `fsdp` once in each of forward and backward pass and microbatch, beside matmuls; activations are
gathered and scattered over `tensor` twice a layer and pass with nothing else running; the optimizer reads and writes its whole state.
"""

import dataclasses

import numpy as np

from gptjax import flops, schedule
from gptjax.planning import topology


@dataclasses.dataclass(frozen=True)
class Moved:
    """One kind of collective over one mesh axis, in a step."""

    kind: str
    axis: str
    count: int
    bytes: float  # of the whole arrays
    overlapped: bool


def traffic(config, sizes: dict[str, int]) -> list[Moved]:
    """What a step sends, by mesh axis."""
    model, train = config.model, config.train
    itemsize = flops.DTYPE_BYTES[model.dtype]
    counts, parts = flops.parameters(model), train.microbatches
    stages, tensor = sizes["stage"], sizes["tensor"]
    layers, shards = model.n_layers // stages, tensor * stages
    rows = train.batch_size // (parts * sizes["replica"] * sizes["fsdp"])
    tokens = rows * model.context_length // sizes["sequence"]
    weights = counts.matmul / shards * itemsize
    moved = []
    if sizes["fsdp"] > 1:
        moved.append(Moved("all-gather", "fsdp", 2 * 4 * layers * parts, 2 * weights * parts, True))
        moved.append(Moved("reduce-scatter", "fsdp", 4 * layers * parts, weights * parts, True))
    if sizes["replica"] > 1:
        gradient = counts.total / (shards * sizes["fsdp"]) * itemsize
        moved.append(Moved("all-reduce", "replica", 4 * layers * parts, gradient * parts, True))
    if tensor > 1:
        passes = 4 + (model.remat in ("full", "attention", "mlp"))
        activations = tokens * model.d_model * itemsize
        times = passes * layers * parts  # gathered before the split matmuls, scattered after them
        moved += [Moved(kind, "tensor", times, times * activations, False) for kind in ("all-gather", "reduce-scatter")]
    if sizes["sequence"] > 1:
        keys = 2 * rows * model.context_length * model.kv_heads * model.head_size // tensor * itemsize
        moved.append(Moved("all-gather", "sequence", 3 * layers * parts, 3 * layers * parts * keys, False))
    if stages > 1:
        pipelined = config.mesh.pipeline_parts(stages)
        edges = 2 * parts * (pipelined * config.mesh.pipeline_repeats + stages - 1)  # forward and backward
        edge = tokens / pipelined * model.d_model * itemsize
        moved.append(Moved("collective-permute", "stage", edges, edges * edge, False))
    return moved


def state_bytes(config, program) -> tuple[float, float]:
    """(parameters, optimizer state) in bytes of a Program's mesh, on one device."""
    from gptjax.parallel import sharding

    state, places = program.abstract_state, program.state_sharding
    params = sharding.bytes_on_one_device(state.params, places.params)
    optimizer = sharding.bytes_on_one_device((state.opt_state, state.ema), (places.opt_state, places.ema))
    return params, optimizer


def memory(config, sizes: dict[str, int], params: float, optimizer: float) -> dict[str, float]:
    """Bytes on one device by what they are for; gradients in the parameters' dtype, two layers' weights gathered."""
    shards = sizes["tensor"] * sizes["stage"]
    layer = flops.parameters(config.model).matrices / config.model.n_layers / sizes["tensor"]
    gathered = 2 * layer * flops.DTYPE_BYTES[config.model.dtype] if sizes["fsdp"] > 1 else 0
    summed = config.train.microbatches > 1
    return {
        "parameters": params,
        "optimizer": optimizer,
        "gradients": _trained_share(config) * params * (1 if summed else flops.DTYPE_BYTES[config.model.dtype] / 4),
        "activations": flops.activation_bytes(config, sizes),
        "gathered": gathered + 4 * flops.parameters(config.model).token_embedding / shards / config.train.vocab_chunks,
    }


def _trained_share(config) -> float:
    """The part of the parameters that has a gradient."""
    if config.train.trainable is None:
        return 1.0
    from gptjax.models import architectures
    from gptjax.training import trainable

    return trainable.share(architectures.abstract(config.model)[1], config)


def step_flops(config) -> dict[str, float]:
    """FLOPs of a step on all devices: useful ones, and those that run again."""
    rows = config.train.batch_size
    return {
        "exact": float(rows * flops.train_flops_per_sequence(config.model)),
        "recomputed": float(rows * flops.recomputed_flops_per_sequence(config)),
    }


def timeline(
    config, sizes: dict[str, int], machine: topology.Topology, bytes_held: dict, fraction: float = 1.0
) -> dict:
    """Seconds of a step and of its parts. machine: its devices in the mesh's order."""
    chip = machine.chip
    bandwidth = chip.hbm_bandwidth / chip.devices_per_chip
    count = machine.num_devices
    work = step_flops(config)
    matmul = sum(work.values()) / count / (chip.flops_per_second / chip.devices_per_chip * fraction)
    tokens = config.tokens_per_step / count
    activations = 3 * 2 * tokens * config.model.n_layers * flops.kept_bytes(config.model, "none")
    compute = max(matmul, activations / bandwidth)
    update = 2 * (bytes_held["parameters"] + bytes_held["optimizer"]) / bandwidth
    entries, hidden, exposed = [], 0.0, 0.0
    for moved in traffic(config, sizes):
        group = axis_group(sizes, moved.axis)
        near, far = topology.seconds(machine, moved.kind, moved.bytes, group)
        hidden, exposed = (hidden + near + far, exposed) if moved.overlapped else (hidden, exposed + near + far)
        link = machine.far_link if topology.path(machine, group).slices > 1 else machine.local_link
        entries.append((moved, link, near + far))
    step = max(compute * (1 + bubble(config, sizes["stage"])), hidden) + exposed + update
    waited = max(0.0, hidden - compute) + exposed
    return {
        "step_seconds": step,
        "matmul_seconds": matmul,
        "memory_seconds": compute - matmul + update,
        "exposed_seconds": waited,
        "traffic": entries,
    }


def bubble(config, stages: int) -> float:
    """Time that the stages of a pipeline wait, over the time they work (Narayanan et al. 2021, section 2.2)."""
    return (stages - 1) / (config.mesh.pipeline_parts(stages) * config.mesh.pipeline_repeats)


def axis_group(sizes: dict[str, int], axis: str) -> np.ndarray:
    """Positions in the mesh of the first group along an axis."""
    positions = np.arange(int(np.prod(list(sizes.values())))).reshape(tuple(sizes.values()))
    index = tuple(slice(None) if name == axis else 0 for name in sizes)
    return positions[index].ravel()


def whole_run(config, step_seconds: float, num_chips: int, price: float | None) -> dict:
    """Chip-hours and cost of all the tokens of a run at the pace of the full batch."""
    hours = schedule.run_tokens(config) / config.tokens_per_step * step_seconds / 3600
    chip_hours = hours * num_chips
    return {"run_hours": hours, "chip_hours": chip_hours, "cost_usd": None if price is None else chip_hours * price}
