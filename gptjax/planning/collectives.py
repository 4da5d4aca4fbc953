"""The communication of a compiled program: what is sent, over which mesh axis, and what runs meanwhile.

The text of a compiled program is scheduled, so what overlaps can be read off. The rule:

  - `X-start` ... `X-done` that XLA:GPU has not marked as synchronous, and TPU's asynchronous collective fusions (the instructions of one schedule that carry the
    same channel: the first starts it, the last waits for it, those between are matmuls fused with its steps) run
    beside whatever stands between them; so does what slices send each other over DCN, from `send` to `recv-done`;
    so do collectives in a computation that an `X-start` calls, as those that a SparseCore carries out on TPU 7x;
  - everything else, a fused reduce-scatter (`all-reduce-scatter`) included, holds up the schedule.
"""

import dataclasses
import re

import numpy as np

from gptjax.planning import costs, hlo

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
KINDS += ("ragged-all-to-all",)


@dataclasses.dataclass(frozen=True)
class Collective:
    name: str
    kind: str
    payload: float  # bytes of the whole array: gathered, to be reduced or scattered, or sent
    group: tuple[int, ...]  # positions in the mesh of the devices of the first group
    axis: str  # mesh axes along which the group lies
    shown: str  # result, for people


@dataclasses.dataclass(frozen=True)
class Event:
    role: str  # sync | start | step | done
    collective: Collective


def events(program: hlo.Program, where: hlo.Computation, mesh_shape: dict[str, int], slice_D=None) -> dict:
    """{instruction: Events} of the collectives that the instructions of one scheduled computation start, go on with or
    end; those that walk() shows by itself, in loops and plain calls, left out. slice_D: the slice of each device."""
    found, channels, started = _between_slices(where, mesh_shape, slice_D), {}, {}
    for instruction in where.instructions:
        name, opcode = instruction.name, instruction.opcode
        if opcode in KINDS:
            found[name] = [Event("sync", _collective(instruction, where, mesh_shape))]
        elif opcode.removesuffix("-start") in KINDS:
            role = "sync" if '"is_sync":true' in instruction.attributes else "start"
            found[name] = started[name] = [Event(role, _collective(instruction, where, mesh_shape))]
        elif opcode.endswith(("-update", "-done")) and instruction.operands[0] in started:
            role = "step" if opcode.endswith("-update") else "done"
            found[name] = started[name] = [Event(role, e.collective) for e in started[instruction.operands[0]]]
        elif opcode == "fusion":
            for channel, collective in _of_fusion(program, instruction, mesh_shape).items():
                channels.setdefault(channel, []).append((name, collective))
        elif (start := hlo.begins(instruction, where)) is not None and start.opcode in costs.BODIES:
            kept = program.computations[start.calls].root.arrays
            begun = [Event("start", _fused(*part, kept, mesh_shape)) for part in _inside(program, start)]
            if begun:
                found[name] = started[name] = begun
    for chain in channels.values():
        for index, (name, collective) in enumerate(chain):
            role = "start" if index == 0 else "done" if index == len(chain) - 1 else "step"
            found.setdefault(name, []).append(Event("sync" if len(chain) == 1 else role, collective))
    return found


def _between_slices(where: hlo.Computation, mesh_shape: dict[str, int], slice_D) -> dict[str, list[Event]]:
    """What the runtime of several slices carries over DCN for the program: sends that name a collective."""
    found, started = {}, {}
    for instruction in where.instructions:
        kind = instruction.attribute(r'_xla_megascale_transfer_type="(\w+)"')
        meeting = instruction.attribute(r'_xla_host_transfer_rendezvous="([^"]+)"')
        if instruction.opcode == "send" and kind:
            group = np.unique(slice_D, return_index=True)[1]  # the first device of each slice
            array = hlo.operand_array(where, instruction.operands[0])
            kind = {"ONE_TO_ONE": "collective-permute"}.get(kind, kind.lower().replace("_", "-"))
            payload = array.bytes * (len(group) if kind == "all-gather" else 1)
            axis = "+".join(axes(group[None], mesh_shape)) or "none"
            shown = f"{array.dtype}[{','.join(map(str, array.shape))}] per device"
            moved = Collective(instruction.name, kind, payload, tuple(int(i) for i in group), axis, shown)
            found[instruction.name] = [Event("start", moved)]
            started[meeting] = moved
        elif instruction.opcode == "recv-done":
            recv = where.by_name.get(instruction.operands[0])
            start = started.get(recv.attribute(r'_xla_host_transfer_rendezvous="([^"]+)"')) if recv else None
            if start is not None:
                found[instruction.name] = [Event("done", start)]
    return found


def _inside(program: hlo.Program, instruction: hlo.Instruction):
    """(collective, computation) of all that run within a fusion or an asynchronous call, as often as they do."""
    for part, inner, times in hlo.walk(program, program.computations[instruction.calls]):
        if part.opcode.removesuffix("-start") in KINDS:
            yield from [(part, inner)] * times
        elif part.opcode in costs.BODIES:
            yield from list(_inside(program, part)) * times


def _of_fusion(program: hlo.Program, fusion: hlo.Instruction, mesh_shape: dict[str, int]) -> dict[str, "Collective"]:
    """The collectives in a fusion by channel."""
    found = {}
    for part, inner in _inside(program, fusion):
        channel = part.attribute(r"channel_id=(\d+)") or f"{fusion.name} {part.name}"
        found.setdefault(channel, _fused(part, inner, fusion.arrays, mesh_shape))
    return found


