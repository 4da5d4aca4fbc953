"""Reading compiled programs: hand-written ones with known numbers, and what libtpu compiles for a small slice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gptjax.errors import UserError
from gptjax.planning import costs, hlo, topology

pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")  # no TPU to read it for

LOOP = """HloModule m, is_scheduled=true

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[]{:T(128)}, f32[8,16]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %one = s32[] constant(STRIDE)
  %next = s32[] add(%i, %one)
  %w = f32[16,16]{1,0:T(8,128)S(1)} constant({...})
  %y = f32[8,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[8,16]{1,0}) tuple(%next, %y)
}

%condition (q: (s32[], f32[8,16])) -> pred[] {
  %q = (s32[], f32[8,16]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %n = s32[] constant(12)
  ROOT %less = pred[] compare(%j, %n), direction=LT
}

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %zero = s32[] constant(START)
  %start = (s32[], f32[8,16]{1,0}) tuple(%zero, %a)
  %loop = (s32[], f32[8,16]{1,0}) while(%start), condition=%condition, body=%body
  ROOT %out = f32[8,16]{1,0} get-tuple-element(%loop), index=1
}
"""


def loop_program(start: int = 0, stride: int = 1) -> hlo.Program:
    return hlo.parse(LOOP.replace("START", str(start)).replace("STRIDE", str(stride)))


def total_flops(program: hlo.Program) -> float:
    return sum(costs.matmul_flops(program, i, where) * times for i, where, times in hlo.walk(program))


@pytest.mark.parametrize("start, stride, trips", [(0, 1, 12), (3, 1, 9), (0, 2, 6), (1, 5, 3)])
def test_a_loop_runs_from_its_start_to_its_bound_in_strides(start, stride, trips):
    program = loop_program(start, stride)
    assert total_flops(program) == trips * 2 * 8 * 16 * 16


def test_a_loop_whose_bound_is_not_in_the_text_is_refused_and_not_guessed():
    program = hlo.parse(LOOP.replace("%n = s32[] constant(12)", "%n = s32[] custom-call()").replace("START", "0"))
    with pytest.raises(UserError, match="trip count of the loop loop"):
        total_flops(program)


def test_a_count_that_xla_states_is_taken():
    known = 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    assert total_flops(hlo.parse(LOOP.replace("body=%body", known))) == 7 * 2 * 8 * 16 * 16


def test_memory_inside_the_chip_is_not_hbm():
    program = loop_program()
    dot = program.computations["body"].by_name["y"]
    assert costs.hbm_bytes(program, dot, program.computations["body"]) == 2 * 8 * 16 * 4  # x and y; w lies in S(1)


@pytest.mark.parametrize(
    "kind, entries, tiled",
    [
        ("bf16[8,12,2048,64]{3,2,1,0:T(8,128)(2,1)}", 8 * 12 * 2048 * 64, 8 * 12 * 2048 * 128),
        ("bf16[8,12,2048,64]{2,3,1,0:T(8,128)(2,1)}", 8 * 12 * 2048 * 64, 8 * 12 * 2048 * 64),
        ("f32[16,3,100]{2,0,1:T(8,128)}", 16 * 3 * 100, 16 * 3 * 128),
        ("bf16[3,5,130]{2,1,0:T(16,128)(2,1)S(1)}", 3 * 5 * 130, 3 * 16 * 256),
        ("f32[1000]{0:T(1024)}", 1000, 1024),
        ("f32[3,100]{1,0}", 300, 300),
        ("s32[]{:T(128)}", 1, 1),
    ],
)
def test_an_array_takes_whole_tiles(kind, entries, tiled):
    [array] = hlo.arrays(kind)
    size = hlo.item_bytes(array.dtype)
    assert array.bytes == entries * size and array.tiled_bytes == tiled * size
    assert array.hbm_bytes == (0 if "S(1)" in kind else array.tiled_bytes)


FUSED = """HloModule m, is_scheduled=true

