"""What a config will need and cost on a machine that is not here: the real train step, compiled for it ahead of time.

    config, topology -> mesh -> program.build(...).train, lowered on shapes alone -> compiled by libtpu or XLA:GPU
    compiled program -> bytes, FLOPs, collectives (`hlo.py`, `collectives.py`) -> seconds (`roofline.py`)

For GPUs XLA:GPU compiles where it is installed (`gpus.py`); elsewhere `estimate.py` counts. A CPU topology is compiled and
counted, but has no published rates, so no roofline.
"""

import contextlib
import dataclasses
import json
import re
import resource
import time
import typing

import jax
import numpy as np
from jax.sharding import AbstractMesh

from gptjax import flops, hardware
from gptjax.errors import UserError, paragraph
from gptjax.models import attention
from gptjax.parallel import meshes, numerics
from gptjax.planning import collectives, costs, estimate, gpus, hlo, info, roofline, topology
from gptjax.training import executable
from gptjax.training import program as programs

ROOFLINE_KEYS = ("matmul_seconds", "memory_seconds", "exposed_seconds", "copy_seconds")


@dataclasses.dataclass(frozen=True)
class Options:
    price: float | None = None  # US dollars per chip and hour
    matmul_fraction: float = 1.0  # of the published peak
    save_executable: str | None = None
    say: typing.Callable = print  # progress, a line at a time


class DoesNotFit(Exception):
    """XLA's own refusal: the program needs more device memory than there is."""

    def __init__(self, used: float, temporaries_only: bool):
        self.used, self.temporaries_only = used, temporaries_only
        super().__init__(f"needs {used:.0f} bytes")


def plan(config, machine: topology.Topology, options: Options) -> dict:
    """All that is known of a config on a machine, as plain numbers under the keys of `--json`.

    Raises UserError for a mesh that fits neither machine nor model.
    """
    config = info.resolved(config)
    sizes = mesh_sizes(config, machine)
    meshes.check_fit(config, sizes)
    facts = _facts(config, machine, sizes)
    if machine.devices is None:
        return facts | _estimated(config, in_mesh_order(config, machine, sizes), sizes, options)
    mesh = make_mesh(config, machine)
    return facts | _compiled(config, machine.arrange(mesh), mesh, options)


def _facts(config, machine: topology.Topology, sizes: dict[str, int]) -> dict:
    """What is known before anything is compiled."""
    work = estimate.step_flops(config, attention.choose_kernel(config, machine.platform, sizes["sequence"])[0])
    return {
        **of_machine(machine),
        "mesh": sizes,
        "remat": config.model.remat,
        "microbatches": config.train.microbatches,
        "pipeline_bubble": estimate.bubble(config, sizes["stage"]),
        "batch_size": config.train.batch_size,
        "flops_per_step": work["exact"],
        "recomputed_flops_per_step": work["recomputed"],
    }


def of_machine(machine: topology.Topology) -> dict:
    chip = machine.chip
    return {
        "topology": machine.name,
        "num_slices": machine.num_slices,
        "num_chips": machine.num_chips,
        "num_devices": machine.num_devices,
        "device_kind": chip.device_kind if chip else "cpu",
        "usable_bytes": machine.usable_bytes,
        "hbm_bytes": chip.hbm_bytes // chip.devices_per_chip if chip else None,
    }


def mesh_sizes(config, machine: topology.Topology) -> dict[str, int]:
    """Devices along each axis. Raises UserError for a mesh that is not this machine's."""
    return meshes.mesh_sizes(config.mesh, machine.num_devices, _slices(machine))


def dcn_sizes(config, machine: topology.Topology) -> dict[str, int]:
    """Slices along each axis of meshes.DCN_AXES; of GPUs what the config calls one. Raises UserError."""
    return meshes.dcn_sizes(config.mesh, _slices(machine))


def _slices(machine: topology.Topology) -> int | None:
    return machine.num_slices if machine.platform == "tpu" else None


def in_mesh_order(config, machine: topology.Topology, sizes: dict[str, int]) -> topology.Topology:
    """A machine that cannot be compiled for, its devices in the order that training would give them."""
    return machine.reorder(meshes.device_order(sizes, dcn_sizes(config, machine)).ravel())


def make_mesh(config, machine: topology.Topology):
    """The mesh that training makes of these devices. Raises UserError where JAX finds no way to lay it out."""
    with laying_out(config.mesh, machine):
        return meshes.make_mesh(config, machine.devices)


