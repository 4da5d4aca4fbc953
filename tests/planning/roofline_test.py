"""Schedules by hand: what holds them up, and what runs beside them."""

import pytest
from topology_test import torus

from gptjax.planning import hlo, roofline

# On v5e: 2 * 4096 * 4096 * 8192 FLOPs are 1.395 ms at 197 TFLOP/s, more than their bytes at 819 GB/s.
MATMUL = 2 * 4096 * 4096 * 8192 / 197e12
# 128 MiB gathered over an open row of 8 chips: 7/8 of it at 50 GB/s.
GATHER = 128 * 2**20 * 7 / 8 / 50e9

HEAD = """HloModule m, is_scheduled=true

ENTRY %main (x: bf16[4096,8192], w: bf16[8192,4096], p: bf16[8,1048576]) -> bf16[4096,4096] {
  %x = bf16[4096,8192]{1,0} parameter(0)
  %w = bf16[8192,4096]{1,0} parameter(1)
  %p = bf16[8,1048576]{1,0} parameter(2)
"""
DOT = "bf16[4096,4096]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
GROUPS = "channel_id=1, replica_groups=[8,8]<=[64], dimensions={0}"


def play(*lines: str, fraction: float = 1.0) -> roofline.Timeline:
    program = hlo.parse(HEAD + "".join(f"  {line}\n" for line in lines) + "}\n")
    return roofline.play(program, torus("v5e", (8, 8)), {"fsdp": 8, "tensor": 8}, fraction)


def test_a_matmul_takes_its_flops_at_the_peak():
    line = play(f"ROOT %a = {DOT}")
    assert line.seconds == line.matmul_seconds == pytest.approx(MATMUL)
    assert play(f"ROOT %a = {DOT}", fraction=0.5).seconds == pytest.approx(2 * MATMUL)


def test_an_elementwise_operation_takes_its_bytes_at_the_bandwidth():
    line = play("ROOT %a = bf16[4096,8192]{1,0} add(%x, %x)")
    assert line.seconds == line.memory_seconds == pytest.approx(3 * 4096 * 8192 * 2 / 819e9)


def gather(kind: str = "all-gather") -> str:
    return f"bf16[64,1048576]{{1,0}} {kind}(%p), {GROUPS}"


def test_a_plain_collective_holds_up_the_schedule():
    line = play(f"%g = {gather()}", f"ROOT %a = {DOT}")
    assert line.seconds == pytest.approx(MATMUL + GATHER)
    [(key, moved)] = line.traffic.items()
    assert key == ("all-gather", "tensor", "ICI", False)
    assert moved.count == 1 and moved.bytes == 128 * 2**20 and moved.exposed_seconds == pytest.approx(GATHER)


def async_gather() -> tuple[str, str]:
    start = f"%s = (bf16[8,1048576]{{1,0}}, bf16[64,1048576]{{1,0}}) all-gather-start(%p), {GROUPS}"
    return start, "%d = bf16[64,1048576]{1,0} all-gather-done(%s)"


def test_what_stands_between_start_and_done_runs_beside_the_collective():
    start, done = async_gather()
    line = play(start, f"%a = {DOT}", done, f"ROOT %b = {DOT}")
    assert line.seconds == pytest.approx(MATMUL + max(MATMUL, GATHER))
    assert line.exposed_seconds == pytest.approx(GATHER - MATMUL)
    [(key, moved)] = line.traffic.items()
    assert key[3] and moved.exposed_seconds == pytest.approx(GATHER - MATMUL)


def test_two_collectives_on_the_same_links_wait_for_each_other_and_on_others_do_not():
    start, done = async_gather()
    renamed = [line.replace("%s", "%t").replace("%d", "%e") for line in (start, done)]
    same = play(start, renamed[0], done, f"ROOT{renamed[1].replace('%e', ' %e')}")
    assert same.seconds == pytest.approx(2 * GATHER)
    other = renamed[0].replace("[8,8]<=[64]", "[8,8]<=[8,8]T(1,0)")
    assert play(start, other, done, f"ROOT{renamed[1].replace('%e', ' %e')}").seconds == pytest.approx(GATHER)


