import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gptjax.checkpoints import checksums

WHOLE = np.random.default_rng(0).standard_normal((4, 8, 16)).astype(np.float32)


def mesh():
    return Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))


@pytest.mark.parametrize("memory", ["device", "pinned_host"])
@pytest.mark.parametrize("spec,count", [(P("a", None, "b"), 8), (P(None, ("a", "b")), 8), (P("b"), 2), (P(), 1)])
def test_each_shard_has_a_checksum_and_together_they_are_the_arrays(spec, count, memory):
    array = jax.device_put(WHOLE, NamedSharding(mesh(), spec, memory_kind=memory))
    found = checksums.finish(checksums.begin(array))
    assert len(found) == count and checksums.total(found) == checksums.checksum(WHOLE)
    covered = np.zeros(WHOLE.shape, int)
    for piece in found:
        part = tuple(slice(first, first + size) for first, size in zip(piece["start"], piece["shape"]))
        covered[part] += 1
        lanes = checksums.lanes_of_piece(WHOLE[part], piece["start"], WHOLE.shape)
        assert piece["checksum"] == checksums.as_hex(lanes)
    assert (covered == 1).all(), "each element once, whatever is replicated"


def test_it_is_of_the_values_at_its_beginning_though_the_array_is_deleted(make_variant):
    leaves = jax.tree.leaves(make_variant("gpt3").params)
    copies = [leaf + 0 for leaf in leaves]
    begun = [checksums.begin(copy) for copy in copies]
    for copy in copies:
        copy.delete()
    assert [checksums.total(checksums.finish(each)) for each in begun] == [checksums.checksum(leaf) for leaf in leaves]


def test_scalars_and_arrays_of_one_device_have_one_piece():
    scalar = jax.device_put(np.int32(5), NamedSharding(mesh(), P()))
    for array in (scalar, np.int32(5), jax.numpy.int32(5)):
        [piece] = checksums.finish(checksums.begin(array))
        assert piece == {"start": [], "shape": [], "checksum": checksums.checksum(np.int32(5))}
