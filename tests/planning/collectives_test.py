"""Which devices speak, how often and of how much: XLA's notations by hand, and programs compiled for small slices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gptjax.planning import collectives, hlo, topology

pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache")  # no TPU to read it for

PAYLOAD = 1024 * 1024 * 4  # the array that every test sends


@pytest.mark.parametrize(
    "text",
    [
        "replica_groups={{0,4,8,12},{1,5,9,13},{2,6,10,14},{3,7,11,15}}",
        "replica_groups=[4,4]<=[4,4]T(1,0)",
        "replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_0'}",
        "replica_groups=mesh['a'=4,'b'=4], device_ids=([4,4]T(1,0)) {'b'}",
        "replica_groups=mesh['a'=16] {'a':(1)4}",
    ],
)
def test_every_notation_of_groups_gives_the_same_groups(text):
    groups = collectives.replica_groups(f"channel_id=1, {text}, to_apply=%add", 16)
    assert groups.tolist() == [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]


def test_no_groups_means_all_devices():
    assert collectives.replica_groups("replica_groups={}, to_apply=%add", 6).tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    "group, names", [([0, 4], ["replica"]), ([0, 1], ["tensor"]), ([0, 2, 4, 6], ["replica", "fsdp"]), ([3], [])]
)
def test_a_group_is_named_after_the_mesh_axes_it_lies_along(group, names):
    assert collectives.axes(np.array([group]), {"replica": 2, "fsdp": 2, "tensor": 2}) == names


def test_a_permutation_along_an_axis_is_named_and_standing_still_is_left_out():
    text = "source_target_pairs={{0,0},{1,2},{2,1},{3,3}}"
    instruction = hlo.Instruction("c", "collective-permute", (), (), "", text, False)
    assert collectives.permuted(instruction).tolist() == [[1, 2], [2, 1]]


def compiled_for(name: str, slices: int, shape, names, body) -> tuple:
    machine = topology.describe(name, slices)
    mesh = Mesh(np.array(machine.devices).reshape(shape), names, axis_types=(AxisType.Auto,) * len(names))
    x = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    mapped = jax.shard_map(body, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    program = hlo.parse(jax.jit(mapped).lower(x).compile().as_text())
    return collectives.listed(program, dict(mesh.shape), 1, machine.arrange(mesh).slice_D)


def sums(axis, times: int):
    def body(x):
        return jax.lax.scan(lambda c, _: (jax.lax.psum(c * 2, axis) * 0.1, None), x, None, length=times)[0]

    return body


@pytest.mark.parametrize("axis, times", [("fsdp", 1), ("tensor", 5)])
def test_a_sum_over_an_axis_is_one_all_reduce_of_the_array_for_each_turn_of_its_loop(axis, times):
    [found] = compiled_for("v5e:2x2", 1, (2, 2), ("fsdp", "tensor"), sums(axis, times))
    assert (found["kind"], found["axis"], found["count"]) == ("all-reduce", axis, times)
    assert found["bytes"] == times * PAYLOAD


def test_a_three_dimensional_slice_names_its_axes_too():
    [found] = compiled_for("v4:2x2x2", 1, (2, 4), ("fsdp", "tensor"), sums("tensor", 3))
    assert (found["kind"], found["axis"], found["count"], found["bytes"]) == ("all-reduce", "tensor", 3, 3 * PAYLOAD)


def test_a_sum_over_slices_crosses_the_network_between_them_whole():
    [found] = compiled_for("v5e:2x2", 2, (2, 4), ("replica", "fsdp"), lambda x: jax.lax.psum(x, "replica"))
    assert (found["kind"], found["axis"], found["bytes"]) == ("all-reduce", "replica", PAYLOAD)
    assert found["overlapped"]  # a send and its receipt


def test_a_sum_over_slices_and_chips_is_scattered_first_so_that_each_chip_sends_its_share():
    found = compiled_for("v5e:2x2", 2, (2, 4), ("replica", "fsdp"), lambda x: jax.lax.psum(x, ("replica", "fsdp")))
    moved = {(entry["kind"], entry["axis"]): entry["bytes"] for entry in found}
    assert moved == {
        ("reduce-scatter", "fsdp"): PAYLOAD,
        ("all-reduce", "replica"): PAYLOAD / 4,
        ("all-gather", "fsdp"): PAYLOAD,
    }


def gathers_and_scatters(axis, times: int):
    """An array gathered, changed, summed and scattered over an axis in every turn of a loop."""

    def turn(part, _):
        whole = jnp.tanh(jax.lax.all_gather(part, axis, tiled=True))
        return jax.lax.psum_scatter(whole, axis, tiled=True), None

    return lambda x: jax.lax.scan(turn, x[: len(x) // jax.lax.axis_size(axis)], None, length=times)[0]


@pytest.mark.parametrize("name", ["v5p:2x2x2", "tpu7x:2x2x1"])
def test_what_every_kind_of_chip_moves_is_counted_also_what_a_sparsecore_does_for_it(name):
    found = compiled_for(name, 1, (2, 4), ("fsdp", "tensor"), gathers_and_scatters("tensor", 3))
    moved = {(entry["kind"], entry["axis"]): (entry["count"], entry["bytes"]) for entry in found}
    assert moved == {("all-gather", "tensor"): (3, 3 * PAYLOAD), ("reduce-scatter", "tensor"): (3, 3 * PAYLOAD)}


# A gather and a scatter, each in a computation of its own, as libtpu prints them for TPU 7x.
CALLED = """HloModule m, is_scheduled=true

%gather (g: bf16[8,128], t: token[]) -> bf16[64,128] {
  %t = token[] parameter(1)
  %g = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %all-gather.1 = bf16[64,128]{1,0} all-gather(%g), channel_id=1, replica_groups=mesh['a'=8] {'a'}, dimensions={0}
}, execution_thread="sparsecore"