@contextlib.contextmanager
def laying_out(mesh_config, machine: topology.Topology):
    """Raises UserError where JAX, inside the `with`, finds no way to lay out a mesh on the machine."""
    try:
        yield
    except (NotImplementedError, ValueError, AssertionError) as error:
        if isinstance(error, UserError):
            raise
        sizes = meshes.mesh_sizes(mesh_config, machine.num_devices, _slices(machine))
        shown = ",".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1)
        raise UserError(
            f"mesh {shown} cannot be laid out on {machine.name} x {machine.num_slices} slices:"
            f" {paragraph(error)}; make every axis a product of dimensions of the slice."
        ) from error


def abstract_arguments(config, program: programs.Program):
    """(state, batch, learning rates) of a call of the train step at the full batch, as placed shapes."""

    def placed(leaf, sharding_):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding_)

    if config.data.examples is not None:
        field = "data.task" if config.data.task is not None else "data.preferences"
        raise UserError(
            f"{config.data.examples_field}: how long its rows are is known with its examples alone; plan the model without"
            f" model.task_head, {field} and train.loss, which needs no less."
        )
    calls, rows, length = config.train.steps_per_call, config.train.batch_size, config.model.context_length
    shapes = {"token_BT": ((rows, length + 1), np.int32), "weight_BL": ((rows, length), np.float32)}
    if config.rl.prompts is not None:
        from gptjax.planning import rl

        shapes = rl.batch_shapes(config)
    if config.data.documents_apart:
        shapes |= {"segment_BT": ((rows, length + 1), np.int32), "position_BL": ((rows, length), np.int32)}
    if config.data.sees_ahead:
        shapes["prefix_BL"] = ((rows, length), np.bool_)
    if config.data.predicts_in_place:
        shapes["target_BL"] = ((rows, length), np.int32)
    place = program.train_batch_sharding
    batch = {
        name: jax.ShapeDtypeStruct((calls, *shape), dtype, sharding=place) for name, (shape, dtype) in shapes.items()
    }
    rates = jax.ShapeDtypeStruct((calls,), np.float32)
    return jax.tree.map(placed, program.abstract_state, program.state_sharding), batch, rates


def compile_step(config, program: programs.Program):
    """(compiled train step, seconds it took). Raises DoesNotFit."""
    started = time.monotonic()
    with numerics.on_mesh(program.mesh):
        compiled = compile_lowered(program.train.lower(*abstract_arguments(config, program)))
    return compiled, time.monotonic() - started


def compile_lowered(lowered):
    """The compiled program. Raises DoesNotFit, or UserError for another reason why XLA did not compile it."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise _refusal(error) from error


def _refusal(error: Exception) -> Exception:
    """DoesNotFit if that is why XLA did not compile; its wording depends on when it found out."""
    message = " ".join(str(error).split())
    whole = re.search(r"Used ([\d.]+)([KMGT]) of", message)
    temporaries = re.search(r"HLO temporaries \(([\d.]+)([KMGT])\) exceeds", message)
    found = whole or temporaries
    if "RESOURCE_EXHAUSTED" not in message or not found:
        return UserError(f"XLA could not compile the step: {paragraph(error)}")
    return DoesNotFit(float(found[1]) * 1024 ** " KMGT".index(found[2]), temporaries_only=whole is None)


def _compiled(config, machine: topology.Topology, mesh, options: Options) -> dict:
    program = programs.on_mesh(config, mesh)
    options.say(f"compiling the train step for {machine.name}, {machine.num_devices} devices ...")
    cpu_seconds = time.process_time()
    try:
        with gpus.with_cudnn() if machine.platform == "gpu" else contextlib.nullcontext():
            compiled, seconds = compile_step(config, program)
    except DoesNotFit as error:
        return _too_large(config, program, error)
    params, optimizer = estimate.state_bytes(config, program)
    memory = compiled.memory_analysis()
    parts = _held(memory, params, optimizer, peak_is_known=machine.platform == "tpu")
    if machine.platform == "gpu" and program.kernel == "cudnn":
        parts["cudnn_workspace"] = gpus.attention_workspace(config, dict(mesh.shape))
    peak = sum(parts.values())
    text = hlo.parse(compiled.as_text())
    found = {
        "bytes": parts,
        "peak_bytes": peak,
        "all_temporaries_bytes": memory.temp_size_in_bytes,
        "fits": peak <= machine.usable_bytes
        if machine.chip
        else None,  # libtpu refuses what does not; XLA:GPU never does
        "compile_seconds": seconds,
        "compile_cpu_seconds": time.process_time() - cpu_seconds,
        "compile_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "kernel": program.kernel,
        "kernel_reason": program.kernel_reason,
        "kernel_advice": attention.advice(config, machine.platform, program.kernel, mesh.shape["sequence"]),
        "compiled_flops_per_step": _program_flops(text) / config.train.steps_per_call * machine.num_devices,
        "estimated_peak_bytes": sum(
            estimate.memory(config, dict(mesh.shape), params, optimizer, program.kernel).values()
        ),
        "checks": checks(config, dict(mesh.shape), program.kernel, text),
        "source": "compiled, without the device" if machine.platform == "gpu" else "compiled",
    }
    if options.save_executable:
        found["executable_bytes"] = executable.save(options.save_executable, compiled, config, mesh, program.kernel)
    return found | _timed(config, machine, dict(mesh.shape), text, options)


def _held(memory, params: float, optimizer: float, peak_is_known: bool) -> dict[str, float]:
    """Bytes on a device by what they are for, at the program's peak."""
    arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "parameters": params,
        "optimizer": optimizer,
        "other_arguments": arguments - params - optimizer,  # the batch, and the padding of tiles
        "temporaries": temporaries(memory, peak_is_known),  # gradients, activations, what is gathered
        "program": memory.generated_code_size_in_bytes,
    }


