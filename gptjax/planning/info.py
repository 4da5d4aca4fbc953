"""What a config is and will cost, from arithmetic and shapes alone: nothing is allocated, no device is used."""

import dataclasses
import math

import jax
from jax.sharding import AbstractMesh

from gptjax import flops, hardware, schedule
from gptjax.config import catalogue
from gptjax.errors import imported
from gptjax.parallel import meshes, sharding
from gptjax.planning import topology
from gptjax.terminal import columns, si
from gptjax.training import program as programs
from gptjax.training import trainable
from gptjax.training.session import opener


def info(config, devices: int | None = None, machine: str | None = None, num_slices: int = 1) -> dict:
    """Parameters, FLOPs, and bytes per device, as nested dicts of plain numbers.

    devices: how many to lay the mesh over; None: those of the machine, a name of planning/topology.py, else the fewest it
    fits. Optimizer bytes include the moving average.
    Raises UserError for a config that no device count, optimizer or schedule could run.
    """
    config = resolved(config)
    mesh = abstract_mesh(config, devices, machine, num_slices)
    fixed, devices = dict(mesh.shape), mesh.size
    meshes.check_fit(config, fixed)
    schedule.learning_rate(config, 0)
    program = programs.build(config, mesh, "xla")  # the kernel has no part in the state
    state, places = program.abstract_state, program.state_sharding
    params = sharding.bytes_on_one_device(state.params, places.params)
    optimizer = sharding.bytes_on_one_device((state.opt_state, state.ema), (places.opt_state, places.ema))
    return {
        "params": flops.parameter_counts(config.model),
        "flops_per_token": flops.flops_per_token(config.model),
        "train_flops": flops.train_flops(config),
        "train_tokens": schedule.run_tokens(config),
        "train_steps": schedule.total_steps(config),
        "mesh": fixed,
        "remat": config.model.remat,
        **({} if machine is None else _machine_facts(machine, num_slices, devices)),
        "bytes_per_device": {
            "params": params,
            "optimizer": optimizer,
            "activations": flops.activation_bytes(config, fixed),
        },
    }


def finetuning(config, devices: int | None = None, machine: str | None = None, num_slices: int = 1) -> list[dict]:
    """Bytes on a device of a config trained whole, by LoRA, and by LoRA on a base in int8 and in nf4 (QLoRA): {"name", "adapter", "trained" (its
    parameters), "params", "gradients", "moments"} each, laid out as by `info`. What is kept for backward passes comes to all
    alike (`info`).

    The adapter is the config's, or a LoRA on all matrices. Gradients are in float32.
    """
    config = resolved(config)
    chosen = config.model.adapter
    lora = chosen if chosen and chosen.startswith(("lora", "rslora", "dora")) else "lora(rank=8, on='all')"
    kinds = [("full", None), ("LoRA", _with_base(lora, "as_stored"))]
    kinds += [(f"LoRA, {form} base", _with_base(lora, form)) for form in ("int8", "nf4")]
    rows = []
    for name, adapter in kinds:
        of_kind = config.replace(model={"adapter": adapter}, train={"trainable": None})
        program = programs.build(of_kind, abstract_mesh(config, devices, machine, num_slices), "xla")
        state, places = program.abstract_state, program.state_sharding
        trained, where = trainable.split(state.params, of_kind)[0], trainable.split(places.params, of_kind)[0]
        gradients = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "float32"), trained)
        sizes = {
            "params": sharding.bytes_on_one_device(state.params, places.params),
            "gradients": sharding.bytes_on_one_device(gradients, where),
            "moments": sharding.bytes_on_one_device(state.opt_state, places.opt_state),
        }
        rows.append(
            {"name": name, "adapter": adapter, "trained": sum(leaf.size for leaf in jax.tree.leaves(trained)), **sizes}
        )
    return rows


def _with_base(lora: str, form: str) -> str:
    """model.adapter of the same LoRA on a base in another form: as_stored, int8 or nf4."""
    kind = catalogue.adapter(lora)
    if kind.frozen == form:
        return lora
    plain = dataclasses.replace(kind, frozen=form)
    parameters = [f.name for f in dataclasses.fields(kind) if getattr(plain, f.name) != f.default or f.name == "on"]
    written = ", ".join(f"{name}={getattr(plain, name)!r}" for name in parameters)
    return f"{lora.partition('(')[0].strip()}({written})"


