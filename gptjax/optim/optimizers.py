"""Optimizers by name, and the one rule that says which parameters are matrices, embeddings and vectors.

An optimizer here is an optax transformation from gradients to a direction; the train step multiplies it by minus
the learning rate, which `schedule.py` computes on the host. To add one, write a function of an OptimConfig and a
ModelConfig, name it in OPTIMIZERS, and say in parametrization.LEARNING_RATES how its rate goes with width.
"""

import math

import jax
import optax
from jax.tree_util import tree_leaves_with_path
from optax import contrib

from gptjax.errors import choose
from gptjax.models import parametrization
from gptjax.optim import rounding

KINDS = {  # last part of a parameter's path -> what it is
    "weight": "matrix",
    "head": "matrix",
    "token_embedding": "embedding",
    "position_embedding": "embedding",
    "bias": "vector",
    "gain": "vector",
}


def kinds(params) -> dict:
    """The tree of params with "matrix", "embedding" or "vector" for each. Raises ValueError for an unknown name."""

    def kind(path, _):
        name = "/".join(key.key for key in path)
        if path[-1].key not in KINDS:
            raise ValueError(
                f"parameter {name} has no kind: say in optim.KINDS whether {path[-1].key!r} is a matrix or not."
            )
        return KINDS[path[-1].key]

    return jax.tree_util.tree_map_with_path(kind, params)


def decay_mask(config, params) -> dict:
    """True for each parameter that weight decay shrinks."""
    decayed = ("matrix", "embedding") if config.decay_embeddings else ("matrix",)
    return jax.tree.map(lambda kind: kind in decayed, kinds(params))


def _times(factors_of) -> tuple:
    """() or a transformation that multiplies each update by its factor. factors_of(updates): a tree, None where all are 1."""
    if factors_of({}) is None:
        return ()

    def multiply(updates, params):
        return jax.tree.map(lambda update, factor: factor * update, updates, factors_of(updates))

    return (optax.stateless(multiply),)


def _learning_rates(model, optimizer: str) -> tuple:
    """What a ModelConfig's parametrisation makes of the learning rate of each parameter. Decay comes after it."""
    return _times(lambda updates: parametrization.learning_rate_factors(model, optimizer, updates))


def _decay(config):
    return optax.add_decayed_weights(config.weight_decay, mask=lambda params: decay_mask(config, params))


def adamw(config, model):
    """Loshchilov and Hutter 2019: decay decoupled from the gradient statistics."""
    gradients = _times(lambda updates: parametrization.gradient_factors(model, updates))
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    return optax.chain(*gradients, adam, *_learning_rates(model, "adamw"), _decay(config))


def adafactor(config, model):
    """Shazeer and Stern 2018: second moments factored, updates clipped to RMS 1. Without the paper's scaling by the
    parameter's RMS, so that the learning rate means what it means for AdamW."""
    direction = (optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
    return optax.chain(*direction, *_learning_rates(model, "adafactor"), _decay(config))


def lion(config, model):
    """Chen et al. 2023."""
    lion = optax.scale_by_lion(config.beta1, config.beta2)
    return optax.chain(lion, *_learning_rates(model, "lion"), _decay(config))


def sgd(config, model):
    return optax.chain(optax.trace(config.momentum), *_learning_rates(model, "sgd"), _decay(config))


def muon(config, model):
    """Jordan et al. 2024 on the blocks' matrices, AdamW on embeddings, head and vectors.

    Updates have RMS 0.2, as AdamW's have (Liu et al. 2025, section 2.2), so both parts share the learning rate up to
    muon_lr_ratio. Queries, keys and values are orthogonalised apart. Raises ValueError: see `_muon_dimensions`.
    """

    def labels(params):
        def label(path, _):
            return "muon" if parametrization.is_hidden([key.key for key in path]) else "adamw"

        return jax.tree_util.tree_map_with_path(label, params)

    orthogonal = contrib.scale_by_muon(beta=config.momentum, weight_dimension_numbers=_muon_dimensions)
    rates = _learning_rates(model, "muon")
    matrices = optax.chain(orthogonal, optax.stateless(_to_adamw_rms), *rates, _decay(config))
    others = optax.chain(adamw(config, model), optax.scale(config.muon_lr_ratio))
    return optax.partition({"muon": matrices, "adamw": others}, labels)


MUON_DIMENSIONS = {  # (module, name) of a stacked block matrix -> which are inputs and outputs; the rest count matrices
    ("attention", "qkv"): (1, (2, 4)),  # [N, D, G, R + 2, K]: one matrix D -> G * K for every slot of R + 2
    ("attention", "out"): ((1, 2), 3),  # [N, H, K, D]
    ("mlp", "up"): (1, -1),  # [N, D, F], or [N, D, 2, F] with a gate
    ("input", "weight"): (1, 3),  # an LSTM's [N, D, 4, D]: one matrix D -> D for every gate
    ("recurrent", "weight"): (1, 3),
}


def _muon_dimensions(params):
    """Of each stacked block matrix; what MUON_DIMENSIONS does not name is one matrix a layer, [N, inputs, outputs].

    Raises ValueError: it has not these three dimensions, so that nobody knows which are which.
    """

    def of(path, param):
        names = [key.key for key in path]
        if tuple(names[1:3]) not in MUON_DIMENSIONS and param.ndim != 3:
            raise ValueError(
                f"parameter {'/'.join(names)} of shape {param.shape} is no stack of matrices [N, inputs, outputs]: say in"
                f" optim.MUON_DIMENSIONS, at {tuple(names[1:3])}, which dimensions are inputs and outputs."
            )
        inputs, outputs = MUON_DIMENSIONS.get(tuple(names[1:3]), (1, 2))
        return contrib.MuonDimensionNumbers(inputs, param.ndim - 1 if outputs == -1 else outputs)

    return jax.tree_util.tree_map_with_path(of, params)


def _to_adamw_rms(updates, params):
    """0.2 * sqrt(max(inputs, outputs)) times an orthogonal matrix has entries of RMS 0.2."""

    def scale(update, dims):
        fans = [math.prod(update.shape[d] for d in ([dim] if isinstance(dim, int) else dim)) for dim in dims]
        return 0.2 * math.sqrt(max(fans)) * update

    return jax.tree.map(scale, updates, _muon_dimensions(updates))


OPTIMIZERS = {"adamw": adamw, "adafactor": adafactor, "lion": lion, "muon": muon, "sgd": sgd}


def make_optimizer(config, model) -> optax.GradientTransformation:
    """Of an OptimConfig, for a model of this ModelConfig. Raises UserError for an unknown name."""
    return choose(OPTIMIZERS, config.name, "optim.name")(config, model)


def narrow_moments(opt_state, params, key):
    """An optimizer state with its moments, which have a parameter's name, rounded stochastically to bfloat16.

    Muon's coefficients and step counts stay as they are. Rounded to nearest, Adam's second moment could not shrink at
    beta2=0.999: a step's 0.1% is less than half the distance to the next bfloat16.
    """
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in tree_leaves_with_path(params)]
    return rounding.narrow(opt_state, key, lambda name: any(name.endswith("/" + param) for param in names))
