"""Context parallelism: which device holds which tokens, and attention that does not notice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from jax.sharding import PartitionSpec

from gptjax.config.fields import Config, MeshConfig, ModelConfig, TrainConfig
from gptjax.models import attention, splash
from gptjax.parallel import context, meshes


def mesh_of(**axes):
    config = Config(
        model=ModelConfig(), train=TrainConfig(steps=1, batch_size=8), mesh=MeshConfig(**{"fsdp": 1, **axes})
    )
    return meshes.make_mesh(config, jax.devices()[: np.prod(list(axes.values()))])


def order_on(shards: int, length: int):
    with jax.set_mesh(mesh_of(sequence=shards)):
        return context.device_order(length)


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_every_device_has_the_same_number_of_visible_pairs(shards):
    order_L = order_on(shards, 64)
    assert sorted(order_L) == list(range(64))
    keys_seen = order_L + 1  # by each query
    pairs = keys_seen.reshape(shards, -1).sum(-1)
    assert len(set(pairs)) == 1 and pairs.sum() == 64 * 65 // 2


def test_a_mesh_that_does_not_split_sequences_leaves_tokens_as_they_are():
    assert context.device_order(64) is None
    with jax.set_mesh(mesh_of(tensor=4)):
        assert context.device_order(64) is None


@pytest.mark.parametrize("shards", [2, 4])
def test_gathered_tokens_are_in_the_order_of_the_sequence(shards):
    x_BLK = np.arange(2 * 32 * 3).reshape(2, 32, 3)
    with jax.set_mesh(mesh_of(sequence=shards)):
        rows = PartitionSpec(None, "sequence")
        gather = jax.shard_map(context.gather_length, in_specs=rows, out_specs=PartitionSpec(), check_vma=False)
        gathered = jax.jit(gather)(x_BLK[:, context.device_order(32)])
    np.testing.assert_array_equal(gathered, x_BLK)


# Attention


def inputs(length, heads, kv_heads, documents, head_size=8):
    rng = np.random.default_rng(0)
    shapes = [(2, length, n, head_size) for n in (heads, kv_heads, kv_heads)]
    segment_BL = np.cumsum(rng.random((2, length)) < 0.1, axis=1).astype(np.int32) if documents else None
    return *(rng.standard_normal(shape).astype(np.float32) for shape in shapes), segment_BL


def in_device_order(function, length):
    """function of arrays in the order of the sequence, of one whose arrays are in device_order."""
    order_L = context.device_order(length)

    def wrapped(q, k, v, segment_BL=None, prefix_BL=None, **options):
        arrays = jax.tree.map(lambda a: a[:, order_L], (q, k, v, segment_BL, prefix_BL))
        out = function(*arrays[:3], segment_BL=arrays[3], prefix_BL=arrays[4], **options)
        return out[:, np.argsort(order_L)]

    return wrapped


def output_and_gradients(function, q, k, v, **options):
    weight = jnp.cos(jnp.arange(q.size)).reshape(q.shape)
    loss = lambda q, k, v: (function(q, k, v, **options) * weight).sum()  # noqa: E731
    return jax.jit(lambda *qkv: (function(*qkv, **options), jax.grad(loss, (0, 1, 2))(*qkv)))(q, k, v)


def assert_close(ours, expected):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * np.abs(b).max())


@pytest.mark.parametrize("window", runs.default_or_slow([None, 7, 40], [7]), ids=str)
@pytest.mark.parametrize("documents,kv_heads", [(False, 4), (True, 2)], ids=["", "documents, shared keys"])
@pytest.mark.parametrize("axes", [dict(sequence=2), dict(sequence=4), dict(fsdp=2, sequence=2, tensor=2)], ids=str)
def test_attention_of_split_sequences_equals_that_of_whole_ones(axes, documents, kv_heads, window):
    q, k, v, segment_BL = inputs(64, 4, kv_heads, documents)
    options = dict(window=window, segment_BL=segment_BL)
    whole = output_and_gradients(attention.xla_attention, q, k, v, **options)
    with jax.set_mesh(mesh_of(**axes)):
        split = in_device_order(functools.partial(attention.attend, "xla"), 64)
        assert_close(output_and_gradients(split, q, k, v, **options), whole)


@pytest.mark.parametrize("documents,window", [(False, None), (True, 7)], ids=["", "documents, band"])
def test_attention_of_split_sequences_with_a_prefix_equals_that_of_whole_ones(documents, window):
    q, k, v, segment_BL = inputs(64, 4, 2, documents)
    prefix_BL = np.random.default_rng(1).random((2, 64)) < 0.3
    options = dict(window=window, segment_BL=segment_BL, prefix_BL=prefix_BL)
    whole = output_and_gradients(attention.xla_attention, q, k, v, **options)
    with jax.set_mesh(mesh_of(fsdp=2, sequence=2, tensor=2)):
        split = in_device_order(functools.partial(attention.attend, "xla"), 64)
        assert_close(output_and_gradients(split, q, k, v, **options), whole)


@pytest.mark.parametrize("window", [None, 100], ids=str)
def test_the_tpu_kernel_on_split_sequences_equals_whole_ones(window):
    q, k, v, segment_BL = inputs(512, 2, 2, True)
    options = dict(window=window, segment_BL=segment_BL)
    whole = output_and_gradients(attention.xla_attention, q, k, v, **options)
    with jax.set_mesh(mesh_of(sequence=2)):
        split = in_device_order(functools.partial(splash.splash_attention, interpret=True), 512)
        assert_close(output_and_gradients(split, q, k, v, **options), whole)


def test_a_device_computes_its_share_of_the_visible_pairs_and_little_else():
    """(2 S + 1) / (4 S) of a device's queries times all keys: S even chunks in whole, two diagonal ones, and S - 1."""
    length, shards = 512, 4
    q, k, v, _ = inputs(length, 2, 2, False, head_size=128)  # beside which a softmax is little

    def flops(function, *args):
        return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]

    all_pairs = flops(lambda q, k, v: attention.softmax_attention(q, k, v, True)[0], q, k, v)
    with jax.set_mesh(mesh_of(sequence=shards)):
        share = flops(functools.partial(attention.attend, "xla"), q, k, v)
    assert share / (all_pairs / shards) == pytest.approx((2 * shards + 1) / (4 * shards), rel=0.1)