%fused (p0: f32[96,8,128], p1: s32[], p2: f32[8,128]) -> f32[96,8,128] {
  %p0 = f32[96,8,128]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = f32[8,128]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %old = f32[1,8,128]{2,1,0} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,8,128}
  %new = f32[1,8,128]{2,1,0} reshape(%p2)
  %sum = f32[1,8,128]{2,1,0} add(%old, %new)
  ROOT %update = f32[96,8,128]{2,1,0} dynamic-update-slice(%p0, %sum, %p1, %zero, %zero)
}

ENTRY %main (a: f32[96,8,128], i: s32[], b: f32[8,128]) -> f32[96,8,128] {
  %a = f32[96,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %b = f32[8,128]{1,0} parameter(2)
  ROOT %f = f32[96,8,128]{2,1,0} fusion(%a, %i, %b), kind=kLoop, calls=%fused
}
"""


def test_a_fusion_that_updates_one_layer_of_a_stack_moves_that_layer_only():
    program = hlo.parse(FUSED)
    layer = 8 * 128 * 4
    assert costs.hbm_bytes(program, program.entry.root, program.entry) == 3 * layer + 4  # read, added, written; index


def test_a_stack_that_a_fusion_names_anew_before_it_takes_a_layer_is_read_for_that_layer_only():
    """XLA:GPU does so with stacks that lie in another order."""
    renamed = FUSED.replace("dynamic-slice(%p0,", "dynamic-slice(%q,").replace(
        "  %zero", "  %q = f32[96,8,128]{2,1,0} bitcast(%p0)\n  %zero"
    )
    program = hlo.parse(renamed)
    assert costs.hbm_bytes(program, program.entry.root, program.entry) == 3 * 8 * 128 * 4 + 4
    whole = hlo.parse(renamed.replace("f32[1,8,128]{2,1,0} dynamic-slice", "f32[96,8,128]{2,1,0} negate"))
    assert costs.hbm_bytes(whole, whole.entry.root, whole.entry) >= 96 * 8 * 128 * 4, "a name alone hides no reading"


@pytest.mark.parametrize(
    "window, labels, left, right, out, flops",
    [
        ("", "bf_io->bf", "[6,10]", "[10,14]", "[6,14]", 2 * 6 * 10 * 14),
        ("window={size=8}, ", "0fb_0io->bf0", "[8,32,6]", "[8,32,14]", "[6,14,1]", 2 * 8 * 32 * 6 * 14),
        (
            "window={size=1x12 pad=0_0x11_11 rhs_reversal=0x1}, ",
            "0bf1_1oi0->0b1f",
            "[8,20,64,1]",
            "[12,24,64,1]",
            "[8,20,12,24]",
            2 * 8 * 20 * 64 * 12 * 24,
        ),
    ],
)
def test_a_convolution_counts_the_products_that_meet_no_padding(window, labels, left, right, out, flops):
    text = (
        "HloModule m\n\nENTRY %main (a: f32[1], b: f32[1]) -> f32[1] {\n"
        f"  %a = f32{left}{{0}} parameter(0)\n  %b = f32{right}{{0}} parameter(1)\n"
        f"  ROOT %c = f32{out}{{0}} convolution(%a, %b), {window}dim_labels={labels}\n}}\n"
    )
    assert total_flops(hlo.parse(text)) == flops


def splash(name: str, grid: str, rows: str = "2,") -> hlo.Program:
    q = f"bf16[{rows}3,2048,128]{{3,2,1,0}}"
    return hlo.parse(
        f"HloModule m\n\nENTRY %main (m: s8[1], q: f32[1]) -> f32[1] {{\n  %m = s8[1,{grid}]{{2,1,0}} parameter(0)\n"
        f"  %q = {q} parameter(1)\n  %k = {q} parameter(2)\n"
        f'  ROOT %{name}.1 = {q} custom-call(%m, %q, %k), custom_call_target="tpu_custom_call", kernel_metadata={{\n'
        '{"x": 1}}, metadata={}\n}\n'
    )


def test_a_splash_kernel_counts_the_blocks_of_its_mask():
    whole = 2 * 2 * 3 * 2048 * 2048 * 128  # of one product of all queries and keys
    assert total_flops(splash("splash_mha_fwd", "4,4")) == 2 * whole * 10 / 16  # a triangle of 4 x 4 blocks
    assert total_flops(splash("splash_mha_dkv", "4,4")) == 4 * whole * 10 / 16
    assert total_flops(splash("splash_mha_dq", "4,2")) == 3 * whole * 7 / 16  # a band two blocks wide
    assert total_flops(splash("splash_mha_fwd", "4,4", rows="")) == whole * 10 / 16  # a row alone has no batch
    assert hlo.is_kernel(splash("splash_mha_fwd", "4,4").entry.root)


def test_text_that_is_no_program_is_refused():
    with pytest.raises(UserError, match="ENTRY"):
        hlo.parse("HloModule empty\n")


@pytest.fixture(scope="module")
def four_chips():
    """A mesh fsdp=2 x tensor=2 of a v5e:2x2 slice that is not here."""
    machine = topology.describe("v5e:2x2")
    return Mesh(np.array(machine.devices).reshape(2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)


def test_matmuls_of_a_compiled_scan_are_counted_as_often_as_they_run(four_chips):
    def layers(x, w):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=7)[0]

    whole = NamedSharding(four_chips, PartitionSpec())
    x, w = (jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=whole) for shape in ((256, 512), (512, 512)))
    compiled = jax.jit(layers).lower(x, w).compile()
    program = hlo.parse(compiled.as_text())
    assert program.scheduled
    assert total_flops(program) == 7 * 2 * 256 * 512 * 512


def test_batched_products_are_counted_once_for_each_of_the_batch(four_chips):
    whole = NamedSharding(four_chips, PartitionSpec())
    q, k = (jax.ShapeDtypeStruct((6, 256, 128), jnp.bfloat16, sharding=whole) for _ in range(2))
    compiled = jax.jit(lambda q, k: jnp.einsum("hlk,hmk->hlm", q, k)).lower(q, k).compile()
    assert total_flops(hlo.parse(compiled.as_text())) == 2 * 6 * 256 * 256 * 128


BYTES = """HloModule m, is_scheduled=true

%tiles (w: s8[6,128,2048]) -> s8[6,128,2048] {
  %w = s8[6,128,2048]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %c = s8[6,128,2048]{2,1,0:T(8,128)(4,1)} copy(%w)
}

%layer (w: s8[6,128,2048], i: s32[]) -> s8[1,128,2048] {
  %w = s8[6,128,2048]{2,1,0:T(32,128)(4,1)} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %v = s8[6,128,2048]{2,1,0:T(8,128)(4,1)} fusion(%w), kind=kLoop, ALIASING calls=%tiles
  ROOT %s = s8[1,128,2048]{2,1,0:T(8,128)(4,1)} dynamic-slice(%v, %i, %z, %z), dynamic_slice_sizes={1,128,2048}
}

ENTRY %main (w: s8[6,128,2048], i: s32[]) -> s8[1,128,2048] {
  %w = s8[6,128,2048]{2,1,0:T(32,128)(4,1)} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = s8[1,128,2048]{2,1,0:T(8,128)(4,1)} fusion(%w, %i), kind=kLoop, calls=%layer
}
"""


def test_a_slice_of_an_array_seen_in_other_tiles_reads_the_slice_alone():
    """As XLA for TPUs takes a layer of int8 from the stack: the view's place is the array's own. A copy has one of its own."""
    layer = 128 * 2048
    for aliasing, layers in (("output_to_operand_aliasing={{}: (0, {})},", 1), ("", 6)):
        program = hlo.parse(BYTES.replace("ALIASING", aliasing))
        moved = costs.hbm_bytes(program, program.entry.root, program.entry)
        assert moved == (layers + 1) * layer + 4  # with what is written, and the index