def temporaries(memory, peak_is_known: bool) -> float:
    """Bytes of a program's temporaries that live at once.

    libtpu's peak is of arguments, results and those temporaries that live at once, without the program itself, and
    `temp_size_in_bytes` of the room given to all temporaries. Either can be the larger: the room by a fifth where much
    is donated, the peak by the state where a loop carries it, which then counts twice. The less is held. What XLA:CPU
    says of its peak leaves temporaries out (a product of two of them, jax 0.10.2 and 0.12).
    """
    arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    if not peak_is_known:
        return memory.temp_size_in_bytes
    return min(memory.temp_size_in_bytes, memory.peak_memory_in_bytes - arguments)


def _program_flops(text: hlo.Program) -> float:
    return sum(costs.matmul_flops(text, i, where) * times for i, where, times in hlo.walk(text))


def _timed(config, machine: topology.Topology, sizes: dict[str, int], text: hlo.Program, options: Options) -> dict:
    """Collectives, and where rates are published the roofline."""
    calls = config.train.steps_per_call
    if machine.chip is None:
        return {"collectives": collectives.listed(text, sizes, calls)} | _no_time()
    line = roofline.play(text, machine, sizes, options.matmul_fraction)
    parts = {name: getattr(line, name) / calls for name in ROOFLINE_KEYS}
    times = _pace(config, machine, line.seconds / calls, options)
    return {
        "collectives": sent(line, calls),
        "hbm_traffic_bytes": line.hbm_bytes / calls,
        **parts,
        **times,
    }


def sent(line: roofline.Timeline, calls: int) -> list[dict]:
    """The collectives of a Timeline, of each of so many steps in it; those that are waited for most come first."""
    entries = []
    for (kind, axis, link, overlapped), moved in line.traffic.items():
        entries.append(
            {
                "kind": kind,
                "axis": axis,
                "count": moved.count / calls,
                "bytes": moved.bytes / calls,
                "link": link,
                "overlapped": overlapped,
                "seconds": moved.seconds / calls,
                "exposed_seconds": moved.exposed_seconds / calls,
                "largest": moved.largest[1],
            }
        )
    return sorted(entries, key=lambda entry: -entry["exposed_seconds"])


def _no_time() -> dict:
    names = (
        "step_seconds",
        "tokens_per_second",
        "mfu",
        "mfu_exact",
        "run_hours",
        "chip_hours",
        "cost_usd",
        "assumption",
    )
    return dict.fromkeys(names + ROOFLINE_KEYS)


def _pace(config, machine: topology.Topology, step_seconds: float, options: Options) -> dict:
    """What follows from the time of a step."""
    rate = config.tokens_per_step / step_seconds
    per_token = flops.flops_per_token(config.model)
    peak = machine.chip.flops_per_second * machine.num_chips
    memory = f"; JAX given {hardware.GPU_MEMORY_FRACTION:.0%} of a GPU's memory" if machine.platform == "gpu" else ""
    return {
        "step_seconds": step_seconds,
        "tokens_per_second": rate,
        "mfu": flops.mfu(rate, per_token["6n_attn_full"], peak),
        "mfu_exact": flops.mfu(rate, per_token["exact"], peak),
        "assumption": roofline.ASSUMPTION.format(options.matmul_fraction) + memory,
        **estimate.whole_run(config, step_seconds, machine.num_chips, options.price),
    }


def _abstract_program(config, sizes: dict[str, int], kernel: str) -> programs.Program:
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=meshes.auto_axes())
    return programs.build(config, mesh, kernel)


