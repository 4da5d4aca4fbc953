"""What one instruction of a compiled program costs: FLOPs of its matrix products, bytes it moves to and from HBM."""

import math
import re

from gptjax.planning import hlo

FREE = frozenset(  # name or view what exists
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id opt-barrier iota send recv".split()
)
SLICES = frozenset(("dynamic-slice", "slice", "gather"))
# Those that run a computation which walk() does not open.
BODIES = frozenset(("fusion", "fusion-start", "async-start", "call-start", "custom-call-start"))


def matmul_flops(program: hlo.Program, instruction: hlo.Instruction, where: hlo.Computation) -> float:
    """FLOPs of the matrix products an instruction runs on one device, fused ones and attention kernels included."""
    if instruction.opcode in BODIES and instruction.calls:
        inner = program.computations[instruction.calls]
        return sum(matmul_flops(program, i, inner) for i in inner.instructions)
    if instruction.opcode == "dot":
        return _dot_flops(instruction, where)
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, where)
    if hlo.is_kernel(instruction):
        return _splash_flops(instruction, where)
    if hlo.is_cudnn_attention(instruction):
        return _cudnn_flops(instruction, where)
    if hlo.is_triton_attention(instruction):
        return _triton_flops(instruction, where)
    return 0.0


def _dot_flops(dot: hlo.Instruction, where: hlo.Computation) -> float:
    left = hlo.operand_array(where, dot.operands[0]).shape
    contracted = [int(d) for d in (dot.attribute(r"lhs_contracting_dims=\{([0-9,]*)\}") or "").split(",") if d]
    return 2.0 * math.prod(dot.arrays[0].shape) * math.prod(left[d] for d in contracted)


def _convolution_flops(convolution: hlo.Instruction, where: hlo.Computation) -> float:
    """TPU matmuls are convolutions; batch dimensions may be spatial ones whose window is mostly padding."""
    left, right = (hlo.operand_array(where, name).shape for name in convolution.operands)
    out = convolution.arrays[0].shape
    inputs, kernel, outputs = re.match(r"(\w+)_(\w+)->(\w+)", convolution.attribute(r"dim_labels=([^\s,]+)")).groups()
    pairs = 1
    for label in filter(str.isdigit, outputs):
        window = _window(convolution.attribute(r"window=\{([^}]*)\}") or "", int(label))
        sizes = left[inputs.index(label)], right[kernel.index(label)], out[outputs.index(label)]
        pairs *= _products(*sizes, **window)
    features = out[outputs.index("b")] * out[outputs.index("f")] * right[kernel.index("i")]
    return 2.0 * features * pairs


def _window(text: str, dim: int) -> dict[str, int]:
    fields = dict(part.split("=") for part in text.split())

    def field(name: str, default: str) -> str:
        return fields[name].split("x")[dim] if name in fields else default

    low = field("pad", "0_0").split("_")[0]
    return {
        "stride": int(field("stride", "1")),
        "low": int(low),
        "left_dilation": int(field("lhs_dilate", "1")),
        "right_dilation": int(field("rhs_dilate", "1")),
    }


def _products(size: int, window: int, out: int, *, stride: int, low: int, left_dilation: int, right_dilation: int):
    """(output, window) positions of one spatial dimension that meet an entry of the input and no padding."""
    if window == 1 and stride == 1 and low == 0:
        return out
    limit = (size - 1) * left_dilation
    positions = (o * stride - low + w * right_dilation for o in range(out) for w in range(window))
    return sum(1 for p in positions if 0 <= p <= limit and p % left_dilation == 0)


SPLASH_PRODUCTS = {"_fwd": 2, "_dkv": 4, "_dq": 3}  # matrix products of a block of queries and keys in each kernel


def _splash_flops(kernel: hlo.Instruction, where: hlo.Computation) -> float:
    """Of a splash attention kernel: the blocks its mask leaves, a causal triangle or a band of block columns."""
    part = next((p for p in SPLASH_PRODUCTS if f"splash_mha{p}" in kernel.name + kernel.attributes), None)
    shapes = [hlo.operand_array(where, name) for name in kernel.operands]
    floating = [a.shape for a in shapes if len(a.shape) in (3, 4) and a.dtype in ("bf16", "f32")]  # one row: no batch
    queries, keys = (floating + [None, None])[:2]
    if part is None or keys is None:
        return 0.0
    grid = next((a.shape for a in shapes if a.dtype == "s8"), (1, 1, 1))
    rows, columns = grid[-2:]
    fraction = sum(min(row + 1, columns) for row in range(rows)) / rows**2 if columns > 1 else 1.0
    return 2.0 * SPLASH_PRODUCTS[part] * math.prod(queries) * keys[-2] * fraction


CUDNN_BLOCK = (
    128  # queries and keys that cuDNN's flash attention takes at a time: what a mask hides of whole blocks is left out
)


