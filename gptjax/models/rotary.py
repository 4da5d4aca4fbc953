"""Rotary positions, and the names of what scales their rates.

Axes: B batch, L length, H heads, K head size.
"""

import jax.numpy as jnp

# Rates for contexts longer than a model was trained on, written NAME(PARAMETER=VALUE, ...).
SCALINGS = {
    "linear": "gptjax.models.rope_scaling:Linear",
    "dynamic": "gptjax.models.rope_scaling:Dynamic",
    "llama3": "gptjax.models.rope_scaling:Llama3",
    "yarn": "gptjax.models.rope_scaling:Yarn",
}


def rotate(x_BLHK, position_BL, theta: float, scaling=None):
    """Rotary position embedding (Su et al. 2021), pairing dimension i with i + K/2, angles in float32.

    scaling: of SCALINGS, which gives other rates.
    """
    half = x_BLHK.shape[-1] // 2
    plain = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    frequency = plain if scaling is None else scaling.rates(theta, half)
    angle = (position_BL[..., None].astype(jnp.float32) * frequency)[:, :, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    if scaling is not None:
        cos, sin = scaling.gain * cos, scaling.gain * sin
    a, b = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_BLHK.dtype)
