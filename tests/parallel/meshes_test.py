"""Which mesh a config makes of how many devices, in what order they lie, and what is refused."""

import re

import jax
import numpy as np
import pytest

from gptjax.config.fields import Config, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.parallel import meshes
from gptjax.planning import topology


def large_config(mesh=(), **fields):
    """A model whose sizes divide by eight."""
    return Config(
        model=ModelConfig(vocab_size=30_000, context_length=1024, n_layers=4, d_model=512, n_heads=8, **fields),
        optim=OptimConfig(),
        mesh=MeshConfig(**dict(mesh)),
        train=TrainConfig(steps=1, batch_size=8),
    )


@pytest.mark.parametrize(
    "mesh,sizes",
    [
        (dict(), (1, 8, 1, 1)),
        (dict(fsdp=-1, tensor=2), (1, 4, 1, 2)),
        (dict(replica=-1, fsdp=2, sequence=2), (2, 2, 2, 1)),
        (dict(fsdp=1, tensor=-1), (1, 1, 1, 8)),
        (dict(fsdp=4, tensor=2), (1, 4, 1, 2)),
        (dict(fsdp=-1, tensor=8), (1, 1, 1, 8)),
    ],
)
def test_one_free_axis_takes_the_devices_that_are_left(mesh, sizes):
    found = meshes.mesh_sizes(MeshConfig(**mesh), 8)
    assert tuple(found[axis] for axis in ("replica", "fsdp", "sequence", "tensor")) == sizes and found["stage"] == 1


@pytest.mark.parametrize(
    "mesh,message",
    [
        (dict(tensor=3), "needs a multiple of 3 devices, but there are 8"),
        (dict(tensor=16), "needs a multiple of 16 devices, but there are 8"),
        (dict(fsdp=4), "is 4 devices, but there are 8; set one axis to -1"),
        (dict(fsdp=4, tensor=4), "is 16 devices, but there are 8"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices_raises(mesh, message):
    with pytest.raises(UserError, match=message):
        meshes.mesh_sizes(MeshConfig(**mesh), 8)


def test_neighbouring_devices_lie_along_the_tensor_axis():
    config = large_config(mesh=dict(fsdp=4, tensor=2))
    mesh = meshes.make_mesh(config)
    assert mesh.axis_names[-1] == "tensor"
    assert mesh.devices.shape == (1, 1, 4, 1, 2)


@pytest.mark.parametrize(
    "fields,message",
    [
        (
            dict(train=dict(batch_size=12)),
            "train.batch_size / train.microbatches=12 does not divide over 8 data shards",
        ),
        (dict(train=dict(batch_size=16, microbatches=4)), "train.batch_size / train.microbatches=4 does not"),
        (dict(eval=dict(batch_size=9)), "eval.batch_size=9 does not divide over 8 data shards"),
        (dict(model=dict(d_model=36, n_heads=4)), "model.d_model=36 does not divide over mesh.fsdp=8; use mesh.fsdp=4"),
        (dict(mesh=dict(fsdp=1, tensor=-1), model=dict(n_heads=4)), "n_heads=4 does not divide over mesh.tensor=8"),
        (
            dict(mesh=dict(fsdp=1, tensor=-1), model=dict(n_kv_heads=2)),
            "n_kv_heads=2 does not divide over mesh.tensor=8",
        ),
        (dict(mesh=dict(fsdp=1, sequence=-1), model=dict(context_length=36)), "context_length=36 does not divide over"),
    ],
)
def test_batch_or_model_that_do_not_divide_over_the_mesh_raise(fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        meshes.make_mesh(large_config().replace(**fields))


@pytest.mark.parametrize("fields", [dict(mesh=dict(offload_optimizer=True)), dict(model=dict(remat="offload"))])
def test_offloading_where_there_is_no_pinned_host_memory_raises_with_the_kinds_there_are(fields):
    config = large_config().replace(**fields)
    meshes.check_memory(config, ["device", "pinned_host"])
    meshes.check_memory(large_config(), ["device"])
    with pytest.raises(
        UserError, match="needs pinned_host memory, but the devices here have device, unpinned_host only"
    ):
        meshes.check_memory(config, ["device", "unpinned_host"])


# Slices


def test_each_slice_is_a_block_of_neighbouring_devices_along_the_dcn_axis():
    mesh = meshes.make_mesh(large_config(mesh=dict(dcn_replica=2, fsdp=2, tensor=2)))
    assert mesh.shape == {"replica": 2, "stage": 1, "fsdp": 2, "sequence": 1, "tensor": 2}
    ids = np.vectorize(lambda device: device.id)(mesh.devices).reshape(2, 2, 2)
    np.testing.assert_array_equal(ids, np.arange(8).reshape(2, 2, 2))


def test_slices_along_fsdp_lie_outermost_on_it_and_each_keeps_its_own_replicas():
    mesh = meshes.make_mesh(large_config(mesh=dict(dcn_fsdp=2, fsdp=2, replica=2)))
    assert (mesh.shape["replica"], mesh.shape["fsdp"]) == (2, 4)
    ids = np.vectorize(lambda device: device.id)(mesh.devices).reshape(2, 4)
    np.testing.assert_array_equal(ids // 4, [[0, 0, 1, 1]] * 2)


def test_tpu_slices_are_taken_as_replicas_and_no_other_axis_crosses_them():
    machine = topology.describe("v5e:2x2", 2)
    mesh = meshes.make_mesh(large_config(mesh=dict(tensor=2)), machine.devices)
    assert (mesh.shape["replica"], mesh.shape["fsdp"], mesh.shape["tensor"]) == (2, 2, 2)
    slice_of = np.vectorize(lambda device: device.slice_index)(mesh.devices).reshape(2, -1)
    assert [set(part) for part in slice_of] == [{0}, {1}]


@pytest.mark.parametrize(
    "mesh,slices,message",
    [
        (dict(dcn_replica=3), 2, "mesh dcn_replica=3 x dcn_fsdp=1 does not fit 2 slices"),
        (dict(dcn_fsdp=4), 2, "does not fit 2 slices; set mesh.dcn_replica=-1"),
        (dict(dcn_replica=3), None, "8 devices cannot be 3 equal slices"),
        (dict(tensor=8), 2, "needs a multiple of 8 devices, but there are 4 in each of 2 slices"),
        (dict(fsdp=8), 2, "is 8 devices, but there are 4 in each of 2 slices"),
    ],
)
def test_slices_that_do_not_fit_are_refused(mesh, slices, message):
    with pytest.raises(UserError, match=re.escape(message)):
        meshes.mesh_sizes(MeshConfig(**mesh), 8, slices)


@pytest.mark.parametrize("axis", ["replica", "fsdp"])
def test_a_slice_axis_that_is_free_takes_the_slices_that_are_left(axis):
    other = "fsdp" if axis == "replica" else "replica"
    sizes = meshes.dcn_sizes(MeshConfig(**{f"dcn_{axis}": -1, f"dcn_{other}": 2}), 8)
    assert sizes == {axis: 4, other: 2}


def test_25_heads_are_refused_with_the_nearest_mesh_that_works():
    heads = dict(model=dict(d_model=1600, n_heads=25))
    with pytest.raises(UserError, match="model.n_heads=25 does not divide over mesh.tensor=4; use mesh.tensor=1 and"):
        meshes.make_mesh(large_config(mesh=dict(tensor=4)).replace(**heads))
    fits = large_config(mesh=dict(fsdp=1, tensor=5)).replace(model=dict(d_model=1600, n_heads=25, context_length=1000))
    assert meshes.make_mesh(fits, jax.devices()[:5]).shape["tensor"] == 5
