"""nf4: the published code book and the nearest of its entries, bytes that come back, and the linear map of them."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gptjax.config import catalogue
from gptjax.config.fields import ModelConfig
from gptjax.errors import UserError
from gptjax.models import architectures, int8, layers, nf4

MODEL = ModelConfig(vocab_size=128, context_length=16, n_layers=2, d_model=16, n_heads=2, d_ff=192, dtype="float32")
ADAPTER = "lora(rank=2, on='all', frozen='nf4')"


def test_the_code_book_is_quantiles_of_the_normal_distribution():
    """As Dettmers et al. 2023 make it (their code, bitsandbytes' create_normal_map): 8 positive quantiles, 7 negative, and 0."""
    quantile, most = statistics.NormalDist().inv_cdf, 0.9677083
    positive = [quantile(p) for p in np.linspace(most, 0.5, 9)[:-1]]
    negative = [-quantile(p) for p in np.linspace(most, 0.5, 8)[:-1]]
    expected = np.sort([*positive, *negative, 0.0]) / max(positive)
    np.testing.assert_allclose(nf4.CODE, expected, atol=1e-6)


@pytest.mark.parametrize("shape, dim", [((3, 128), -1), ((192, 5), -2), ((2, 3, 40, 4), -2)])
def test_each_weight_becomes_the_nearest_entry_times_the_largest_of_its_block(shape, dim):
    weight = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    weight.flat[0] = 0.0
    packed, scale = nf4.quantised(jnp.asarray(weight), dim)
    assert packed.dtype == jnp.uint8 and packed.size * 2 == weight.size
    last, read = np.moveaxis(weight, dim, -1), np.moveaxis(np.asarray(nf4.dequantised(packed, scale, dim)), dim, -1)
    scales, size = np.moveaxis(np.asarray(scale), dim, -1), nf4.block_size(last.shape[-1])
    for index in np.ndindex(last.shape[:-1]):
        for block in range(last.shape[-1] // size):
            place = slice(block * size, (block + 1) * size)
            largest = np.abs(last[index][place]).max()
            assert scales[index][block] == largest
            nearest = np.abs(last[index][place, None] / largest - nf4.CODE).argmin(-1)
            np.testing.assert_array_equal(read[index][place], nf4.CODE[nearest] * largest)


def test_what_was_read_is_written_as_the_same_bytes():
    packed, scale = nf4.quantised(jax.random.normal(jax.random.key(0), (4, 128)), -1)
    again, scale_again = nf4.quantised(nf4.dequantised(packed, scale, -1), -1)
    np.testing.assert_array_equal(again, packed)
    np.testing.assert_array_equal(scale_again, scale)


def test_blocks_have_64_entries_or_the_largest_divisor_below():
    assert [nf4.block_size(size) for size in (64, 128, 768, 80, 96, 8, 7)] == [64, 64, 64, 40, 48, 8, 7]


def block_of(adapter: str | None):
    return architectures.make(MODEL.__class__(**{**vars(MODEL), "adapter": adapter}), jax.random.key(0))


def test_a_layer_maps_by_what_its_bytes_stand_for_whole_and_in_parts():
    maps = {"up": (("embed", "mlp"), (16,), (192,)), "out": (("heads", "head_dim", "embed"), (2, 8), (16,))}
    for axes, inputs, outputs in maps.values():
        linear = layers.Linear(jax.random.key(1), inputs, outputs, axes, 0.02, bias=True)
        nf4.quantise(linear)
        x = jax.random.normal(jax.random.key(2), (5, *inputs))
        expected = np.tensordot(x, linear.whole_weight(), len(inputs))
        np.testing.assert_allclose(linear(x), expected, atol=1e-6)
    qkv = layers.Linear(jax.random.key(1), (16,), (2, 3, 8), ("embed", "heads", "qkv", "head_dim"), 0.02, bias=False)
    nf4.quantise(qkv)
    x = jax.random.normal(jax.random.key(2), (5, 16))
    np.testing.assert_allclose(qkv.part(x, 1), qkv(x)[:, :, 1], atol=1e-7)


@pytest.mark.parametrize("quantise", [nf4.quantise, int8.quantise], ids=["nf4", "int8"])
def test_the_backward_pass_keeps_bytes_and_no_floats_of_them(quantise):
    linear = layers.Linear(jax.random.key(1), (16,), (192,), ("embed", "mlp"), 0.02, bias=False)
    quantise(linear)
    _, pullback = jax.vjp(linear, jnp.ones((3, 16)))
    kept = [leaf for leaf in jax.tree.leaves(pullback) if getattr(leaf, "size", 0) >= 16 * 192]
    assert not [leaf for leaf in kept if leaf.dtype not in int8.IN_BYTES]
    (dx,) = pullback(jnp.ones((3, 192)))
    np.testing.assert_allclose(dx, np.broadcast_to(linear.whole_weight().sum(1), (3, 16)), atol=1e-5)


def test_every_matrix_of_the_layers_is_held_so_and_nothing_else():
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.split(block_of(ADAPTER))[1]))
    packed = {path[-2].key for path, leaf in leaves if leaf.dtype == jnp.uint8}
    assert packed == {"qkv", "out", "up", "down"}


def test_heads_without_blocks_are_refused():
    odd = ModelConfig(**{**vars(MODEL), "head_dim": 7, "adapter": ADAPTER})
    with pytest.raises(UserError, match="keeps qkv in blocks of at least 4 weights, and it has 7 in a row"):
        catalogue.adapter(ADAPTER).check(odd)
