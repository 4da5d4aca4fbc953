"""How long a step takes at best: a program's schedule, played on a chip's published rates.

Every instruction takes max(matmul FLOPs / peak, HBM bytes / bandwidth); nothing is as slow as its kernel may be, so
this is a roofline, not a forecast. A collective that holds up the schedule adds its time. One that runs beside it
begins when its links are free and holds up the schedule only where its end is waited for and has not come. Whatever
else XLA starts and waits for apart (`X-start`, `X-done`) runs beside the schedule likewise, one after the other: copies
and slices brought from HBM to the chip's own memory or back, and what a SparseCore does.
"""

import dataclasses
import typing

import numpy as np

from gptjax.planning import collectives, costs, hlo, topology

ASSUMPTION = "roofline: matmuls at {:.0%} of the published peak, HBM and links at their published rates"


@dataclasses.dataclass
class Timeline:
    """Seconds of a part of a schedule, and what they went to."""

    seconds: float = 0.0
    flops: float = 0.0  # of matmuls, on one device
    hbm_bytes: float = 0.0
    matmul_seconds: float = 0.0  # of instructions bound by FLOPs
    memory_seconds: float = 0.0  # of instructions bound by HBM
    exposed_seconds: float = 0.0  # waiting for collectives
    copy_seconds: float = 0.0  # waiting for copies
    traffic: dict = dataclasses.field(default_factory=dict)  # Traffic by (kind, axis, link, overlapped)

    def add(self, other: "Timeline", times: int) -> None:
        for name in ("seconds", "flops", "hbm_bytes", "matmul_seconds", "memory_seconds", "exposed_seconds"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        self.copy_seconds += times * other.copy_seconds
        for key, moved in other.traffic.items():
            self.traffic.setdefault(key, Traffic()).add(moved, times)


@dataclasses.dataclass
class Traffic:
    count: int = 0
    bytes: float = 0.0  # of the whole arrays
    seconds: float = 0.0  # on the links
    exposed_seconds: float = 0.0  # of those, with nothing else running
    largest: tuple[float, str] = (0.0, "")  # seconds of the worst in a step, and its array

    def add(self, other: "Traffic", times: int = 1) -> None:
        self.count += times * other.count
        self.bytes += times * other.bytes
        self.seconds += times * other.seconds
        self.exposed_seconds += times * other.exposed_seconds
        self.largest = max(self.largest, (other.largest[0] * times, other.largest[1]))


def play(
    program: hlo.Program,
    machine: topology.Topology,
    mesh_shape: dict,
    matmul_fraction: float = 1.0,
    *,
    calls_loop: int | None = None,
    branch: typing.Callable = max,
) -> Timeline:
    """The Timeline of one run of a program on a machine whose devices are in the mesh's order.

    calls_loop: see `hlo.trip_count`. branch: max or min, which of several branches runs: the slowest or the fastest.
    """
    player = _Player(program, machine, mesh_shape, matmul_fraction, calls_loop, branch)
    return player.play(program.entry)


@dataclasses.dataclass
class _Beside:
    """Seconds at which what runs beside a schedule ends: the last of it, and each by its instruction."""

    last: float = 0.0
    ends: dict = dataclasses.field(default_factory=dict)

    def begin(self, line: Timeline, instruction: hlo.Instruction, work: Timeline) -> None:
        self.last = self.ends[instruction.name] = max(self.last, line.seconds) + work.seconds
        line.flops, line.hbm_bytes = line.flops + work.flops, line.hbm_bytes + work.hbm_bytes

    def wait(self, line: Timeline, instruction: hlo.Instruction) -> None:
        """Holds up the schedule where an X-done has to wait; an X-update only hands the name on."""
        end = self.ends.get(instruction.operands[0], 0.0)
        if instruction.opcode.endswith("-update"):
            self.ends[instruction.name] = end
            return
        wait = max(0.0, end - line.seconds)
        line.seconds, line.copy_seconds = line.seconds + wait, line.copy_seconds + wait


class _Player:
    def __init__(self, program, machine, mesh_shape, matmul_fraction, calls_loop, branch):
        chip = machine.chip
        self.calls_loop, self.branch = calls_loop, branch
        self.program, self.machine, self.mesh_shape = program, machine, mesh_shape
        self.peak = chip.flops_per_second / chip.devices_per_chip * matmul_fraction
        self.bandwidth = chip.hbm_bandwidth / chip.devices_per_chip

    def play(self, where: hlo.Computation) -> Timeline:
        line = Timeline()
        events = collectives.events(self.program, where, self.mesh_shape, self.machine.slice_D)
        free, arrival, beside = {}, {}, _Beside()
        for instruction in where.instructions:
            of_links, opcode = events.get(instruction.name), instruction.opcode
            if of_links is not None:
                for event in of_links:
                    self._communicate(line, event, free, arrival)
                if any(event.role == "step" for event in of_links):
                    self._compute(line, instruction, where)
            elif opcode in ("while", "call", "conditional"):
                self._inner(line, instruction, where)
            elif (start := hlo.begins(instruction, where)) is not None:
                beside.begin(line, instruction, self._started(start, where))
            elif opcode.endswith("-start"):
                continue  # its work begins later
            elif opcode.endswith(("-update", "-done")):
                beside.wait(line, instruction)
            else:
                self._compute(line, instruction, where)
        for key, end in arrival.values():  # never waited for here: the schedule's end waits
            self._wait(line, key, end)
        return line

    def _started(self, instruction, where) -> Timeline:
        """What an asynchronous operation does that is no collective."""
        if instruction.opcode in ("async-start", "call-start", "custom-call-start"):
            return self.play(self.program.computations[instruction.calls])
        line = Timeline()
        self._compute(line, hlo.begun(instruction, where), where)
        return line

    def _inner(self, line: Timeline, instruction, where) -> None:
        if instruction.opcode == "while":
            body = self.program.computations[instruction.attribute(r"body=%([^\s,]+)")]
            line.add(self.play(body), hlo.trip_count(self.program, instruction, where, self.calls_loop))
        elif instruction.opcode == "call":
            line.add(self.play(self.program.computations[instruction.calls]), 1)
        else:
            played = [self.play(self.program.computations[name]) for name in hlo.branches(instruction)]
            line.add(self.branch(played, key=lambda line: line.seconds), 1)

    def _compute(self, line: Timeline, instruction, where) -> None:
        flops = costs.matmul_flops(self.program, instruction, where)
        size = costs.hbm_bytes(self.program, instruction, where)
        at_peak, at_bandwidth = flops / self.peak, size / self.bandwidth
        line.flops, line.hbm_bytes = line.flops + flops, line.hbm_bytes + size
        line.seconds += max(at_peak, at_bandwidth)
        if at_peak >= at_bandwidth:
            line.matmul_seconds += at_peak
        else:
            line.memory_seconds += at_bandwidth

    def _communicate(self, line: Timeline, event, free: dict, arrival: dict) -> None:
        moved = event.collective
        if event.role == "step":
            return
        if event.role == "done":
            if moved.name in arrival:
                self._wait(line, *arrival.pop(moved.name))
            return
        group = np.array(moved.group)
        near, far = topology.seconds(self.machine, moved.kind, moved.payload, group)
        way = topology.path(self.machine, group)
        links = [("near", dim) for dim in way.dims] + [("far", 0)] * (way.slices > 1)
        link = self.machine.far_link if way.slices > 1 else self.machine.local_link
        key = (moved.kind, moved.axis, link, event.role == "start")
        begin = max([line.seconds, *(free.get(each, 0.0) for each in links)])
        end = begin + near + far
        free.update(dict.fromkeys(links, end))
        taken = Traffic(1, moved.payload, near + far, 0.0, (near + far, moved.shown))
        line.traffic.setdefault(key, Traffic()).add(taken)
        if event.role == "sync":
            self._wait(line, key, end)
        else:
            arrival[moved.name] = (key, end)

    def _wait(self, line: Timeline, key: tuple, end: float) -> None:
        wait = max(0.0, end - line.seconds)
        line.seconds, line.exposed_seconds = line.seconds + wait, line.exposed_seconds + wait
        line.traffic[key].exposed_seconds += wait
