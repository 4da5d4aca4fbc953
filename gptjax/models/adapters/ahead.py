"""Keys and values that stand ahead of every row, of which each token sees all (prefix.py).

Axes: P of these, B rows, M keys of tokens, G key/value heads, K head size.
"""

import jax.numpy as jnp


def mask(mask, length: int):
    """A boolean mask [..., M] as one [..., P + M]."""
    return jnp.concatenate([jnp.ones((*mask.shape[:-1], length), bool), mask], axis=-1)


def joined(ahead, k_BMGK, v_BMGK):
    """Keys and values [B, P + M, G, K] of (keys, values) [P, G, K], the same for all rows, and of these."""
    rows = lambda a, b: jnp.broadcast_to(a, (b.shape[0], *a.shape)).astype(b.dtype)  # noqa: E731
    return tuple(jnp.concatenate([rows(a, b), b], axis=1) for a, b in zip(ahead, (k_BMGK, v_BMGK)))