%scattered (r: bf16[64,128]) -> bf16[8,128] {
  %r = bf16[64,128]{1,0} parameter(0)
  %all-reduce.1 = bf16[64,128]{1,0} all-reduce(%r), channel_id=2, replica_groups=[1,8]<=[8], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %kept = bf16[8,128]{1,0} dynamic-slice(%all-reduce.1, %zero, %zero), dynamic_slice_sizes={8,128}
}

%scatter (s: bf16[64,128]) -> bf16[8,128] {
  %s = bf16[64,128]{1,0} parameter(0)
  ROOT %fused = bf16[8,128]{1,0} fusion(%s), kind=kCustom, calls=%scattered
}, execution_thread="sparsecore"

%turn (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p = (s32[], bf16[8,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[8,128]{1,0} get-tuple-element(%p), index=1
  %token = token[] after-all()
  %gs = ((bf16[8,128]{1,0}, token[]), bf16[64,128]{1,0}) call-start(%x, %token), async_execution_thread="sparsecore", to_apply=%gather
  %gd = bf16[64,128]{1,0} call-done(%gs)
  %ss = ((bf16[64,128]{1,0}), bf16[8,128]{1,0}, s32[]{:S(2)}) async-start(%gd), calls=%scatter
  %su = ((bf16[64,128]{1,0}), bf16[8,128]{1,0}, s32[]{:S(2)}) async-update(%ss), calls=%scatter
  %sd = bf16[8,128]{1,0} async-done(%su), calls=%scatter
  ROOT %next = (s32[], bf16[8,128]{1,0}) tuple(%i, %sd)
}

ENTRY %main (a: bf16[8,128]) -> bf16[64,128] {
  %a = bf16[8,128]{1,0} parameter(0)
  %start = s32[] constant(0)
  %carry = (s32[], bf16[8,128]{1,0}) tuple(%start, %a)
  %loop = (s32[], bf16[8,128]{1,0}) while(%carry), condition=%turn, body=%turn, backend_config={"known_trip_count":{"n":"5"}}
  %part = bf16[8,128]{1,0} get-tuple-element(%loop), index=1
  %both = (bf16[64,128]{1,0}, bf16[64,128]{1,0}) fusion(%part), kind=kCustom, calls=%two
  ROOT %out = bf16[64,128]{1,0} get-tuple-element(%both), index=0
}

%two (q: bf16[8,128]) -> (bf16[64,128], bf16[64,128]) {
  %q = bf16[8,128]{1,0} parameter(0)
  %all-gather.2 = bf16[64,128]{1,0} all-gather(%q), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}
  %all-gather.3 = bf16[64,128]{1,0} all-gather(%q), channel_id=4, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %pair = (bf16[64,128]{1,0}, bf16[64,128]{1,0}) tuple(%all-gather.2, %all-gather.3)
}
"""


# The same gather and an all-reduce as libtpu prints what v5p's SparseCores do: the update hands the operand over.
MADE_READY = (
    CALLED.split("%scattered")[0]
    + """
%sum (s: bf16[64,128]) -> bf16[64,128] {
  %s = bf16[64,128]{1,0} parameter(0)
  ROOT %all-reduce.1 = bf16[64,128]{1,0} all-reduce(%s), channel_id=2, replica_groups=[1,8]<=[8], to_apply=%add
}, execution_thread="sparsecore"

ENTRY %main (x: bf16[8,128]) -> bf16[64,128] {
  %x = bf16[8,128]{1,0} parameter(0)
  %gs = ((), (), (s32[64]{0}, s32[8]{0:S(2)})) custom-call-start(), custom_call_target="TODO", called_computations={%gather}
  %gu = ((bf16[8,128]{1,0}), bf16[64,128]{1,0}, (s32[64]{0})) custom-call-update(%gs, %x)
  %rs = ((), (), (s32[64]{0}, s32[8]{0:S(2)})) custom-call-start(), custom_call_target="TODO", called_computations={%sum}
  %gd = bf16[64,128]{1,0} custom-call-done(%gu)
  %ru = ((bf16[64,128]{1,0}), bf16[64,128]{1,0}, (s32[64]{0})) custom-call-update(%rs, %gd)
  ROOT %rd = bf16[64,128]{1,0} custom-call-done(%ru)
}
"""
)


def test_a_sparsecores_collective_starts_where_it_is_handed_its_operand():
    program = hlo.parse(MADE_READY)
    events = collectives.events(program, program.entry, {"fsdp": 8})
    roles = {name: [(event.role, event.collective.kind) for event in of_one] for name, of_one in events.items()}
    assert roles == {
        "gu": [("start", "all-gather")],
        "gd": [("done", "all-gather")],
        "ru": [("start", "all-reduce")],  # small as the buffers of its start are, it keeps all that it sums
        "rd": [("done", "all-reduce")],
    }


def test_collectives_within_calls_fusions_and_loops_are_all_counted():
    found = collectives.listed(hlo.parse(CALLED), {"fsdp": 8})
    size = 64 * 128 * 2
    assert {(e["kind"], e["overlapped"]): (e["count"], e["bytes"]) for e in found} == {
        ("all-gather", True): (5, 5 * size),
        ("reduce-scatter", True): (5, 5 * size),
        ("all-gather", False): (2, 2 * size),
    }


def test_a_sparsecores_collective_starts_and_ends_beside_the_schedule():
    program = hlo.parse(CALLED)
    events = collectives.events(program, program.computations["turn"], {"fsdp": 8})
    roles = {name: [event.role for event in of_one] for name, of_one in events.items()}
    assert roles == {"gs": ["start"], "gd": ["done"], "ss": ["start"], "su": ["step"], "sd": ["done"]}
