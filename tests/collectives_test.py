"""Which devices speak, how often and of how much: XLA's notations by hand, and programs compiled for small slices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gptjax import collectives, hlo, topology

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