def _too_large(config, program: programs.Program, error: DoesNotFit) -> dict:
    """Where XLA refuses the program there is nothing to read but how much it wanted."""
    params, optimizer = estimate.state_bytes(config, program)
    temporaries = error.used if error.temporaries_only else error.used - params - optimizer
    parts = {"parameters": params, "optimizer": optimizer, "temporaries": temporaries}
    refused = {
        "bytes": parts,
        "peak_bytes": sum(parts.values()),
        "fits": False,
        "compile_seconds": None,
        "collectives": [],
    }
    return refused | {"kernel": program.kernel, "source": "refused by the compiler"} | _no_time()


def _estimated(config, machine: topology.Topology, sizes: dict[str, int], options: Options) -> dict:
    kernel, reason = attention.choose_kernel(config, machine.platform, sizes["sequence"])
    params, optimizer = estimate.state_bytes(config, _abstract_program(config, sizes, kernel))
    parts = estimate.memory(config, sizes, params, optimizer, kernel)
    line = estimate.timeline(config, sizes, machine, parts, options.matmul_fraction, kernel)
    entries = [
        {
            "kind": moved.kind,
            "axis": moved.axis,
            "count": moved.count,
            "bytes": moved.bytes,
            "link": link,
            "overlapped": moved.overlapped,
            "seconds": seconds,
        }
        for moved, link, seconds in line["traffic"]
    ]
    return {
        "bytes": parts,
        "peak_bytes": sum(parts.values()),
        "fits": sum(parts.values()) <= machine.usable_bytes,
        "compile_seconds": None,
        "kernel": kernel,
        "kernel_reason": reason,
        "kernel_advice": attention.advice(config, machine.platform, kernel, sizes["sequence"]),
        "collectives": entries,
        "source": f"estimated; {gpus.INSTALL} compiles for GPUs",
        **{name: line.get(name) for name in ROOFLINE_KEYS},
        **_pace(config, machine, line["step_seconds"], options),
    }


def checks(config, sizes: dict[str, int], kernel: str, text: hlo.Program) -> dict:
    """Whether the kernel is in the program, and the largest buffers of attention scores and of logits, if any."""
    model, train = config.model, config.train
    rows = train.batch_size // (train.microbatches * sizes["replica"] * sizes["fsdp"])
    length, stages = model.context_length, sizes.get("stage", 1)
    heads = model.n_heads // sizes["tensor"] if model.has_attention else 0
    vocabulary = model.padded_vocab_size // sizes["tensor"]
    tokens = rows * length // (sizes["sequence"] * stages)  # at the head, where stages split the length too
    parts = config.mesh.pipeline_parts(stages)
    rows //= parts
    iterations = [parts * config.mesh.pipeline_repeats + stages - 1] if stages > 1 else []
    shapes = sorted(hlo.buffer_shapes(text), key=lambda a: -a.bytes)
    scores = [a for a in shapes if _is_scores(a.shape, rows, heads, length, length // sizes["sequence"])]
    if model.d_model == length:  # then stacks of the layers' weights, [N, T, T], and inputs, [N, B, L, T], look alike
        stacks = [[model.n_layers // stages], [*iterations, model.n_layers // stages]]
        kinds = [length, length], [rows, length // sizes["sequence"], length]
        scores = [a for a in scores if not _is_stack(a.shape, [stack + kind for stack in stacks for kind in kinds])]
    chunk = vocabulary // train.vocab_chunks
    logits = [a for a in shapes if (chunk in a.shape or vocabulary in a.shape) and model.d_model not in a.shape]
    logits = [a for a in logits if a.dtype == "f32" and np.prod(a.shape) >= tokens * chunk]
    whole = [a for a in logits if np.prod(a.shape) >= tokens * vocabulary and train.vocab_chunks > 1]
    return {
        "kernels": sum(map(hlo.is_attention, (i for i, _, _ in hlo.walk(text)))),
        "scores": shown(scores[0]) if scores else None,
        "logits": shown(logits[0]) if logits else None,
        "whole_logits": shown(whole[0]) if whole else None,
    }


def _is_scores(shape: tuple[int, ...], rows: int, heads: int, length: int, queries: int) -> bool:
    """Whether an array can be one of all heads' attention scores, a device's queries x T each."""
    shape = tuple(size for size in shape if size > 1)
    square = shape.count(length) >= (2 if queries == length else 1) and queries in shape
    return square and np.prod(shape) >= rows * heads * queries * length and heads > 1


def _is_stack(shape: tuple[int, ...], stacks: list[list[int]]) -> bool:
    """Whether an array has the dimensions of one of these, in any order: XLA:GPU turns some stacks round."""
    sizes = sorted(size for size in shape if size > 1)
    return any(sizes == sorted(size for size in stack if size > 1) for stack in stacks)


def shown(array: hlo.Array) -> str:
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def to_json(facts: dict) -> str:
    return json.dumps(facts, indent=2, default=float)
