"""Learning rates that fall from the last layer down to the embeddings (optim.layer_lr_decay; Howard and Ruder 2018, section
3.2; in this form Clark et al. 2020, appendix A).

Of a model of N layers, layer l = 1..N learns at decay^(N - l) of the rate, and embeddings, which lie below the first, at
decay^N, also where one is the head too. Everything else, such as a head or the final norm, learns at the whole rate.
"""

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import tree_map_with_path


def scale_by_depth(config, model, roles: dict) -> tuple[optax.GradientTransformation, ...]:
    """What multiplies updates, weight decay's part of them too, by what each parameter has of the learning rate. roles:
    {path: roles.Role} of the parameters of a ModelConfig."""

    def multiply(updates, params):
        return tree_map_with_path(
            lambda path, update: update * factor(roles[tuple(key.key for key in path)], config, model, update.ndim),
            updates,
        )

    return (optax.stateless(multiply),)


def factor(role, config, model, ndim: int) -> jax.Array | float:
    """Share of the learning rate: of the stacked layers [N, 1, ...], one for each that is trained, else a number."""
    decay, layers = config.layer_lr_decay, model.n_layers
    if role.stacked:
        stack = range(layers) if role.layers is None else role.layers
        share_N = jnp.asarray([decay ** (layers - 1 - layer) for layer in stack], jnp.float32)
        return share_N.reshape(-1, *[1] * (ndim - 1))
    return decay**layers if role.kind == "embedding" else 1.0


def scale_critic(config) -> tuple[optax.GradientTransformation, ...]:
    """What multiplies the updates of a critic, weight decay's part of them too, by optim.critic_lr_ratio."""

    def multiply(updates, params):
        return tree_map_with_path(
            lambda path, update: update * config.critic_lr_ratio if path[0].key == "critic" else update, updates
        )

    return (optax.stateless(multiply),)
