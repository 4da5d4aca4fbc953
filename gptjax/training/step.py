"""One optimizer step: a pure function (state, batch, learning rate) -> (state, metrics).

The loss is one of losses.py, the parameters that are trained are those of trainable.py, and program.py lays a step out on a
mesh and compiles it. Axes: S steps of one call, B sequences, G microbatches.
"""

import typing

import jax
import jax.numpy as jnp
import optax

from gptjax.config import catalogue
from gptjax.models import architectures, layers
from gptjax.optim import optimizers, rounding
from gptjax.parallel import sharding
from gptjax.training import losses, trainable

# One random stream for each purpose, folded into train.seed.
INIT_STREAM, DROPOUT_STREAM, PARAM_ROUNDING_STREAM, MOMENT_ROUNDING_STREAM = range(4)


class TrainState(typing.NamedTuple):
    step: jax.Array  # int32, optimizer steps taken
    params: dict
    opt_state: typing.Any  # of the parameters that are trained
    ema: dict | None  # exponential moving average of params, if the config keeps one
    skips: dict | None = None  # of updates left out, if the config leaves any out (skipping.py)
    importance: dict | None = None  # of an adapter's ranks, if it gives some up (rank_budget.py)


def init_state(config, kernel: str) -> TrainState:
    """The state before the first step, from train.seed alone: the same on every mesh."""
    key = jax.random.fold_in(jax.random.key(config.train.seed), INIT_STREAM)
    params = architectures.split(architectures.make(config.model, key, kernel))[1]
    ema = params if config.optim.ema_decay is not None else None
    opt_state = optimizer_of(config).init(trainable.split(params, config)[0])
    skips = None
    if config.optim.skip != "none":
        from gptjax.optim import skipping

        skips = skipping.initial(config.optim)
    importance = None
    if gives_up_ranks(config):
        from gptjax.optim import rank_budget

        importance = rank_budget.initial(trainable.split(params, config)[0])
    return store(TrainState(jnp.zeros((), jnp.int32), params, opt_state, ema, skips, importance), config)


def gives_up_ranks(config) -> bool:
    """Whether the adapter of a Config loses ranks while it is trained."""
    return config.model.adapter is not None and catalogue.adapter(config.model.adapter).allocates_ranks


def optimizer_of(config) -> optax.GradientTransformation:
    """Of the parameters that are trained."""
    return optimizers.make_optimizer(config.optim, config.model, trainable.roles(config))


def store(state: TrainState, config) -> TrainState:
    """A state as it is kept between steps: parameters and moments in the dtypes that the config stores them in."""
    params, opt_state = state.params, state.opt_state
    if config.optim.moment_dtype == "bfloat16":
        opt_state = optimizers.narrow_moments(opt_state, params, stream(config, MOMENT_ROUNDING_STREAM, state.step))
    if config.optim.param_dtype == "bfloat16":
        params = rounding.narrow(params, stream(config, PARAM_ROUNDING_STREAM, state.step))
    return state._replace(params=params, opt_state=opt_state)


def stream(config, number: int, step):
    """The key of one purpose at one step."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.train.seed), number), step)


def accumulate(params, batch: dict, key, *, graph, config, param_spec):
    """(gradient of the sum, loss sum, weight sum, numbers) over a batch, microbatch by microbatch. The gradient is of the
    parameters that are trained."""
    count, loss = config.train.microbatches, losses.of(config)
    trained, frozen = trainable.split(params, config)
    spec, _ = trainable.split(param_spec, config)

    def of_trained(trained, batch, key):
        return loss(trainable.join(trained, frozen), batch, key, graph=graph, config=config)

    grad = jax.value_and_grad(of_trained, has_aux=True)

    def add(carry, microbatch):
        index, part = microbatch
        (_, (sums, numbers)), grads = grad(trained, part, jax.random.fold_in(key, index))
        noise = (square_norm(place(grads, spec)), sums[1]) if config.train.log_noise_scale else ()
        total = jax.tree.map(jnp.add, carry, (grads, sums))
        return (place(total[0], spec), total[1]), (numbers, noise)

    # Row r goes to microbatch r % count: so no row leaves its device.
    parts = jax.tree.map(lambda a: a.reshape(a.shape[0] // count, count, *a.shape[1:]).swapaxes(0, 1), batch)
    if count == 1:
        (_, (sums, numbers)), grads = grad(trained, batch, jax.random.fold_in(key, 0))
        return place(grads, spec), *sums, {name: number.value for name, number in numbers.items()}
    zeros = (jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), trained), (jnp.zeros(()), jnp.zeros(())))
    (grads, sums), (numbers_G, noise_G) = jax.lax.scan(add, zeros, (jnp.arange(count), parts))
    noise = {}
    if config.train.log_noise_scale:
        from gptjax.optim import noise_scale

        noise = noise_scale.estimates(*noise_G, square_norm(grads))
    return grads, *sums, noise | {name: number_G.merged().value for name, number_G in numbers_G.items()}


def square_norm(tree):
    """float32: the sum of the squares of all entries."""
    return sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree))


def place(tree, spec):
    """tree laid out by a tree of PartitionSpecs on the mesh in context; as it is where there is none."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, spec)


