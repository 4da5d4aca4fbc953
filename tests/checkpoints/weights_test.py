import itertools
import os
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from places import ROOT

from gptjax.checkpoints import checkpointer, checksums, stored, weights
from gptjax.config.fields import Config, TrainConfig

WHOLE = (6, 10, 4)
MEMORY = ROOT / "tests" / "support" / "load_memory.py"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder of a step, array) of parameters written in many chunks from a mesh of 2 x 2."""
    mesh = jax.make_mesh((2, 2), ("a", "b"))
    array = np.random.default_rng(0).standard_normal(WHOLE).astype(np.float32)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a", "b"))
    folder = tmp_path_factory.mktemp("checkpoints")
    writer = checkpointer.Checkpointer(folder, Config(train=TrainConfig(steps=1)))
    writer._chunked = lambda tree: jax.tree.map(lambda _: writer._ocp.SaveArgs(chunk_byte_size=100), tree)
    params = {"big": jax.device_put(array, place), "scalar": jax.numpy.float32(3)}
    writer.save({"params": params}, 1)
    writer.wait()
    writer.close()
    assert len(list(stored.chunks(stored.open_array(folder / "1", "params/big"), (0, 0, 0), WHOLE))) >= 12
    return folder / "1", array


def placed(shape, spec):
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)), jax.ShapeDtypeStruct(shape, np.float32)


@pytest.mark.parametrize("dtype", [None, ml_dtypes.bfloat16])
@pytest.mark.parametrize("spec", [(), ("x",), (None, "x", "y"), ("x", None, "y")])
def test_chunks_that_cross_shards_end_up_where_they_belong(saved, spec, dtype):
    folder, array = saved
    place, shape = placed(WHOLE, spec)
    scalar = jax.ShapeDtypeStruct((), np.float32)
    abstract = {"big": shape, "scalar": scalar}
    shardings = {"big": place, "scalar": jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())}
    found = weights.read(folder, "params", abstract, shardings, dtype)
    assert found["big"].sharding == place and found["scalar"] == 3
    np.testing.assert_array_equal(np.asarray(found["big"]), array.astype(dtype or np.float32))
    for shard in found["big"].addressable_shards:
        np.testing.assert_array_equal(np.asarray(shard.data), array.astype(dtype or np.float32)[shard.index])


def test_sums_on_the_host_are_those_of_the_device():
    rng = np.random.default_rng(0)
    cases = [((), (), ()), ((5,), (3,), (20,)), ((4, 5, 6), (1, 2, 3), (7, 9, 11))]
    for (shape, start, whole), dtype in itertools.product(cases, [np.float32, ml_dtypes.bfloat16, np.int8, bool]):
        values = np.asarray(rng.standard_normal(shape) * 100).astype(dtype)
        expected = np.asarray(checksums.lanes_of_piece(values, start, whole))
        np.testing.assert_array_equal(checksums.lanes_on_host(values, start, whole), expected)


def test_what_jax_takes_over_is_not_copied():
    values = weights._aligned((1000, 7), np.dtype(np.float32))
    assert jax.device_put(values, jax.devices()[0]).unsafe_buffer_pointer() == values.ctypes.data


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_loading_needs_little_more_than_what_stays(tmp_path, dtype):
    """Half of GPT-2 xl's layers, in processes of their own."""
    environment = os.environ | {"PYTHONPATH": str(MEMORY.parents[1]), "XLA_FLAGS": ""}
    run = [sys.executable, str(MEMORY)]
    subprocess.run([*run, "make", str(tmp_path / "run"), "--layers=24"], env=environment, check=True)
    facts = eval(subprocess.check_output([*run, "load", str(tmp_path / "run"), dtype], env=environment, text=True))
    assert facts["peak_over_stays"] <= 1.2, facts
