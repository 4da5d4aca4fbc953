"""The head of a task beside that of the language model: a linear map of final activations (config/task_heads.py).

Axes: D width, O outputs of the head.
"""

import jax.numpy as jnp
from flax import nnx

from gptjax.config import task_heads
from gptjax.models import layers

STREAM = (
    0x7EAD  # folded into the key of the initialisation: a model's other parameters are the same with and without a head
)


class Head(nnx.Module):
    """config: a ModelConfig with a task_head. It starts at N(0, init_std) with a bias of 0 (Radford et al. 2018 and their
    released fine-tuning code: 0.02)."""

    def __init__(self, config, key):
        about = task_heads.of(config)
        weight_DO = layers.normal(key, (config.d_model, about.outputs), config.init_std)
        self.weight = nnx.Param(weight_DO, axes=("embed", "outputs"), kind="matrix")
        bias_O = jnp.zeros(about.outputs, jnp.float32)
        self.bias = nnx.Param(bias_O, axes=("outputs",), kind="vector") if about.bias else None

    def __call__(self, x):
        """Float32 [..., O] of final activations [..., D]."""
        y = jnp.einsum("...d,do->...o", x, self.weight[...].astype(x.dtype), preferred_element_type=jnp.float32)
        return y if self.bias is None else y + self.bias[...].astype(jnp.float32)
