"""Stochastic rounding: to a neighbour, right on average, from bits that no mesh changes."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from gptjax.optim import rounding

KEY = jax.random.key(0)
VALUES = np.concatenate([[0.1, -0.1, 1 + 2**-9, 1.999, -3.7e-20, 2.5e30, 1e-39, -1e-45], np.geomspace(1e-3, 30, 40)])
VALUES = VALUES.astype(np.float32)


def neighbours(x):
    """The bfloat16 numbers toward zero and away from it, in float64."""
    bits = np.float32(x).view(np.uint32) & np.uint32(0xFFFF0000)
    return np.float64(bits.view(np.float32)), np.float64((bits + np.uint32(0x10000)).view(np.float32))


def rounded(x, key=KEY):
    return np.asarray(jax.jit(rounding.stochastic)(x, key))


def test_every_result_is_one_of_the_two_neighbours_and_the_mean_is_the_value():
    count = 20_000
    drawn = np.float64(rounded(np.broadcast_to(VALUES, (count, len(VALUES)))))
    low, high = neighbours(VALUES)
    assert np.all((drawn == low) | (drawn == high))
    up = (np.float64(VALUES) - low) / (high - low)  # the probability that makes the mean exact
    mean_up = ((drawn - low) / (high - low)).mean(0)
    standard_error = np.sqrt(up * (1 - up) / count)
    assert np.all(abs(mean_up - up) <= 4 * standard_error)
    assert np.median(standard_error) < 0.004 < np.median(up)  # nearest would be off by up itself


def test_what_bfloat16_holds_is_unchanged_infinities_and_nan_too():
    every = np.arange(2**16, dtype=np.uint32) << 16
    result = rounded(every.view(np.float32)).view(np.uint16)
    number = ~np.isnan(every.view(np.float32))
    np.testing.assert_array_equal(result[number], (every >> 16)[number])
    assert number.sum() == 2**16 - 2 * 127 and np.isnan(result[~number].view(jnp.bfloat16)).all()


def test_nan_stays_nan_whatever_its_payload():
    payloads = np.repeat(np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0xFF80FFFF], np.uint32), 1000)
    assert np.isnan(np.float32(rounded(payloads.view(np.float32)))).all()


def test_bits_are_the_same_on_every_mesh_and_other_ones_for_every_leaf_and_key():
    tree = {"a": jnp.full((8, 512), 1 + 2**-8), "b": jnp.full((8, 512), 1 + 2**-8)}
    alone = jax.jit(rounding.narrow)(tree, KEY)
    for shape in ((8,), (2, 4)):
        mesh = jax.make_mesh(shape, ("x", "y")[: len(shape)], axis_types=(jax.sharding.AxisType.Auto,) * len(shape))
        place = NamedSharding(mesh, PartitionSpec(*mesh.axis_names))
        split = jax.jit(rounding.narrow, in_shardings=(place, None), out_shardings=place)(tree, KEY)
        for name in tree:
            np.testing.assert_array_equal(split[name], alone[name])
    other = jax.jit(rounding.narrow)(tree, jax.random.key(1))
    for x, y in ((alone["a"], alone["b"]), (alone["a"], other["a"])):
        assert 0.4 < np.mean(np.asarray(x) == np.asarray(y)) < 0.6


def test_only_the_chosen_leaves_are_narrowed_and_widening_gives_them_back():
    tree = {"mu": {"w": jnp.ones(3)}, "scale": jnp.full(2, 1 / 3), "count": jnp.int32(4)}
    narrow = rounding.narrow(tree, KEY, lambda name: name == "mu/w")
    assert {name: leaf.dtype for name, leaf in narrow.items() if name != "mu"} == {
        "scale": jnp.float32,
        "count": jnp.int32,
    }
    assert narrow["mu"]["w"].dtype == jnp.bfloat16
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all() and a.dtype == b.dtype, rounding.widen(narrow), tree))