def _cudnn_flops(kernel: hlo.Instruction, where: hlo.Computation) -> float:
    """Of cuDNN's attention: two products of a block of queries and keys forward, five backward, in the blocks that a causal
    mask and a window leave. Operands are [B, L, H, K] and [B, M, G, K]."""
    queries, keys = (hlo.operand_array(where, name).shape for name in kernel.operands[:2])
    blocks = -(-keys[1] // CUDNN_BLOCK)
    causal = '"mask_type": "CAUSAL"' in kernel.attributes
    window = int(kernel.attribute(r'"sliding_window_length": (\d+)') or 0)
    furthest = (
        min(blocks, -(-window // CUDNN_BLOCK) + 1) if window else blocks
    )  # blocks of keys that a block of queries sees
    seen = sum(min(row + 1 if causal else blocks, furthest) for row in range(blocks)) / blocks**2
    products = 5 if "Backward" in kernel.attribute(r'custom_call_target="([^"]*)"') else 2
    return 2.0 * products * math.prod(queries) * keys[1] * seen


TRITON_PRODUCTS = {"flash_forward": 2, "flash_backward_queries": 3, "flash_backward_keys": 4}


def _triton_flops(kernel: hlo.Instruction, where: hlo.Computation) -> float:
    """Of a kernel of models/triton_attention.py: the tiles that a causal mask and a window leave. Of a sequence that is split, each
    device has an early and a late part, whose tiles see half of the keys between them."""
    part, window = re.search(
        r"\b(flash_(?:forward|backward_queries|backward_keys))(?:_window(\d+))?", kernel.attributes
    ).groups()
    shapes = [hlo.operand_array(where, name).shape for name in kernel.operands]
    queries, keys = [shape for shape in shapes if len(shape) == 4][:2]
    tile = math.gcd(math.gcd(queries[1], keys[1]), 64 if part == "flash_forward" else 32)
    tiles = keys[1] // tile
    furthest = min(tiles, -(-int(window) // tile) + 1) if window else tiles
    seen = sum(min(row + 1, furthest) for row in range(tiles)) / tiles**2
    return 2.0 * TRITON_PRODUCTS[part] * math.prod(queries) * keys[1] * seen


def hbm_bytes(program: hlo.Program, instruction: hlo.Instruction, where: hlo.Computation) -> float:
    """Bytes an instruction reads from HBM and writes to it. What a fusion slices counts as the slice."""
    if instruction.opcode in FREE or instruction.opcode.endswith(("-update", "-done")):
        return 0
    if instruction.opcode == "custom-call" and "AllocateBuffer" in instruction.attributes:
        return 0
    written = sum(a.hbm_bytes for a in instruction.arrays)
    read = [sum(a.hbm_bytes for a in where.by_name[name].arrays) for name in instruction.operands]
    if instruction.opcode in SLICES:
        return written + min(read[0], sum(a.tiled_bytes for a in instruction.arrays))
    if instruction.opcode == "dynamic-update-slice":
        return read[1] + min(written, hlo.operand_array(where, instruction.operands[1]).tiled_bytes)
    if instruction.opcode != "fusion":
        return written + sum(read)
    inner = program.computations[instruction.calls]
    used = sum(min(size, _read_of(program, inner, index)) for index, size in enumerate(read))
    return _written_of(inner, instruction.arrays) + used


def _read_of(program: hlo.Program, fused: hlo.Computation, index: int) -> float:
    """Bytes a fused computation reads of a parameter."""
    parameter = fused.parameters.get(index)
    if parameter is None:
        return 0
    whole = parameter.arrays[0].tiled_bytes if parameter.arrays else 0
    return min(_read_by_users(program, fused, parameter.name, whole), whole)


def _read_by_users(program: hlo.Program, fused: hlo.Computation, name: str, whole: float) -> float:
    """Bytes that the users of a parameter, or of another view of it, read."""
    total = 0.0
    for user in fused.users.get(name, ()):
        if user.opcode in SLICES and user.operands[0] == name:
            total += user.arrays[0].tiled_bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            total += 0  # updated in place
        elif user.opcode == "bitcast" and not user.root:
            total += _read_by_users(program, fused, user.name, whole)
        elif user.opcode == "fusion" and _is_view(user, name):
            total += _read_by_users(program, fused, user.name, whole)
        elif user.opcode == "fusion":
            inner = program.computations[user.calls]
            total += sum(_read_of(program, inner, i) for i, operand in enumerate(user.operands) if operand == name)
        elif user.opcode != "tuple":
            return whole
    return total


def _is_view(fusion: hlo.Instruction, name: str) -> bool:
    """Whether a fusion within a fusion is its operand in other tiles, as of int8: its place is the operand's own."""
    aliased = fusion.attribute(r"output_to_operand_aliasing=\{\{\}: \((\d+), \{\}\)")
    return aliased is not None and len(fusion.arrays) == 1 and fusion.operands[int(aliased)] == name


def _written_of(fused: hlo.Computation, results: tuple[hlo.Array, ...]) -> float:
    """Bytes of HBM that a fused computation writes: of an array updated in place, the update."""
    roots = [fused.by_name[name] for name in fused.root.operands] if fused.root.opcode == "tuple" else [fused.root]
    total = 0.0
    for root, result in zip(roots, results):
        while root.opcode == "bitcast":
            root = fused.by_name[root.operands[0]]
        if root.opcode == "dynamic-update-slice":
            total += min(result.hbm_bytes, hlo.operand_array(fused, root.operands[1]).tiled_bytes)
        else:
            total += result.hbm_bytes
    return total
