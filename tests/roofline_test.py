"""Schedules by hand: what holds them up, and what runs beside them."""

import pytest
from topology_test import torus

from gptjax import hlo, roofline

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