FUSED = """HloModule m, is_scheduled=true

%step (q: bf16[8,1048576], x: bf16[4096,8192], w: bf16[8192,4096]) -> bf16[4096,4096] {
  %q = bf16[8,1048576]{1,0} parameter(0)
  %g = bf16[64,1048576]{1,0} all-gather(%q), GROUPS
  %x = bf16[4096,8192]{1,0} parameter(1)
  %w = bf16[8192,4096]{1,0} parameter(2)
  ROOT %y = DOT
}

%edge (q: bf16[8,1048576]) -> bf16[64,1048576] {
  %q = bf16[8,1048576]{1,0} parameter(0)
  ROOT %g = bf16[64,1048576]{1,0} all-gather(%q), GROUPS
}

""".replace("GROUPS", GROUPS).replace("DOT", DOT)


def test_a_chain_of_fusions_on_one_channel_is_one_collective_beside_the_matmul_in_its_middle():
    entry = (
        "  %s = bf16[64,1048576]{1,0} fusion(%p), kind=kCustom, calls=%edge\n"
        "  %m = bf16[4096,4096]{1,0} fusion(%p, %x, %w), kind=kOutput, calls=%step\n"
        "  ROOT %d = bf16[64,1048576]{1,0} fusion(%p), kind=kCustom, calls=%edge\n}\n"
    )
    program = hlo.parse(FUSED + HEAD.split("\n\n", 1)[1] + entry)
    line = roofline.play(program, torus("v5e", (8, 8)), {"fsdp": 8, "tensor": 8})
    [(key, moved)] = line.traffic.items()
    assert moved.count == 1 and key[3]
    assert line.flops == 2 * 4096 * 4096 * 8192
    assert line.seconds == pytest.approx(max(MATMUL, GATHER), rel=0.15)  # the fused step also reads its operands


def test_an_all_reduce_of_which_a_share_is_kept_is_a_reduce_scatter():
    text = """HloModule m, is_scheduled=true

%all-reduce-scatter (q: bf16[64,1048576]) -> bf16[8,1048576] {
  %q = bf16[64,1048576]{1,0} parameter(0)
  %r = bf16[64,1048576]{1,0} all-reduce(%q), channel_id=1, replica_groups=[8,8]<=[64], to_apply=%add
  %i = u32[] constant(0)
  ROOT %k = bf16[8,1048576]{1,0} dynamic-slice(%r, %i, %i), dynamic_slice_sizes={8,1048576}
}

ENTRY %main (p: bf16[64,1048576]) -> bf16[8,1048576] {
  %p = bf16[64,1048576]{1,0} parameter(0)
  ROOT %f = bf16[8,1048576]{1,0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter
}
"""
    line = roofline.play(hlo.parse(text), torus("v5e", (8, 8)), {"fsdp": 8, "tensor": 8})
    [(key, moved)] = line.traffic.items()
    assert key[:2] == ("reduce-scatter", "tensor") and line.seconds == pytest.approx(GATHER)


# Beside the schedule: v[8,2048,2048] in HBM; a quarter of it, 16 MiB, takes 20.5 us at 819 GB/s.
STACK = "bf16[8,2048,2048]{2,1,0:T(8,128)(2,1)}"
QUARTER = 2 * 2048 * 2048 * 2
SLICE = "slice={[2:4], [0:2048], [0:2048]}"


def quarter(space: int) -> str:
    return f"bf16[2,2048,2048]{{2,1,0:T(8,128)(2,1)S({space})}}"


