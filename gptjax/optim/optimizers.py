"""Optimizers by name: what each makes of gradients, and what is made of that for every one of them alike.

An optimizer here is an optax transformation from gradients to updates that hold no learning rate: the train step multiplies
them by minus the rate that `schedule.py` computes on the host. To add one, write a function that returns its direction (see
Optimizer), and name it in OPTIMIZERS with how its rate goes with width. Weight decay and the factors of muP come after the
direction of every optimizer by themselves; what a parameter is to them, it states beside its shape (roles.py).
"""

import dataclasses
import functools
import math
import typing

import jax
import optax
from jax.tree_util import tree_leaves_with_path
from optax import contrib

from gptjax.config.fields import OptimConfig
from gptjax.errors import UserError, choose
from gptjax.models import architectures, parametrization
from gptjax.models.parametrization import RateRule
from gptjax.models.roles import by_role
from gptjax.optim import rounding


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """All that an optimizer brings.

    direction(OptimConfig, {path: Role}) returns a tuple of optax transformations, one after the other, from gradients to
    what the step goes against: optax's scale_by_..., which point along the gradient. Not optax.adam(...) and the like,
    which have a learning rate of their own and its sign: probe.py refuses them. Weight decay does not belong to it either.
    """

    direction: typing.Callable[[OptimConfig, dict], tuple[optax.GradientTransformation, ...]]
    rates: RateRule  # how its learning rate goes with width
    has_eps: bool = False  # whether gradients count against optim.eps, so that muP keeps the size they have at the base
    others: str | None = None  # the optimizer of all but hidden matrices; None: this one has them all
    only_float32: str | None = None  # why its moments cannot be stored in bfloat16; None: they can


def adam(config, roles):
    """Loshchilov and Hutter 2019, without the decay, which is decoupled from it."""
    return (optax.scale_by_adam(config.beta1, config.beta2, config.eps),)


def adafactor(config, roles):
    """Shazeer and Stern 2018: second moments factored, updates clipped to RMS 1. Without the paper's scaling by the
    parameter's RMS, so that the learning rate means what it means for AdamW."""
    return optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0)


def lion(config, roles):
    """Chen et al. 2023."""
    return (optax.scale_by_lion(config.beta1, config.beta2),)


def sgd(config, roles):
    """Stochastic gradient descent with momentum."""
    return (optax.trace(config.momentum),)


def muon(config, roles):
    """Jordan et al. 2024: the orthogonal matrix nearest to the averaged gradient. Queries, keys and values are taken apart.

    Updates have RMS 0.2, as AdamW's have (Liu et al. 2025, section 2.2), so both parts share the learning rate up to
    muon_lr_ratio.
    """
    dimensions = functools.partial(_muon_dimensions, roles)
    orthogonal = contrib.scale_by_muon(beta=config.momentum, weight_dimension_numbers=dimensions)

    def to_adamw_rms(updates, params):
        return jax.tree.map(_to_adamw_rms, updates, dimensions(updates))

    return orthogonal, optax.stateless(to_adamw_rms)


def _muon_dimensions(roles: dict, params):
    """Which dimensions of each hidden matrix are inputs and outputs; the rest count matrices.

    Raises ValueError that names a parameter which does not say.
    """

    def of(path, param):
        names = tuple(key.key for key in path)
        role = roles[names]
        if not role.inputs or not role.outputs:
            raise ValueError(
                f"parameter {'/'.join(names)} of shape {param.shape} is no stack of matrices [N, inputs, outputs]: say in its"
                " nnx.Param, by inputs=(...) and outputs=(...), which of a layer's dimensions are which."
            )
        return contrib.MuonDimensionNumbers(role.inputs, role.outputs)

    return jax.tree_util.tree_map_with_path(of, params)


def _to_adamw_rms(update, dims):
    """0.2 * sqrt(max(inputs, outputs)) times an orthogonal matrix has entries of RMS 0.2."""
    fans = [math.prod(update.shape[dim] for dim in side) for side in dims]
    return 0.2 * math.sqrt(max(fans)) * update


# Each gives a direction alone: the learning rate of the schedule, its sign, muP's factors and weight decay come after it.
OPTIMIZERS = {
    "adamw": Optimizer(adam, parametrization.ENTRYWISE, has_eps=True),
    "adafactor": Optimizer(adafactor, parametrization.ENTRYWISE, only_float32="factored moments take no room"),
    "lion": Optimizer(lion, parametrization.ENTRYWISE),
    "muon": Optimizer(muon, parametrization.ORTHOGONAL, others="adamw"),
    "sgd": Optimizer(sgd, parametrization.GRADIENT),
}


