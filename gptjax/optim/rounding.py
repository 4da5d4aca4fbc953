"""Stochastic rounding to bfloat16, so that half the bytes still hold a run: parameters and optimizer moments.

A step changes a parameter by a thousandth of it or less, and a moment with beta2=0.999 too, while neighbouring
bfloat16 numbers are 0.4% to 0.8% apart: rounded to nearest, most changes would be lost, all in the same direction.
Rounded up with the probability that makes the mean exact, none are lost on average (Gupta et al. 2015, section 3).
Random bits come from a key folded with the leaf's name: the same on every mesh, other ones for every leaf.
"""

import zlib

import jax
import jax.numpy as jnp


def stochastic(x, key):
    """Float32 x in bfloat16: one of its two neighbours, drawn so that the mean is x.

    What bfloat16 holds stays as it is, infinities and NaN too. Beyond the largest bfloat16 (3.39e38) the upper
    neighbour is infinity, as it is for rounding to nearest.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    # The upper 16 bits are the bfloat16 toward zero; a uniform number below 2**16 carries into them as often as it
    # should.
    carried = (bits + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)) >> 16
    rounded = jax.lax.bitcast_convert_type(carried.astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def narrow(tree, key, chosen=lambda name: True):
    """tree with the chosen leaves, by their names such as "mu/blocks/mlp/up/weight", in bfloat16."""

    def leaf(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        wide = x.dtype == jnp.float32  # frozen bytes stay
        return stochastic(x, jax.random.fold_in(key, zlib.crc32(name.encode()))) if wide and chosen(name) else x

    return jax.tree_util.tree_map_with_path(leaf, tree)


def widen(tree, dtype=jnp.float32):
    """tree with its bfloat16 leaves in dtype; the others as they are."""
    return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == jnp.bfloat16 else x, tree)
