"""What tells a policy, at each token, how much reward is still to come (model.critic): parameters beside the model's own, in
one tree under "critic".

    shared      one linear map of the policy's final activations (Ziegler et al. 2019, section 2.2)
    separate    a whole second model with such a map (Ouyang et al. 2022, appendix C.4), of the policy's shape where its
                parameters don't say otherwise

A run with a critic is read without it: text, evaluation and export are the policy's. Axes: B rows, L tokens, D width.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.errors import UserError
from gptjax.models import architectures

STREAM = 0xC417  # folded into the key of the initialisation: the policy is the same with and without a critic
POLICY_ALONE = {"critic": None, "task_head": None, "adapter": None}


class Value(nnx.Module):
    """A number of each activation. It starts at 0 everywhere: what has learnt nothing expects nothing."""

    def __init__(self, width: int):
        self.weight = nnx.Param(jnp.zeros((width, 1), jnp.float32), axes=("embed", "outputs"), kind="matrix")
        self.bias = nnx.Param(jnp.zeros(1, jnp.float32), axes=("outputs",), kind="vector")

    def __call__(self, x_BLD):
        """Float32 [B, L]."""
        weight_D1 = self.weight[...].astype(x_BLD.dtype)
        value_BL1 = jnp.einsum("bld,do->blo", x_BLD, weight_D1, preferred_element_type=jnp.float32)
        return (value_BL1 + self.bias[...].astype(jnp.float32))[..., 0]


class Critic(nnx.Module):
    """model: the second model; None: the policy's activations are read."""

    def __init__(self, value: Value, model=None):
        self.value, self.model = value, model

    def head(self, x_BLD, head_VD, target_BL, **options):
        """What LanguageModel.token_loss makes of final activations."""
        return (self.value(x_BLD),)


@dataclasses.dataclass(frozen=True)
class Shared:
    def attach(self, model, config, key) -> None:
        """Adds `critic` to a model of a ModelConfig. key: of the initialisation."""
        model.critic = Critic(Value(config.d_model))

    def check(self, config) -> None:
        """Raises UserError: this critic does not go with a ModelConfig."""

    def trunk(self, config):
        """The ModelConfig of the second model; None: there is none."""
        return None


@dataclasses.dataclass(frozen=True)
class Separate:
    """n_layers, d_model, n_heads, n_kv_heads, head_dim, d_ff: of the critic; None: the policy's."""

    n_layers: int | None = None
    d_model: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    head_dim: int | None = None
    d_ff: int | None = None

    def attach(self, model, config, key) -> None:
        trunk = self.trunk(config)
        made = architectures.make(trunk, jax.random.fold_in(key, STREAM), model.kernel)
        model.critic = Critic(Value(trunk.d_model), made)

    def check(self, config) -> None:
        if config.parametrization != "standard":
            raise UserError(
                f"model.parametrization={config.parametrization!r} is of one model's width, and a critic is another; use"
                " 'standard', or model.critic='shared'."
            )

    def trunk(self, config):
        """It reads the policy's tokens and has no output matrix."""
        shape = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(config, tied_head=True, **POLICY_ALONE, **shape)