def train_step(state: TrainState, batch: dict, learning_rate, **program):
    """The state after one step and its metrics: loss (nats/token), norms, and per-layer numbers if logged."""
    grads, metrics = mean_gradient(state, batch, **program)
    state, norms = update(state, grads, learning_rate, config=program["config"], loss=metrics["loss"])
    return state, metrics | norms


def mean_gradient(state: TrainState, batch: dict, *, graph, config, param_spec):
    """The float32 gradient of the mean over the batch's tokens, and the loss (nats/token) with per-layer numbers.

    It is taken in the compute dtype, also of parameters stored in bfloat16: with bfloat16 matmuls nothing is lost,
    and no float32 copy of the parameters is made.
    """
    params = rounding.widen(state.params, layers.DTYPES[config.model.dtype])
    key = stream(config, DROPOUT_STREAM, state.step)
    grads, loss_sum, count, numbers = accumulate(params, batch, key, graph=graph, config=config, param_spec=param_spec)
    return jax.tree.map(lambda g: g / count, grads), {"loss": loss_sum / count, **numbers}


def update(state: TrainState, grads, learning_rate, *, config, loss=None):
    """The state after the optimizer's step along grads, and the norms of gradient, update and parameters.

    grads: of the parameters that are trained; the others stay bit for bit. loss: of the step, by which a state that has
    `skips` may leave the update out.
    """
    grad_norm = optax.tree.norm(grads)
    if config.optim.clip_norm is not None:
        shrink = jnp.minimum(1.0, config.optim.clip_norm / jnp.maximum(grad_norm, 1e-30))
        grads = jax.tree.map(lambda g: g * shrink, grads)
    before = state._replace(opt_state=sharding.to_device(state.opt_state, config.mesh))
    trained, frozen = trainable.split(state.params, config)
    params, opt_state = rounding.widen(trained), rounding.widen(before.opt_state)
    direction, opt_state = optimizer_of(config).update(grads, opt_state, params)
    updates = jax.tree.map(lambda d: -learning_rate * d, direction)
    params = optax.apply_updates(params, updates)
    importance, ranks = state.importance, {}
    if importance is not None:
        from gptjax.optim import rank_budget

        importance, params, ranks = rank_budget.allocate(importance, params, grads, state.step + 1, config)
    ema = None if state.ema is None else average(state.ema, params, config)
    norms = {
        "grad_norm": grad_norm,
        "update_norm": optax.tree.norm(updates),
        "param_norm": optax.tree.norm(trainable.join(params, trainable.floats(rounding.widen(frozen)))),
        **ranks,
    }
    state = store(TrainState(state.step + 1, params, opt_state, ema, importance=importance), config)
    state = state._replace(params=trainable.join(state.params, frozen))
    if before.skips is not None:
        state, norms = take_or_leave(before, state, norms, loss, config)
    return state._replace(opt_state=sharding.to_host(state.opt_state, config.mesh)), norms


def average(ema: dict, trained: dict, config) -> dict:
    """The moving average after a step to these parameters. Frozen ones stand in it as they are, so that it is a model."""
    decay = config.optim.ema_decay
    moving, frozen = trainable.split(ema, config)
    moving = jax.tree.map(lambda average, p: decay * average + (1 - decay) * p, moving, trained)
    return trainable.join(moving, frozen)


def take_or_leave(before: TrainState, after: TrainState, norms: dict, loss, config):
    """(after, norms) of an update that is made; of one left out, before with the step counted. A select of each array,
    which XLA puts into the update itself: neither branch is a program of its own, and nothing is kept twice."""
    from gptjax.optim import skipping

    verdict = skipping.judge(before.skips, loss, norms["grad_norm"], config.optim)
    kept = jax.tree.map(lambda new, old: jnp.where(verdict.taken, new, old), after, before._replace(skips=None))
    norms |= {
        "update_norm": jnp.where(verdict.taken, norms["update_norm"], 0.0),
        "param_norm": optax.tree.norm(trainable.floats(rounding.widen(kept.params))),
    }
    return kept._replace(step=after.step, skips=verdict.skips), norms | verdict.numbers


def train_call(state: TrainState, batch: dict, learning_rate_S, **program):
    """The S steps of one dispatch. batch: arrays [S, B, ...]. Returns the state and metrics stacked [S]."""

    def step(state, inputs):
        return train_step(state, *inputs, **program)

    # What waits on the host has to be known as such before the scan, also where shapes stand for the state.
    state = state._replace(opt_state=sharding.to_host(state.opt_state, program["config"].mesh))
    return jax.lax.scan(step, state, (batch, learning_rate_S))
