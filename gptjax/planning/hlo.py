"""A compiled program, read from its text: instructions in scheduled order, and how often loops run them.

XLA's cost analysis counts the body of a loop once; here every loop has its trip count, taken from the
`known_trip_count` that XLA leaves or from the constant that the loop's condition compares its counter with. What is
read is what runs: the text of a compiled program is scheduled, partitioned (shapes are those of one device) and fused.
"""

import dataclasses
import functools
import math
import re

from gptjax.errors import UserError

ITEM_BYTES = {"pred": 1, "bf16": 2, "c64": 8, "c128": 16, "token": 0, "opaque": 0}
SEMAPHORES = 2  # the memory space in which asynchronous operations say how far they are
ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9][a-z]*)?)\[([0-9,]*)\](\{[^}]*\})?")
CLOSING = re.compile(r"\}(, execution_thread=\"[^\"]*\")?")  # of a computation; on TPU 7x some are a SparseCore's


@dataclasses.dataclass(frozen=True)
class Array:
    dtype: str
    shape: tuple[int, ...]
    space: int = 0  # memory space: 0 HBM, 1 VMEM, 2 semaphores, 5 the host's memory
    tiled: tuple[int, ...] | None = None  # the shape filled up to whole tiles; None: as it is

    @property
    def bytes(self) -> float:
        """Of its entries: what is sent of it."""
        return math.prod(self.shape) * item_bytes(self.dtype)

    @property
    def tiled_bytes(self) -> float:
        """Of the tiles it lies in, which are what a TPU reads and writes: heads of 64 fill half of 128 lanes."""
        return math.prod(self.shape if self.tiled is None else self.tiled) * item_bytes(self.dtype)

    @property
    def hbm_bytes(self) -> float:
        return self.tiled_bytes if self.space == 0 else 0


