"""Memory, communication and time of a config on a machine by arithmetic alone, where nothing can be compiled.

The same numbers prune a search before anything is compiled. What is assumed: weights are gathered and gradients
scattered over `fsdp` once in each of forward and backward pass and microbatch, beside matmuls; activations are
gathered and scattered over `tensor` twice a layer and pass with nothing else running; matmuls, and what else is moved
through HBM, follow one another; the optimizer reads and writes its whole state.
"""

import dataclasses
import math

import numpy as np

from gptjax import flops, schedule
from gptjax.models import attention
from gptjax.planning import gpus, topology

# Of a (query, key) pair in XLA's attention: its logit and the gradient of its probability in float32, and what goes into
# matmuls of both in bfloat16. The traffic is fitted to the plans of GPT-2 on GPUs, docs/plans.md.
SCORE_BYTES = 2 * (4 + 2)
SCORE_TRAFFIC = 90  # bytes of HBM a pair, forward and backward together
# Of what a layer keeps for its backward pass: written and read, read again there, its gradient written and read for the
# products of both operands and for the sums of biases and norms.
TIMES_MOVED = 8
LOGIT_PASSES = 7  # float32 logits are written and read twice, made again, read, and their gradient written and read


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


def memory(config, sizes: dict[str, int], params: float, optimizer: float, kernel: str = "none") -> dict[str, float]:
    """Bytes on one device by what they are for, with a kernel of attention.

    Two layers' weights are gathered. Gradients come in the dtype of the matmuls; where microbatches are summed, in the
    parameters' dtype beside them.
    """
    shards = sizes["tensor"] * sizes["stage"]
    layer = flops.parameters(config.model).matrices / config.model.n_layers / sizes["tensor"]
    itemsize = flops.DTYPE_BYTES[config.model.dtype]
    gathered = 2 * layer * itemsize if sizes["fsdp"] > 1 else 0
    summed = config.train.microbatches > 1
    kept = flops.activation_bytes(config, sizes) - recomputed_outputs(config, sizes, kernel)
    return {
        "parameters": params,
        "optimizer": optimizer,
        "gradients": _trained_share(config) * params * (summed + itemsize / 4),
        "activations": kept * (1 + bubble(config, sizes["stage"])),  # a waiting stage keeps as much as a working one
        "attention": attention_bytes(config, sizes, kernel),
        "gathered": gathered + 4 * flops.parameters(config.model).token_embedding / shards / config.train.vocab_chunks,
    }


def recomputed_outputs(config, sizes: dict[str, int], kernel: str) -> float:
    """Bytes of attention's outputs that remat="attention" counts as kept and cuDNN's kernel makes again: they have no name."""
    if kernel != "cudnn" or config.model.remat != "attention":
        return 0.0
    rows, heads, _ = _attended(config, sizes)
    layers, output = (
        config.model.n_layers // sizes["stage"],
        flops.DTYPE_BYTES[config.model.dtype] * config.model.head_size,
    )
    parts = config.mesh.pipeline_parts(sizes["stage"])
    return float(layers * parts * rows * config.model.context_length * heads * (output + 4))  # and their log-sums


def attention_bytes(config, sizes: dict[str, int], kernel: str) -> float:
    """Bytes that a kernel of attention takes on a device, beside what layers keep.

    cudnn: its workspace. xla: all (query, key) pairs of a layer's blocks of queries, which XLA holds at once; and where a
    layer keeps all, the keys and values that each block sees: block i of n a part i / n of them, (n + 1) / 2 times the whole.
    """
    if kernel == "cudnn":
        return gpus.attention_workspace(config, sizes)
    if kernel != "xla":
        return 0.0
    model = config.model
    rows, heads, pairs = _attended(config, sizes)
    blocks = len(attention.query_blocks(model.context_length, None))
    keys = 2 * rows * model.context_length // sizes["sequence"] * model.kv_heads // sizes["tensor"] * model.head_size
    layers = model.n_layers // sizes["stage"] if model.remat == "none" else 1
    again = layers * keys * (blocks + 1) / 2 - layers * keys if sizes["sequence"] == 1 else 0
    return rows * heads * pairs * SCORE_BYTES + again * flops.DTYPE_BYTES[model.dtype]


def _attended(config, sizes: dict[str, int]) -> tuple[int, int, int]:
    """(rows, heads, (query, key) pairs of a head) that a device attends with at a time."""
    model, train = config.model, config.train
    rows = train.batch_size // (train.microbatches * sizes["replica"] * sizes["fsdp"])
    if (shards := sizes["sequence"]) > 1:  # chunks of queries to chunks of keys: see context_attention.py
        pairs = (2 * shards + 1) * (model.context_length // (2 * shards)) ** 2
    else:
        blocks = attention.query_blocks(model.context_length, None)
        pairs = sum((block.end - block.start) * block.end_key for block in blocks)
    return rows // config.mesh.pipeline_parts(sizes["stage"]), model.n_heads // sizes["tensor"], pairs


def _trained_share(config) -> float:
    """The part of the parameters that has a gradient."""
    if config.train.trainable is None:
        return 1.0
    from gptjax.models import architectures
    from gptjax.training import trainable

    return trainable.share(architectures.abstract(config.model)[1], config)


def step_flops(config, kernel: str = "none") -> dict[str, float]:
    """FLOPs of a step on all devices: useful ones, and those that run again."""
    model, rows = config.model, config.train.batch_size
    again = flops.recomputed_flops_per_sequence(config)
    if kernel == "cudnn" and model.remat == "attention":  # see recomputed_outputs
        again += flops.counts_of(model).mixing_flops(model)
    return {"exact": float(rows * flops.train_flops_per_sequence(model)), "recomputed": float(rows * again)}


def hbm_traffic(config, sizes: dict[str, int], kernel: str) -> float:
    """Bytes that a device reads and writes in a step beside those of matmuls: activations, logits, XLA's scores."""
    model, train = config.model, config.train
    tokens = config.tokens_per_step / math.prod(sizes.values())
    layers = TIMES_MOVED * model.n_layers * flops.kept_bytes(model, "none")
    logits = LOGIT_PASSES * 4 * model.padded_vocab_size
    moved = tokens * (layers + logits)
    if kernel == "xla":
        rows, heads, pairs = _attended(config, sizes)
        times = train.microbatches * config.mesh.pipeline_parts(sizes["stage"]) * model.n_layers // sizes["stage"]
        moved += times * rows * heads * pairs * SCORE_TRAFFIC
    return moved


def timeline(
    config,
    sizes: dict[str, int],
    machine: topology.Topology,
    bytes_held: dict,
    fraction: float = 1.0,
    kernel: str = "none",
) -> dict:
    """Seconds of a step and of its parts. machine: its devices in the mesh's order."""
    chip = machine.chip
    bandwidth = chip.hbm_bandwidth / chip.devices_per_chip
    work = step_flops(config, kernel)
    matmul = sum(work.values()) / machine.num_devices / (chip.flops_per_second / chip.devices_per_chip * fraction)
    compute = matmul + hbm_traffic(config, sizes, kernel) / bandwidth
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
