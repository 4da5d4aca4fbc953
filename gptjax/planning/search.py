"""Meshes, microbatches and remat policies tried for a config on a machine: arithmetic on all, the compiler on the best.

Every factorisation of the devices over the axes that a config may use is estimated; those estimated to fit are ranked
by time, and the first few are compiled, since only the compiler knows what it will gather and how much it will hold.
Remat `offload` is not tried: what it sends to the host and back is not in the estimates, so it would rank too high.
"""

import dataclasses
import itertools
import math

import numpy as np
from jax.sharding import AbstractMesh

from gptjax.config import catalogue
from gptjax.errors import UserError
from gptjax.models import attention
from gptjax.parallel import meshes
from gptjax.planning import estimate, info, plan, plan_table, topology
from gptjax.training import program as programs

ALWAYS = ("replica", "fsdp", "tensor")  # axes that need nothing of a config; others are tried if it uses them
ROOM = 0.95  # of the memory, that an estimate may fill


@dataclasses.dataclass(frozen=True)
class Candidate:
    config: object
    sizes: dict
    peak_bytes: float  # estimated
    step_seconds: float  # estimated

    @property
    def shown(self) -> str:
        mesh = " x ".join(f"{axis}={size}" for axis, size in self.sizes.items() if size > 1) or "one device"
        return f"{mesh}, {self.config.train.microbatches} microbatches, remat {self.config.model.remat}"


def search(config, machine: topology.Topology, options: plan.Options, compiles: int, progress) -> dict:
    """{"tried", "refused", "refusals", "estimated_to_fit", "compiled", "not_compiled"}.

    compiled: plans, those that fit first, fastest first. not_compiled: why XLA made no program of the others.
    """
    if machine.chip is None:
        raise UserError("--search ranks by time, but a CPU has no published rates; give a TPU or GPU topology.")
    config = info.resolved(config)
    candidates, refusals, tried = _candidates(config, machine, progress)
    fitting = [each for each in candidates if each.peak_bytes <= ROOM * machine.usable_bytes]
    fitting.sort(key=lambda each: each.step_seconds)
    results, not_compiled = [], []
    options = dataclasses.replace(options, save_executable=None)
    for number, each in enumerate(fitting[:compiles]):
        progress.message(f"{number + 1} of {min(compiles, len(fitting))}: {each.shown}")
        try:
            results.append(plan.plan(each.config, machine, options))
        except UserError as error:
            not_compiled.append(str(error))
            progress.message(f"  refused: {error}")
    results.sort(key=lambda facts: (not facts["fits"], facts["step_seconds"] or np.inf))
    return {
        "topology": machine.name,
        "tried": tried,
        "refused": tried - len(candidates),
        "refusals": refusals,
        "estimated_to_fit": len(fitting),
        "compiled": results,
        "not_compiled": not_compiled,
    }


def _candidates(config, machine: topology.Topology, progress):
    """(those that the config can run, reasons against the others with counts, how many were tried)."""
    found, refusals, tried = [], {}, 0
    unit = _state_bytes(config)
    slices = math.prod(plan.dcn_sizes(config, machine).values())
    for sizes in factorisations(config, machine.num_devices // slices):
        placed = None
        for microbatches, remat in itertools.product(_microbatches(config), _policies(config)):
            tried += 1
            try:
                changed = config.replace(mesh=dict(sizes), train={"microbatches": microbatches}, model={"remat": remat})
                full = plan.mesh_sizes(changed, machine)
                meshes.check_fit(changed, full)
                placed = placed or _placed(changed, machine, full)
            except UserError as error:
                reason = str(error).split("=")[0].split(";")[0]
                refusals[reason] = refusals.get(reason, 0) + 1
                continue
            found.append(_estimate(changed, full, placed, unit))
        progress.update(f"{tried} tried, {len(found)} can run")
    progress.close()
    return found, refusals, tried


def factorisations(config, count: int):
    """Meshes {axis: size} of a number of devices, over the axes that every config has and those that this one uses."""
    axes = [axis for axis in meshes.AXES if axis in ALWAYS or getattr(config.mesh, axis) not in (1, None)]
    divisors = [n for n in range(1, count + 1) if count % n == 0]

    def split(left: int, names: list[str]):
        if len(names) == 1:
            yield {names[0]: left}
            return
        for size in divisors:
            if left % size == 0:
                yield from ({names[0]: size, **rest} for rest in split(left // size, names[1:]))

    ones = {axis: 1 for axis in meshes.AXES}
    for sizes in split(count, axes):
        yield {**ones, **sizes}


def _policies(config) -> list[str]:
    """The remat policies of the model that can be ranked by their estimates."""
    return [name for name in catalogue.entry(config.model.architecture).remat if name != "offload"]


def _microbatches(config) -> list[int]:
    batch = config.train.batch_size
    doubled = {n for n in (1, 2, 4, 8, 16, 32) if batch % n == 0}
    return sorted(doubled | {config.train.microbatches})


def _placed(config, machine: topology.Topology, sizes: dict[str, int]) -> topology.Topology:
    if machine.devices is None:
        return plan.in_mesh_order(config, machine, sizes)
    return machine.arrange(plan.make_mesh(config, machine))


def _state_bytes(config) -> tuple[float, float]:
    """(parameters, optimizer state) in bytes, all shards together."""
    sizes = {axis: 1 for axis in meshes.AXES}
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=meshes.auto_axes())
    return estimate.state_bytes(config, programs.build(config, mesh, "xla"))


def _estimate(config, sizes: dict[str, int], machine: topology.Topology, unit: tuple[float, float]) -> Candidate:
    shards = sizes["fsdp"] * sizes["tensor"] * sizes.get("stage", 1)
    kernel, _ = attention.choose_kernel(config, machine.platform, sizes["sequence"])
    held = estimate.memory(config, sizes, unit[0] / shards, unit[1] / shards, kernel)
    line = estimate.timeline(config, sizes, machine, held, kernel=kernel)
    return Candidate(config, sizes, sum(held.values()), line["step_seconds"])


def table(results: dict) -> str:
    """The best first."""
    reasons = ", ".join(
        f"{count} {reason}" for reason, count in sorted(results["refusals"].items(), key=lambda r: -r[1])
    )
    lines = [
        f"{results['topology']}: {results['tried']} tried, {results['refused']} refused ({reasons}),"
        f" {results['estimated_to_fit']} estimated to fit, {len(results['compiled'])} planned:"
    ]
    for facts in results["compiled"]:
        peak, limit = facts["peak_bytes"], facts["usable_bytes"]
        what = f"{plan_table.mesh(facts)}, {facts['microbatches']} microbatches, remat {facts['remat']}"
        if not facts["fits"]:
            lines.append(f"  does not fit, {plan_table.gib(peak - limit)} too much: {what}")
            continue
        lines.append(
            f"  {facts['step_seconds']:.4g} s/step  MFU {facts['mfu']:.1%}  {1 - peak / limit:.1%} of HBM free  {what}"
        )
    refused, compiled = results["not_compiled"], results["compiled"]
    if refused:
        lines.append(f"  {len(refused)} more were refused: {refused[0]}")
    if not any(facts["fits"] for facts in compiled) and (compiled or not refused):
        lines.append(
            "  none of the planned candidates fits; use more devices, or compile more candidates with --search_compiles=N."
        )
    return "\n".join(lines)