def item_bytes(dtype: str) -> float:
    """Bytes of an entry, from the digits of the type's name where it is not in the table: f32, s8, f8e4m3fn."""
    if dtype in ITEM_BYTES:
        return ITEM_BYTES[dtype]
    digits = re.match(r"[a-z]+([0-9]+)", dtype)
    return int(digits[1]) / 8 if digits else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    arrays: tuple[Array, ...]  # the result; a tuple's parts
    operands: tuple[str, ...]
    inside: str  # what stands between the parentheses
    attributes: str
    root: bool

    @functools.cached_property
    def calls(self) -> str | None:
        """The computation a fusion or call runs."""
        found = re.search(r"(?:calls|to_apply|called_computations)=\{?%([^\s,}]+)", self.attributes)
        return found and found[1]

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return found and found[1]


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    instructions: tuple[Instruction, ...]  # as scheduled

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(i.inside): i for i in self.instructions if i.opcode == "parameter"}

    @functools.cached_property
    def root(self) -> Instruction:
        return next((i for i in self.instructions if i.root), self.instructions[-1])

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        users = {}
        for instruction in self.instructions:
            for operand in set(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users


@dataclasses.dataclass(frozen=True)
class Program:
    computations: dict[str, Computation]
    entry: Computation
    scheduled: bool


def parse(text: str) -> Program:
    """The program of `compiled.as_text()`."""
    computations, entry, name, lines = {}, None, None, []
    for line in _logical_lines(text):
        opening = re.match(r"(ENTRY )?%?([^\s(]+) \(.*\{$", line)
        if opening and not line.startswith(" "):
            name, lines = opening[2], []
            entry = name if opening[1] else entry
        elif CLOSING.fullmatch(line) and name is not None:
            computations[name] = Computation(name, tuple(lines))
            name = None
        elif name is not None and " = " in line:
            lines.append(_instruction(line))
    if entry is None:
        raise UserError("the compiled program has no ENTRY computation: not the text of an HLO module.")
    return Program(computations, computations[entry], "is_scheduled=true" in text[:4096])


def _logical_lines(text: str):
    """Lines, with those that carry a kernel's metadata over several lines joined."""
    pending = None
    for line in text.splitlines():
        fresh = line.startswith(("  %", "  ROOT ", "%", "ENTRY ", "HloModule")) or CLOSING.fullmatch(line)
        if fresh and pending is not None:
            yield pending
            pending = None
        if CLOSING.fullmatch(line):
            yield line
        else:
            pending = line if fresh or pending is None else f"{pending} {line}"
    if pending is not None:
        yield pending


def _instruction(line: str) -> Instruction:
    left, _, right = line.strip().partition(" = ")
    root, name = left.startswith("ROOT "), left.removeprefix("ROOT ").lstrip("%")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    kind, rest = right[:end], right[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    operands = tuple(re.findall(r"%([^\s,()]+)", inside))
    return Instruction(name, rest[:opening], arrays(kind), operands, inside, rest[closing + 1 :], root)


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis at `opening` closes."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


@functools.lru_cache(maxsize=4096)
def arrays(kind: str) -> tuple[Array, ...]:
    """The arrays of a type such as f32[8,16]{1,0:T(8,128)S(1)}, or of a tuple of them."""
    return tuple(_array(*found) for found in ARRAY.findall(kind))


def _array(dtype: str, sizes: str, layout: str) -> Array:
    shape, space = _integers(sizes), re.search(r"S\((\d+)\)", layout)
    return Array(dtype, shape, int(space[1]) if space else 0, _tiled(shape, layout))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def _tiled(shape: tuple[int, ...], layout: str) -> tuple[int, ...] | None:
    """A shape filled up to whole tiles, from a layout such as {1,0:T(8,128)(2,1)}: dimensions from the minor one on, and
    the sizes of a tile, the minor one last."""
    found = re.match(r"\{([\d,]*):T\(([\d,]+)\)", layout)
    if found is None:
        return None
    tiled = list(shape)
    for dim, size in zip(_integers(found[1]), reversed(_integers(found[2]))):
        tiled[dim] = -(-shape[dim] // size) * size
    return tuple(tiled)


def trip_count(program: Program, loop: Instruction, where: Computation, calls_loop: int | None = None) -> int:
    """How often a while loop runs. Raises UserError if the text does not say: no count is guessed.

    calls_loop: of a loop of the whole program, such as decode's over tokens, which ends when its arguments say so."""
    known = loop.attribute(r'known_trip_count[^0-9]*"?n"?:"?(\d+)')
    if known:
        return int(known)
    condition = program.computations[loop.attribute(r"condition=%([^\s,]+)")]
    index, limit = _compared(program, condition, loop, where)
    first = _initial(where, loop, index)
    stride = _stride(program, loop, index)
    unknown = None in (limit, first, stride) or stride <= 0
    if unknown and calls_loop is not None and where is program.entry:
        return calls_loop
    if unknown:
        raise UserError(f"the trip count of the loop {loop.name} is not in the compiled program: no costs add up.")
    return max(0, -(-(limit - first) // stride))


def _compared(program: Program, condition: Computation, loop: Instruction, where: Computation):
    """(index of the loop's counter in its carry, the bound it stays below); None for what cannot be told."""
    compare, names = condition.root, condition.root.operands
    if compare.opcode == "fusion":  # what is compared are its parameters, or constants within
        inner = program.computations[compare.calls]
        compare = inner.root
        passed = {inner.parameters[i].name: name for i, name in enumerate(condition.root.operands)}
        names = [passed.get(name, name) for name in compare.operands]
        found = [condition.by_name.get(name, inner.by_name.get(name)) for name in names]
    else:
        found = [condition.by_name[name] for name in names]
    direction = compare.attribute(r"direction=(\w+)")
    if direction not in ("LT", "LE") or found[0].opcode != "get-tuple-element":
        return None, None
    index = int(found[0].attribute(r"index=(\d+)"))
    if found[1].opcode == "get-tuple-element":
        limit = _initial(where, loop, int(found[1].attribute(r"index=(\d+)")))
    else:
        limit = _integer(found[1])
    return index, None if limit is None else limit + (direction == "LE")


def _integer(instruction: Instruction | None) -> int | None:
    is_constant = instruction is not None and instruction.opcode == "constant"
    return int(instruction.inside) if is_constant and re.fullmatch(r"-?\d+", instruction.inside) else None


def _initial(where: Computation, loop: Instruction, index: int | None) -> int | None:
    """The integer that a part of a loop's carry starts with."""
    source = where.by_name[loop.operands[0]]
    if index is None or source.opcode != "tuple":
        return None
    start = where.by_name[source.operands[index]]
    while start.opcode in ("copy", "bitcast", "copy-done", "copy-start") and start.operands:
        start = where.by_name[start.operands[0]]
    return _integer(start)


def _stride(program: Program, loop: Instruction, index: int | None) -> int | None:
    """What a loop's body adds to its counter: more than 1 where XLA unrolled it."""
    body = program.computations[loop.attribute(r"body=%([^\s,]+)")]
    if index is None or body.root.opcode != "tuple":
        return None
    return _added(program, body, body.root.operands[index], index, {})


def _added(program: Program, body: Computation, name: str, index: int, bound: dict) -> int | None:
    """The sum of the constants between a loop's counter and a value of its body. bound: a fusion's parameters."""
    part = body.by_name[name]
    if part.opcode == "parameter" and name in bound:
        outer, outer_name, outer_bound = bound[name]
        return _added(program, outer, outer_name, index, outer_bound)
    if part.opcode == "get-tuple-element":
        return 0 if part.attribute(r"index=(\d+)") == str(index) else None
    if part.opcode in ("copy", "bitcast"):
        return _added(program, body, part.operands[0], index, bound)
    if part.opcode == "fusion":
        inner = program.computations[part.calls]
        passed = {inner.parameters[i].name: (body, outer, bound) for i, outer in enumerate(part.operands)}
        return _added(program, inner, inner.root.name, index, passed)
    if part.opcode != "add":
        return None
    values = [_constant_of(body, operand, bound) for operand in part.operands]
    if None not in values or values == [None, None]:
        return None
    counter = part.operands[values.index(None)]
    before = _added(program, body, counter, index, bound)
    return None if before is None else before + next(v for v in values if v is not None)


def _constant_of(body: Computation, name: str, bound: dict) -> int | None:
    part = body.by_name[name]
    if part.opcode == "parameter" and name in bound:
        outer, outer_name, outer_bound = bound[name]
        return _constant_of(outer, outer_name, outer_bound)
    return _integer(part)


def is_kernel(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in instruction.attributes


def is_cudnn_attention(instruction: Instruction) -> bool:
    return instruction.opcode == "custom-call" and 'custom_call_target="__cudnn$fmha' in instruction.attributes


def is_triton_attention(instruction: Instruction) -> bool:
    """A kernel of models/triton_attention.py."""
    return instruction.opcode == "custom-call" and bool(re.search(r'op_name="[^"]*\bflash_', instruction.attributes))


def is_attention(instruction: Instruction) -> bool:
    """Whether it is a kernel of attention, of whatever platform."""
    return is_kernel(instruction) or is_cudnn_attention(instruction) or is_triton_attention(instruction)


def begun(start: Instruction, where: Computation) -> Instruction:
    """The operation that an asynchronous one (copy-start, slice-start, fusion-start) begins, as if it stood there.

    The tuple that X-start returns holds its operands, the results and semaphores; copy-start's the result first.
    """
    opcode = start.opcode.removesuffix("-start")
    before = sum(len(where.by_name[name].arrays) for name in start.operands)
    results = start.arrays[:1] if opcode == "copy" else start.arrays[before:]
    return dataclasses.replace(start, opcode=opcode, arrays=tuple(a for a in results if a.space != SEMAPHORES))


def begins(instruction: Instruction, where: Computation) -> Instruction | None:
    """The X-start whose work this instruction sets going; None where it sets none going.

    That is the X-start itself. One without operands, as libtpu 0.0.52 prints a SparseCore's, only makes ready: its work
    begins at the X-update that hands the operands over.
    """
    if instruction.opcode.endswith("-update") and len(instruction.operands) > 1:
        return where.by_name[instruction.operands[0]]
    return instruction if instruction.opcode.endswith("-start") and instruction.operands else None


def operand_array(where: Computation, name: str) -> Array:
    found = where.by_name[name].arrays
    return found[0] if found else Array("f32", ())


def walk(program: Program, where: Computation | None = None, times: int = 1):
    """(instruction, its computation, how often it runs in a step) of all that is scheduled, loops opened up."""
    where = where or program.entry
    for instruction in where.instructions:
        yield instruction, where, times
        if instruction.opcode == "while":
            body = program.computations[instruction.attribute(r"body=%([^\s,]+)")]
            yield from walk(program, body, times * trip_count(program, instruction, where))
        elif instruction.opcode == "call":
            yield from walk(program, program.computations[instruction.calls], times)
        elif instruction.opcode == "conditional":
            for name in branches(instruction):
                yield from walk(program, program.computations[name], times)


def branches(conditional: Instruction) -> list[str]:
    listed = conditional.attribute(r"branch_computations=\{([^}]*)\}")
    names = listed or ",".join(re.findall(r"(?:true|false)_computation=(%[^\s,]+)", conditional.attributes))
    return [name.strip().lstrip("%") for name in names.split(",") if name.strip()]


def buffer_shapes(program: Program) -> dict[Array, int]:
    """Every array that a scheduled instruction leaves in memory, and how many instructions do."""
    shapes = {}
    for instruction, _, _ in walk(program):
        for array in instruction.arrays if instruction.opcode not in ("tuple", "get-tuple-element", "while") else ():
            shapes[array] = shapes.get(array, 0) + 1
    return shapes