def finetuning_table(rows: list[dict]) -> str:
    """finetuning() for a person."""
    sizes = ("params", "gradients", "moments")
    lines = [("bytes per device", "trained", *sizes, "sum")]
    for row in rows:
        held = [f"{si(row[size])}B" for size in sizes] + [f"{si(sum(row[size] for size in sizes))}B"]
        lines.append((row["name"], f"{si(row['trained'])}", *held))
    return "\n".join(columns(lines))


def abstract_mesh(config, devices: int | None, machine: str | None, num_slices: int) -> AbstractMesh:
    """The mesh of a Config on so many devices, or on those of a machine, or on the fewest it fits. Raises UserError."""
    slices = _slices(machine, num_slices)
    if devices is None:
        devices = _fewest_devices(config.mesh) if machine is None else topology.device_count(machine, num_slices)
    sizes = meshes.mesh_sizes(config.mesh, devices, slices)
    return AbstractMesh(tuple(sizes.values()), meshes.AXES, axis_types=meshes.auto_axes())


def _slices(machine: str | None, num_slices: int) -> int | None:
    """As `gptjax plan` has them: of GPUs what the config calls one."""
    is_tpu = machine is not None and (chip := hardware.CHIPS.get(topology.parse(machine, num_slices)[0])) and chip.dims
    return num_slices if is_tpu else None


def _machine_facts(machine: str, num_slices: int, devices: int) -> dict:
    chip = hardware.CHIPS.get(topology.parse(machine, num_slices)[0])
    memory = None if chip is None else chip.hbm_bytes // chip.devices_per_chip
    kind = "cpu" if chip is None else chip.device_kind
    return {
        "topology": machine,
        "num_slices": num_slices,
        "num_devices": devices,
        "device_kind": kind,
        "hbm_bytes": memory,
    }


def _fewest_devices(mesh_config) -> int:
    slices = math.prod(meshes.dcn_sizes(mesh_config).values())
    return slices * math.prod(max(getattr(mesh_config, axis), 1) for axis in meshes.AXES)


def resolved(config):
    """config with its vocabulary: where it names none, that of the tokenizer a run would use, trained if need be."""
    if config.model.vocab_size is not None:
        return config
    if (address := opener(config)) is not None:
        store = imported(address, "data")(config)
        return config.with_vocabulary(store.tokenizer.vocab_size)
    from gptjax.data.tokens.store import prepare

    return config.with_vocabulary(prepare(config.data).tokenizer.vocab_size)


def table(facts: dict) -> str:
    """info() for a person."""
    per_token, memory = facts["flops_per_token"], facts["bytes_per_device"]
    mesh = " x ".join(f"{axis}={size}" for axis, size in facts["mesh"].items())
    rows = [
        ("parameters", f"{facts['params']['total']:,}"),
        ("  without embeddings", f"{facts['params']['non_embedding']:,}"),
        ("  in matmuls", f"{facts['params']['matmul']:,}"),
        ("FLOPs per token, 6N", f"{per_token['6n']:,.0f}"),
        ("  6N + full attention", f"{per_token['6n_attn_full']:,.0f}"),
        ("  6N + causal attention", f"{per_token['6n_attn_causal']:,.0f}"),
        ("  exact", f"{per_token['exact']:,.0f}"),
        (
            "run",
            f"{facts['train_steps']:,} steps, {facts['train_tokens']:,} tokens, {facts['train_flops']:.4g} FLOPs",
        ),
        *_machine_rows(facts),
        ("mesh", f"{mesh}, remat {facts['remat']}"),
        ("bytes per device", f"{si(sum(memory.values()))}B{_share(facts)}"),
        ("  parameters", f"{memory['params']:,}"),
        ("  optimizer", f"{memory['optimizer']:,}"),
        ("  activations", f"{memory['activations']:,} (estimate)"),
    ]
    return "\n".join(columns(rows))


def _machine_rows(facts: dict) -> list[tuple[str, str]]:
    if "topology" not in facts:
        return []
    slices = f" x {facts['num_slices']} slices" if facts["num_slices"] > 1 else ""
    return [("machine", f"{facts['topology']}{slices}: {facts['num_devices']:,} x {facts['device_kind']}")]


def _share(facts: dict) -> str:
    """Of the memory of a device, where it is known. What a step needs beside these, gptjax plan says."""
    if not facts.get("hbm_bytes"):
        return ""
    part = sum(facts["bytes_per_device"].values()) / facts["hbm_bytes"]
    return f", {part:.1%} of its {facts['hbm_bytes'] / hardware.GIB:.0f} GiB; gptjax plan adds what the compiler needs"