def _fused(part, inner, results: tuple[hlo.Array, ...], mesh_shape) -> Collective:
    """The collective in a fusion or call; an all-reduce of which each device keeps its share is a reduce-scatter."""
    collective = _collective(part, inner, mesh_shape)
    kept = sum(a.bytes for a in results)
    scattered = part.opcode == "all-reduce" and kept * len(collective.group) <= collective.payload
    return dataclasses.replace(collective, kind="reduce-scatter") if scattered else collective


def _collective(instruction: hlo.Instruction, where: hlo.Computation, mesh_shape: dict[str, int]) -> Collective:
    count = int(np.prod(list(mesh_shape.values())))
    kind = instruction.opcode.removesuffix("-start")
    groups = permuted(instruction) if kind == "collective-permute" else replica_groups(instruction.attributes, count)
    operands = [where.by_name[name] for name in instruction.operands if name in where.by_name]
    payload = sum(a.bytes for operand in operands for a in operand.arrays)
    if kind == "all-gather":
        payload *= groups.shape[1]
    largest = max((a for operand in operands for a in operand.arrays), key=lambda a: a.bytes)
    shown = f"{largest.dtype}[{','.join(map(str, largest.shape))}] per device"
    axis = "+".join(axes(groups, mesh_shape)) or "none"
    return Collective(instruction.name, kind, payload, tuple(int(i) for i in groups[0]), axis, shown)


def permuted(instruction: hlo.Instruction) -> np.ndarray:
    """[pairs, 2] of a collective-permute, those that move nothing left out."""
    listed = instruction.attribute(r"source_target_pairs=\{(\{.*?\})\}")
    pairs = np.array([[int(n) for n in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", listed or "")])
    moved = pairs[pairs[:, 0] != pairs[:, 1]] if len(pairs) else pairs
    return moved if len(moved) else np.zeros((1, 1), int)


def replica_groups(attributes: str, count: int) -> np.ndarray:
    """[groups, size] of device positions, from any of XLA's notations: lists, iota tiles, axes of a mesh."""
    tiled = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if tiled:
        return _iota(tiled[2], tiled[3]).reshape(_numbers(tiled[1]))
    meshed = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\)?)\))? \{([^}]*)\}", attributes)
    if meshed:
        return _mesh_groups(*meshed.groups())
    listed = re.search(r"replica_groups=\{((?:\{[\d,]+\},?)+)\}", attributes)
    if listed:
        return np.array([_numbers(group) for group in re.findall(r"\{([\d,]+)\}", listed[1])])
    return np.arange(count)[None]  # {}: all of them


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def _iota(shape: str, transposed: str | None) -> np.ndarray:
    ids = np.arange(np.prod(_numbers(shape))).reshape(_numbers(shape))
    return ids.transpose(_numbers(transposed)) if transposed else ids


def _mesh_groups(sizes: str, device_ids: str | None, chosen: str) -> np.ndarray:
    """Groups along axes of a mesh that XLA made up: mesh['axis_0'=64,'axis_1'=8] {'axis_0'}; 'axis_0':(2)4 is the part
    of 4 that follows the first 2 of an axis."""
    names = re.findall(r"'(\w+)'=(\d+)", sizes)
    ids = np.arange(np.prod([int(size) for _, size in names]))
    if device_ids:
        shape, transposed = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", device_ids).groups()
        ids = _iota(shape, transposed).ravel()
    wanted = {name: part for name, part in re.findall(r"'(\w+)'(?::\((\d+\)\d+))?", chosen)}
    shape, taken = [], []
    for name, size in names:
        parts, picked = [int(size)], 0 if name in wanted else None
        if wanted.get(name):
            before, part = (int(n) for n in wanted[name].split(")"))
            parts, picked = [before, part, int(size) // (before * part)], 1
        taken += [len(shape) + picked] if picked is not None else []
        shape += parts
    rest = [dim for dim in range(len(shape)) if dim not in taken]
    grouped = ids.reshape(shape).transpose(rest + taken)
    return grouped.reshape(-1, int(np.prod([shape[dim] for dim in taken])))


def axes(groups: np.ndarray, mesh_shape: dict[str, int]) -> list[str]:
    """Names of the mesh axes along which the devices of a group differ."""
    coordinates = np.unravel_index(groups, tuple(mesh_shape.values()))
    return [axis for axis, where in zip(mesh_shape, coordinates) if (where != where[:, :1]).any()]


def listed(program: hlo.Program, mesh_shape: dict[str, int], calls: int = 1, slice_D=None) -> list[dict]:
    """Count and bytes a step of every kind of collective and axis, without times."""
    totals, known = {}, {}
    for instruction, where, times in hlo.walk(program):
        if where.name not in known:
            known[where.name] = events(program, where, mesh_shape, slice_D)
        for event in known[where.name].get(instruction.name, ()):
            if event.role not in ("sync", "start"):
                continue
            moved = event.collective
            count, size = totals.get((moved.kind, moved.axis, event.role == "start"), (0, 0.0))
            totals[moved.kind, moved.axis, event.role == "start"] = count + times, size + times * moved.payload
    return [
        {"kind": kind, "axis": axis, "count": n / calls, "bytes": size / calls, "link": None, "overlapped": overlapped}
        for (kind, axis, overlapped), (n, size) in totals.items()
    ]
