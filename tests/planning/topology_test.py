"""Machines by name, and the time that bytes take on their links, by hand."""

import numpy as np
import pytest
from tori import torus

from gptjax import hardware
from gptjax.errors import UserError
from gptjax.planning import topology

GIGA = 10**9


@pytest.mark.parametrize(
    "name, message",
    [
        ("v5x:8x8", "'v5x' is not known; nearest: v5p, v5e"),
        ("v5p", "expected v5p:SIZE"),
        ("v5p:8x8", "given as in --topology=v5p:4x4x4"),
        ("v5e:8by8", "expected v5e:SIZE, as in v5e:8x8"),
        ("h100:16x8", "at most 8 GPUs a host"),
        ("cpu:513", "is 513 CPU devices in one process; use at most 512"),
        ("v5e:3x5", "is not known to libtpu"),
    ],
)
def test_a_machine_that_there_is_not_is_refused_with_what_there_is(name, message):
    with pytest.raises(UserError, match=message):
        topology.describe(name)


def test_gpus_are_hosts_of_eight_and_cannot_be_compiled_for_without_the_compiler():
    machine = topology.describe("h100:8x16")
    assert (machine.num_chips, machine.platform, machine.devices) == (128, "gpu", None)
    assert machine.slice_D[7:9].tolist() == [0, 1]


@pytest.mark.parametrize(
    "name, slices, chips, devices", [("v5e:2x2", 2, 8, 8), ("v4:2x2x2", 1, 8, 8), ("tpu7x:2x2x1", 1, 4, 8)]
)
def test_libtpu_describes_a_slice_device_by_device(name, slices, chips, devices):
    machine = topology.describe(name, slices)
    assert (machine.num_chips, machine.num_devices, len(machine.devices)) == (chips, devices, devices)
    assert len(np.unique(machine.slice_D)) == slices


def test_cables_close_cubes_and_whole_rows_of_a_pod_only():
    assert torus("v5p", (8, 8, 8)).is_ring(0) and not torus("v5p", (2, 2, 4)).is_ring(2)
    assert torus("v5e", (8, 16)).is_ring(1) and not torus("v5e", (8, 16)).is_ring(0)


def test_a_gather_over_a_closed_ring_runs_both_ways_round():
    machine = torus("v5p", (8, 8, 8))
    near, far = topology.seconds(machine, "all-gather", 8e9, np.arange(8))  # along the last dimension
    assert near == pytest.approx(8e9 * 7 / 8 / (2 * 100 * GIGA)) and far == 0
    twice, _ = topology.seconds(machine, "all-reduce", 8e9, np.arange(8))
    assert twice == pytest.approx(2 * near)


def test_two_dimensions_carry_twice_as_much():
    machine = torus("v5p", (8, 8, 8))
    one = topology.path(machine, np.arange(8))
    two = topology.path(machine, np.arange(64))
    assert two.bandwidth == 2 * one.bandwidth and two.dims == {1, 2} and two.local_size == 64


def test_an_open_row_has_one_way_in_and_strangers_between_halve_it():
    machine = torus("v5e", (8, 8))
    assert topology.path(machine, np.arange(8)).bandwidth == 50 * GIGA
    assert topology.path(machine, np.arange(0, 8, 2)).bandwidth == pytest.approx(50 * GIGA * 4 / 7)


def test_between_slices_each_chip_sends_its_share_over_its_part_of_the_network():
    machine = torus("v5e", (2, 2), slices=2)
    _, whole = topology.seconds(machine, "all-reduce", 1e9, np.array([0, 4]))
    _, share = topology.seconds(machine, "all-reduce", 1e9, np.arange(8))
    assert whole == pytest.approx(2 * 1e9 / 2 / (3.125 * GIGA)) and share == pytest.approx(whole / 4)


def test_gpus_of_a_host_share_a_switch_and_hosts_a_network():
    machine = topology.describe("h100:8x2")
    near, far = topology.seconds(machine, "all-gather", 8e9, np.arange(8))
    assert near == pytest.approx(8e9 * 7 / 8 / (450 * GIGA)) and far == 0
    near, far = topology.seconds(machine, "all-gather", 8e9, np.array([0, 8]))
    assert near == 0 and far == pytest.approx(8e9 / 2 / (50 * GIGA))


def test_a_group_of_one_sends_nothing():
    assert topology.seconds(torus("v5e", (2, 2)), "all-reduce", 1e9, np.array([2])) == (0.0, 0.0)


def test_every_chip_has_rates_and_a_source():
    for name, chip in hardware.CHIPS.items():
        assert chip.flops_per_second > 1e14 and chip.hbm_bytes >= 16 * 2**30, name
        assert chip.hbm_bandwidth > 5e11 and chip.source, name


def test_the_environment_is_that_of_a_machine_without_a_tpu(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3 --other=1")
    for name in topology.TPU_ENVIRONMENT:
        monkeypatch.setenv(name, "unset")
    topology.set_environment("cpu:2x2", 2)
    import os

    assert os.environ["XLA_FLAGS"] == "--other=1 --xla_force_host_platform_device_count=8"
    topology.set_environment("v5e:2x2")
    assert {name: os.environ[name] for name in topology.TPU_ENVIRONMENT} == topology.TPU_ENVIRONMENT


@pytest.mark.parametrize("name, num_slices", [("h100:8x2", 1), ("h100:4", 1), ("cpu:8", 1), ("cpu:2", 2)])
def test_the_devices_of_a_name_are_those_that_are_described(name, num_slices):
    assert topology.device_count(name, num_slices) == len(topology.describe(name, num_slices).slice_D)


def test_devices_of_tpus_are_counted_without_libtpu():
    assert [topology.device_count(*given) for given in (("v5p:4x4x8", 1), ("v5e:4x4", 2), ("tpu7x:2x2x1", 1))] == [
        128,
        32,
        8,
    ]