def make_optimizer(config, model, roles: dict | None = None) -> optax.GradientTransformation:
    """Of an OptimConfig, for a model of this ModelConfig. roles: {path: Role} of its parameters; None: as it states them.

    Raises UserError: an unknown name, or what does not go with it.
    """
    optimizer = _chosen(config, model)
    roles = architectures.roles(model) if roles is None else roles
    if optimizer.others is None:
        return _updates(optimizer, config, model, roles)
    others = _updates(OPTIMIZERS[optimizer.others], config, model, roles)
    parts = {
        config.name: _updates(optimizer, config, model, roles),
        optimizer.others: optax.chain(others, optax.scale(config.muon_lr_ratio)),
    }
    label = lambda role: config.name if role.is_hidden else optimizer.others  # noqa: E731
    return optax.partition(parts, lambda params: by_role(label, roles, params))


def _chosen(config, model) -> Optimizer:
    optimizer = choose(OPTIMIZERS, config.name, "optim.name")
    if model.parametrization == "completep" and not optimizer.rates.fits_depth:
        fitting = " or ".join(repr(name) for name, other in OPTIMIZERS.items() if other.rates.fits_depth)
        raise UserError(
            f"model.parametrization='completep' has no rule for optim.name={config.name!r}, whose updates shrink with the"
            f" gradients of deep models; use {fitting}, or model.parametrization='mup'."
        )
    if config.moment_dtype != "float32" and optimizer.only_float32:
        raise UserError(
            f"optim.moment_dtype={config.moment_dtype!r} is not for optim.name={config.name!r}, whose"
            f" {optimizer.only_float32}; use 'float32'."
        )
    return optimizer


def _updates(optimizer: Optimizer, config, model, roles: dict) -> optax.GradientTransformation:
    """The direction times what a ModelConfig's parametrisation makes of each parameter's learning rate, and weight decay."""
    gradients = functools.partial(parametrization.gradient_factors, model, roles)
    rates = functools.partial(parametrization.learning_rate_factors, model, optimizer.rates, roles)
    decay = optax.add_decayed_weights(config.weight_decay, mask=functools.partial(decay_mask, config, roles))
    before = _times(gradients) if optimizer.has_eps else ()
    by_depth = ()
    if config.layer_lr_decay is not None:
        from gptjax.optim import layer_rates

        by_depth = layer_rates.scale_by_depth(config, model, roles)
    of_critic = ()
    if model.critic is not None and config.critic_lr_ratio != 1:
        from gptjax.optim import layer_rates

        of_critic = layer_rates.scale_critic(config)
    return optax.chain(*before, *optimizer.direction(config, roles), *_times(rates), decay, *by_depth, *of_critic)


def _times(factors_of) -> tuple:
    """() or a transformation that multiplies each update by its factor. factors_of(updates): a tree, None where all are 1."""
    if factors_of({}) is None:
        return ()

    def multiply(updates, params):
        return jax.tree.map(lambda update, factor: factor * update, updates, factors_of(updates))

    return (optax.stateless(multiply),)


def decay_mask(config, roles: dict, params) -> dict:
    """True for each parameter that weight decay shrinks."""
    decayed = ("matrix", "embedding") if config.decay_embeddings else ("matrix",)
    return by_role(lambda role: role.kind in decayed, roles, params)


def check(config) -> None:
    """Raises UserError: a Config's optimizer is unknown, does not go with its model, or makes no direction of gradients."""
    _chosen(config.optim, config.model)
    from gptjax.optim import probe

    probe.probe(config.optim.name, OPTIMIZERS[config.optim.name])


def narrow_moments(opt_state, params, key):
    """An optimizer state with its moments, which have a parameter's name, rounded stochastically to bfloat16.

    Muon's coefficients and step counts stay as they are. Rounded to nearest, Adam's second moment could not shrink at
    beta2=0.999: a step's 0.1% is less than half the distance to the next bfloat16.
    """
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in tree_leaves_with_path(params)]
    return rounding.narrow(opt_state, key, lambda name: any(name.endswith("/" + param) for param in names))
