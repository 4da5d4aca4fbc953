"""Where a cache of keys and values has its dimensions, and how one layer of it is read and written.

Axes: N layers, M cached places, G key/value heads, B rows, K head size, L new places.
"""

import jax
import jax.numpy as jnp

# Dimensions of a cache of keys or values in the order in which they lie. Stacked, the place that a token writes is outside:
# XLA for TPUs would put a cache in any other order into this one when a call of decode begins, and back when it ends.
# Layers apart are a CPU's: there the places of a head lie together, as its matrix products read them; with the heads of a
# place together every token would copy the cache (a fifth of the CPU time of a GPT of 6 x 384, 8 rows of 256 tokens).
STACKED, APART = "NMGBK", "BGMK"


def order(cache) -> str:
    """Of the dimensions of a cache of keys or values."""
    return APART if cache.ndim == len(APART) else STACKED


def read(cache, layer):
    """Keys or values [B, M, G, K] of a layer, or of a cache that is one layer's. Nothing is moved: XLA reads them as they
    lie."""
    dims = order(cache).removeprefix("N")
    return (cache if layer is None else cache[layer]).transpose([dims.index(dim) for dim in "BMGK"])


def written(cache, new_BLGK, start, layer):
    """A cache of keys or values with those of tokens at places start, start+1, ... in it."""
    dims, at_layer = order(cache).removeprefix("N"), () if layer is None else (layer,)
    if jnp.ndim(start) == 0:
        new = new_BLGK.transpose(["BMGK".index(dim) for dim in dims])
        at = (*at_layer, *(start if dim == "M" else 0 for dim in dims))
        return jax.lax.dynamic_update_slice(cache, new if layer is None else new[None], at)
    rows, length = new_BLGK.shape[:2]
    places = {"B": jnp.arange(rows)[:, None], "M": start[:, None] + jnp.arange(length)}
    at = (*at_layer, *(places.get(dim, slice(None)) for dim in dims))
    return cache.at[at].set(new_BLGK)