BEGUN = {  # bytes between HBM and chip: instructions that start and end
    "a slice into VMEM": (
        QUARTER,
        f"%s = (({STACK}), {quarter(1)}, s32[]{{:S(2)}}) slice-start(%v), {SLICE}",
        f"%d = {quarter(1)} slice-done(%s)",
    ),
    "a slice whose index is computed": (
        QUARTER,
        f"%s = (({STACK}, s32[]{{:T(128)S(6)}}, s32[], s32[]), {quarter(1)}, s32[]{{:S(2)}})"
        " dynamic-slice-start(%v, %i, %z, %z), dynamic_slice_sizes={2,2048,2048}",
        f"%d = {quarter(1)} dynamic-slice-done(%s)",
    ),
    "a slice in HBM": (
        2 * QUARTER,
        f"%s = (({STACK}), {quarter(0)}, s32[]{{:S(2)}}) slice-start(%v), {SLICE}",
        f"%d = {quarter(0)} slice-done(%s)",
    ),
    "an update": (
        2 * QUARTER,
        f"%s = (({STACK}, {quarter(0)}, s32[], s32[], s32[]), {STACK}, s32[]{{:S(2)}})"
        " dynamic-update-slice-start(%v, %u, %i, %z, %z)",
        f"%d = {STACK} dynamic-update-slice-done(%s)",
    ),
    "a copy into VMEM": (
        4 * QUARTER,
        f"%s = ({STACK.replace('(2,1)}', '(2,1)S(1)}')}, {STACK}, u32[]{{:S(2)}}) copy-start(%v)",
        f"%d = {STACK.replace('(2,1)}', '(2,1)S(1)}')} copy-done(%s)",
    ),
    "a copy in HBM": (
        8 * QUARTER,
        f"%s = ({STACK}, {STACK}, u32[]{{:S(2)}}) copy-start(%v)",
        f"%d = {STACK} copy-done(%s)",
    ),
    "a computation of its own": (
        QUARTER,
        f"%s = (({STACK}), {quarter(1)}, s32[]{{:S(2)}}) async-start(%v), calls=%wrapped",
        f"%d = {quarter(1)} async-done(%s)",
    ),
    "a custom call of a SparseCore, handed over later": (
        QUARTER,
        "%s0 = ((), (), (s32[64]{0}, s32[8]{0:S(2)})) custom-call-start(), called_computations={%wrapped}\n"
        f"  %s = (({STACK}), {quarter(1)}, (s32[64]{{0}})) custom-call-update(%s0, %v)",
        f"%d = {quarter(1)} custom-call-done(%s)",
    ),
    "a call of a SparseCore": (
        QUARTER,
        f"%s = (({STACK}), {quarter(1)}, s32[]{{:S(2)}}) call-start(%v), to_apply=%wrapped",
        f'%d = {quarter(1)} call-done(%s), async_execution_thread="sparsecore"',
    ),
}
WRAPPED = f"""%wrapped (w: bf16[8,2048,2048]) -> bf16[2,2048,2048] {{
  %w = {STACK} parameter(0)
  ROOT %cut = {quarter(1)} slice(%w), {SLICE}
}}

"""
OPERANDS = (
    f"%v = {STACK} parameter(3)",
    f"%u = {quarter(0)} parameter(4)",
    "%i = s32[] parameter(5)",
    "%z = s32[] constant(0)",
)


def play_beside(*lines: str) -> roofline.Timeline:
    head, entry = HEAD.split("ENTRY")
    text = head + WRAPPED + "ENTRY" + entry + "".join(f"  {line}\n" for line in (*OPERANDS, *lines)) + "}\n"
    return roofline.play(hlo.parse(text), torus("v5e", (8, 8)), {"fsdp": 8, "tensor": 8})


@pytest.mark.parametrize("case", BEGUN)
def test_what_is_started_and_waited_for_apart_moves_what_it_says_beside_the_schedule(case):
    size, start, done = BEGUN[case]
    hidden = play_beside(start, f"%a = {DOT}", done)
    assert hidden.seconds == hidden.matmul_seconds == pytest.approx(MATMUL)
    assert hidden.hbm_bytes == pytest.approx(size + 3 * 64 * 2**20 - 32 * 2**20, abs=16)  # and the matmul's arrays
    waited = play_beside(start, done)
    assert waited.seconds == waited.copy_seconds == pytest.approx(size / 819e9)


def test_two_prefetches_share_the_bandwidth_and_an_update_in_between_waits_for_nothing():
    _, start, done = BEGUN["a slice into VMEM"]
    _, second, _ = BEGUN["a computation of its own"]
    update = f"%t2 = (({STACK}), {quarter(1)}, s32[]{{:S(2)}}) async-update(%t)"
    line = play_beside(start, second.replace("%s", "%t"), update, done, f"%e = {quarter(1)} async-done(%t2)")
    assert line.seconds == line.copy_seconds == pytest.approx(2 * QUARTER / 819e9)


def test_a_slice_that_holds_up_the_schedule_reads_what_it_takes_wherever_it_puts_it():
    into_vmem, in_hbm = (play_beside(f"%d = {quarter(space)} slice(%v), {SLICE}") for space in (1, 0))
    assert into_vmem.seconds == into_vmem.memory_seconds == pytest.approx(QUARTER / 819e9)
    assert in_hbm.seconds == pytest.approx(2 * QUARTER / 819e9)
