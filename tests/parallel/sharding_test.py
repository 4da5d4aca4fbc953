"""Where things lie: no large array is copied onto every device, and nothing is placed by accident."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gptjax.config.fields import Config, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gptjax.models import architectures
from gptjax.models.roles import by_role
from gptjax.optim import optimizers
from gptjax.parallel import meshes, placement, sharding
from gptjax.planning import hlo, topology
from gptjax.training import program as programs

MEGABYTE = 2**20
MESHES = [
    dict(fsdp=8),
    dict(fsdp=4, tensor=2),
    dict(fsdp=2, tensor=4),
    dict(replica=2, fsdp=4),
    dict(fsdp=4, sequence=2),
]


def large_config(optimizer="adamw", mesh=MESHES[0], **fields):
    """A model with matrices, tables and optimizer state of many megabytes; only ever shapes."""
    return Config(
        model=ModelConfig(vocab_size=30_000, context_length=1024, n_layers=4, d_model=512, n_heads=8, **fields),
        optim=OptimConfig(name=optimizer, ema_decay=0.99),
        mesh=MeshConfig(**mesh),
        train=TrainConfig(steps=1, batch_size=8),
    )


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("optimizer", optimizers.OPTIMIZERS)
def test_nothing_over_a_megabyte_lies_whole_on_every_device(optimizer, mesh):
    config = large_config(optimizer, mesh)
    program = programs.build(config, meshes.make_mesh(config), "xla")
    large = 0
    leaves = jax.tree_util.tree_leaves_with_path(program.abstract_state)
    for (path, leaf), place in zip(leaves, jax.tree.leaves(program.state_sharding), strict=True):
        held = np.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        if leaf.size * leaf.dtype.itemsize > MEGABYTE:
            large += 1
            assert 2 * held <= leaf.size * leaf.dtype.itemsize, jax.tree_util.keystr(path)
        else:
            assert held <= MEGABYTE
    assert large >= 2 * 6  # parameters and average: two tables and four matrices of the blocks


@pytest.mark.parametrize("fields", [dict(), dict(tied_head=False, mlp="swiglu", n_kv_heads=4, qk_norm=True)])
def test_every_matrix_is_split_over_both_fsdp_and_tensor(fields):
    config = large_config(mesh=dict(fsdp=4, tensor=2), **fields)
    program = programs.build(config, meshes.make_mesh(config), "xla")
    kinds = by_role(lambda role: role.kind, architectures.roles(config.model), program.abstract_state.params)
    for leaf, place, kind in zip(
        *map(jax.tree.leaves, (program.abstract_state.params, program.state_sharding.params, kinds))
    ):
        if kind == "matrix":
            assert np.prod(place.shard_shape(leaf.shape)) * 8 == leaf.size


def test_bytes_on_one_device_count_only_its_part():
    config = large_config(mesh=dict(fsdp=8))
    mesh = meshes.make_mesh(config)
    tree = {"split": jax.ShapeDtypeStruct((16, 32), jnp.float32), "copied": jax.ShapeDtypeStruct((10,), jnp.bfloat16)}
    places = {"split": sharding.batch_sharding(mesh), "copied": sharding.replicated(mesh)}
    assert sharding.bytes_on_one_device(tree, places) == 16 * 32 * 4 // 8 + 10 * 2


def test_a_state_is_created_in_its_shards_and_nothing_of_it_ever_whole():
    """Compiled for four TPU chips: the largest array of the program is the largest shard."""
    machine = topology.describe("v5e:2x2")
    # Few arrays that are not one value, since drawing each is what takes the compiler's time.
    small = dict(vocab_size=8192, context_length=256, n_layers=2, d_model=256, n_heads=4, position="rope", bias=False)
    config = large_config(mesh=dict(fsdp=2, tensor=2)).replace(model=small)
    mesh = meshes.make_mesh(config, machine.devices)
    program = programs.build(config, mesh, "splash")
    with jax.set_mesh(mesh):
        compiled = program.init.lower().compile()
    largest = max(array.bytes for array in hlo.buffer_shapes(hlo.parse(compiled.as_text())))
    leaves, places = (jax.tree.leaves(tree) for tree in (program.abstract_state, program.state_sharding))
    shards = [np.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf, place in zip(leaves, places)]
    assert largest == max(shards) and max(leaf.size * leaf.dtype.itemsize for leaf in leaves) == 4 * largest
    assert compiled.memory_analysis().temp_size_in_bytes < largest


# Nothing is placed by accident


def test_every_parameter_of_every_variant_states_axes_for_each_dimension(variant_config):
    _, params, axes = architectures.abstract(variant_config)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        stated = axes[tuple(key.key for key in path)]
        assert len(stated) == leaf.ndim and set(stated) <= set(sharding.RULES), path
    assert len(axes) == len(jax.tree.leaves(params))


def test_a_parameter_without_axes_raises_and_is_named():
    mesh = meshes.make_mesh(large_config())
    with pytest.raises(ValueError, match="parameter blocks/gate states no logical axes"):
        sharding.param_shardings({("blocks", "gate"): None}, mesh)


def test_a_parameter_with_an_unknown_axis_raises_and_both_are_named():
    mesh = meshes.make_mesh(large_config())
    with pytest.raises(ValueError, match="parameter blocks/gate has the logical axis 'experts'"):
        sharding.param_shardings({("blocks", "gate"): ("embed", "experts")}, mesh)


PARAMS = {("mlp", "weight"): ((512, 2048), ("embed", "mlp"))}


def test_a_state_leaf_that_belongs_to_no_parameter_raises_and_is_named():
    mesh = meshes.make_mesh(large_config())
    state = {"mu": {"mlp": {"weights": jax.ShapeDtypeStruct((512, 2048), jnp.float32)}}}
    with pytest.raises(ValueError, match=re.escape("state leaf mu/mlp/weights of shape (512, 2048) belongs to no")):
        sharding.state_shardings(state, PARAMS, mesh)


def test_a_state_leaf_of_another_shape_than_its_parameter_raises_and_is_named():
    mesh = meshes.make_mesh(large_config())
    state = {"mu": {"mlp": {"weight": jax.ShapeDtypeStruct((2048, 512), jnp.float32)}}}
    with pytest.raises(ValueError, match="state leaf mu/mlp/weight of shape .* does not match"):
        sharding.state_shardings(state, PARAMS, mesh)


def test_state_is_laid_out_as_its_parameter_and_factors_as_what_is_left_of_it():
    mesh = meshes.make_mesh(large_config(mesh=dict(fsdp=4, tensor=2)))
    shapes = {"mu": (512, 2048), "row": (512,), "column": (2048,)}
    state = {name: {"mlp": {"weight": jax.ShapeDtypeStruct(shape, jnp.float32)}} for name, shape in shapes.items()}
    state["count"] = jax.ShapeDtypeStruct((), jnp.int32)
    places = sharding.state_shardings(state, PARAMS, mesh)
    assert places["count"].spec == PartitionSpec()
    specs = {name: places[name]["mlp"]["weight"].spec for name in ("mu", "row", "column")}
    assert specs == {
        "mu": PartitionSpec("fsdp", "tensor"),
        "row": PartitionSpec("fsdp"),
        "column": PartitionSpec("tensor"),
    }


# Reading batches


@pytest.mark.parametrize("dim", [0, 1])
def test_a_batch_is_read_in_the_parts_that_devices_hold_each_once(dim):
    config = large_config(mesh=dict(replica=2, fsdp=2, tensor=2))
    mesh = meshes.make_mesh(config)
    whole = np.arange(3 * 8 * 5).reshape(3, 8, 5) if dim else np.arange(8 * 5).reshape(8, 5)
    reads = []

    def read(start, stop):
        reads.append((start, stop))
        return {"token": np.take(whole, range(start, stop), dim), "weight": 2 * np.take(whole, range(start, stop), dim)}

    batch = placement.device_batch(read, 8, sharding.batch_sharding(mesh, leading=dim), dim=dim)
    assert sorted(reads) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    np.testing.assert_array_equal(batch["token"], whole)
    np.testing.assert_array_equal(batch["weight"], 2 * whole)
    for shard in batch["token"].addressable_shards:
        assert shard.data.shape[dim] == 2
        np.testing.assert_array_equal(shard.data, whole[shard.index])


def test_a_batch_without_a_mesh_of_several_devices_is_read_whole():
    config = large_config(mesh=dict(fsdp=1)).replace(eval=dict(batch_size=3))
    mesh = meshes.make_mesh(config, jax.devices()[:1])
    batch = placement.device_batch(
        lambda start, stop: {"row": np.arange(start, stop)}, 3, sharding.batch_sharding(mesh)
    )
    np.testing.assert_array_equal(batch["row"], [0, 1, 2])


# Host memory


def test_bytes_on_one_device_leave_out_what_waits_on_the_host():
    config = large_config()
    program = programs.build(config, meshes.make_mesh(config), "xla")
    offloaded = config.replace(mesh=dict(offload_optimizer=True))
    places = programs.build(offloaded, meshes.make_mesh(offloaded), "xla").state_sharding.opt_state
    state = program.abstract_state.opt_state
    assert sharding.bytes_on_one_device(state, program.state_sharding.opt_state) > MEGABYTE
    assert sharding.bytes_on_one_device(state, places) < 1000
