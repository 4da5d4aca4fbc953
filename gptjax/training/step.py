"""One optimizer step: a pure function (state, batch, learning rate) -> (state, metrics), and how it is laid out.

`build` turns a config and a mesh into a Program: the state's shapes and shardings and the jitted functions that
create a state, train it and evaluate it. Shardings are always given: left to itself, jit would replicate the
optimizer state and the gradients. Axes: S steps of one call, B sequences, T = L + 1 tokens, G microbatches.
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from gptjax import flops
from gptjax.models import architectures, layers
from gptjax.optim import noise_scale, optimizers, rounding, skipping
from gptjax.parallel import compiling, numerics, pipeline, sharding, tpu

# One random stream for each purpose, folded into train.seed.
INIT_STREAM, DROPOUT_STREAM, PARAM_ROUNDING_STREAM, MOMENT_ROUNDING_STREAM = range(4)


class TrainState(typing.NamedTuple):
    step: jax.Array  # int32, optimizer steps taken
    params: dict
    opt_state: typing.Any
    ema: dict | None  # exponential moving average of params, if the config keeps one
    skips: dict | None = None  # of updates left out, if the config leaves any out (skipping.py)


def init_state(config, kernel: str) -> TrainState:
    """The state before the first step, from train.seed alone: the same on every mesh."""
    key = jax.random.fold_in(jax.random.key(config.train.seed), INIT_STREAM)
    params = architectures.split(architectures.make(config.model, key, kernel))[1]
    ema = params if config.optim.ema_decay is not None else None
    opt_state = optimizers.make_optimizer(config.optim, config.model).init(params)
    return store(TrainState(jnp.zeros((), jnp.int32), params, opt_state, ema, skipping.initial(config.optim)), config)


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


def batch_loss(params, batch: dict, key, *, graph, config):
    """What is minimised, summed over the tokens of a batch, and ((loss sum, weight sum), per-layer numbers)."""
    weight_BL = batch["weight_BL"]
    loss_BL, log_normaliser_BL, numbers = nnx.merge(graph, params).token_loss(
        batch["token_BT"],
        chunks=config.train.vocab_chunks,
        key=key if config.model.max_dropout else None,
        log_activations=config.train.log_activations,
        schedule=pipeline.schedule(config.mesh),
        **masking(batch),
    )
    loss_sum = jnp.sum(loss_BL * weight_BL)
    objective = loss_sum
    if config.train.z_loss:  # Chowdhery et al. 2022, section 5
        objective = objective + config.train.z_loss * jnp.sum(jnp.square(log_normaliser_BL) * weight_BL)
    return objective, ((loss_sum, weight_BL.sum()), numbers)


def masking(batch: dict) -> dict:
    """The model's arguments beside tokens: what keeps packed documents apart, what is seen by earlier tokens and what
    is predicted instead of the next one, as far as the batch has them."""
    given = {name: batch[name] for name in ("position_BL", "prefix_BL", "target_BL") if name in batch}
    return given | ({"segment_BL": batch["segment_BT"][:, :-1]} if "segment_BT" in batch else {})


def accumulate(params, batch: dict, key, *, graph, config, param_spec):
    """(gradient of the sum, loss sum, weight sum, numbers) over a batch, microbatch by microbatch."""
    count = config.train.microbatches
    grad = jax.value_and_grad(functools.partial(batch_loss, graph=graph, config=config), has_aux=True)

    def add(carry, microbatch):
        index, part = microbatch
        (_, (sums, numbers)), grads = grad(params, part, jax.random.fold_in(key, index))
        if config.train.log_noise_scale:
            numbers |= {"square": square_norm(place(grads, param_spec)), "weight": sums[1]}
        total = jax.tree.map(jnp.add, carry, (grads, sums))
        return (place(total[0], param_spec), total[1]), numbers

    # Row r goes to microbatch r % count: so no row leaves its device.
    parts = jax.tree.map(lambda a: a.reshape(a.shape[0] // count, count, *a.shape[1:]).swapaxes(0, 1), batch)
    if count == 1:
        (_, (sums, numbers)), grads = grad(params, batch, jax.random.fold_in(key, 0))
        return place(grads, param_spec), *sums, numbers
    zeros = (jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params), (jnp.zeros(()), jnp.zeros(())))
    (grads, sums), numbers_GN = jax.lax.scan(add, zeros, (jnp.arange(count), parts))
    noise = {}
    if config.train.log_noise_scale:
        noise = noise_scale.estimates(numbers_GN.pop("square"), numbers_GN.pop("weight"), square_norm(grads))
    return grads, *sums, noise | {name: REDUCE_NUMBERS[name](value) for name, value in numbers_GN.items()}


def square_norm(tree):
    """float32: the sum of the squares of all entries."""
    return sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree))


REDUCE_NUMBERS = {  # of per-layer numbers [G, N] over microbatches
    "activation_rms": lambda rms_GN: jnp.sqrt(jnp.mean(jnp.square(rms_GN), axis=0)),
    "max_attention_logit": lambda logit_GN: logit_GN.max(axis=0),
}


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

    loss: of the step, by which a state that has `skips` may leave the update out.
    """
    grad_norm = optax.tree.norm(grads)
    if config.optim.clip_norm is not None:
        shrink = jnp.minimum(1.0, config.optim.clip_norm / jnp.maximum(grad_norm, 1e-30))
        grads = jax.tree.map(lambda g: g * shrink, grads)
    before = state._replace(opt_state=sharding.to_device(state.opt_state, config.mesh))
    params, opt_state = rounding.widen(state.params), rounding.widen(before.opt_state)
    direction, opt_state = optimizers.make_optimizer(config.optim, config.model).update(grads, opt_state, params)
    updates = jax.tree.map(lambda d: -learning_rate * d, direction)
    params = optax.apply_updates(params, updates)
    ema = state.ema
    if ema is not None:
        decay = config.optim.ema_decay
        ema = jax.tree.map(lambda average, p: decay * average + (1 - decay) * p, ema, params)
    norms = {
        "grad_norm": grad_norm,
        "update_norm": optax.tree.norm(updates),
        "param_norm": optax.tree.norm(params),
    }
    state = store(TrainState(state.step + 1, params, opt_state, ema), config)
    if before.skips is not None:
        state, norms = take_or_leave(before, state, norms, loss, config)
    return state._replace(opt_state=sharding.to_host(state.opt_state, config.mesh)), norms


def take_or_leave(before: TrainState, after: TrainState, norms: dict, loss, config):
    """(after, norms) of an update that is made; of one left out, before with the step counted. A select of each array,
    which XLA puts into the update itself: neither branch is a program of its own, and nothing is kept twice."""
    verdict = skipping.judge(before.skips, loss, norms["grad_norm"], config.optim)
    kept = jax.tree.map(lambda new, old: jnp.where(verdict.taken, new, old), after, before._replace(skips=None))
    norms |= {
        "update_norm": jnp.where(verdict.taken, norms["update_norm"], 0.0),
        "param_norm": optax.tree.norm(rounding.widen(kept.params)),
    }
    return kept._replace(step=after.step, skips=verdict.skips), norms | verdict.numbers


def train_call(state: TrainState, batch: dict, learning_rate_S, **program):
    """The S steps of one dispatch. batch: arrays [S, B, ...]. Returns the state and metrics stacked [S]."""

    def step(state, inputs):
        return train_step(state, *inputs, **program)

    # What waits on the host has to be known as such before the scan, also where shapes stand for the state.
    state = state._replace(opt_state=sharding.to_host(state.opt_state, program["config"].mesh))
    return jax.lax.scan(step, state, (batch, learning_rate_S))


def eval_call(params, batch: dict, *, graph, config):
    """(loss sum, weight sum) of each row of a batch, both [B] float32. Dropout is off."""
    return weighted_loss(params, batch, graph=graph, config=config).sum(-1), batch["weight_BL"].sum(-1)


def weighted_loss(params, batch: dict, *, graph, config):
    """float32 [B, L]: nats of each token of a batch times its weight. Dropout is off."""
    loss_BL, _, _ = nnx.merge(graph, params).token_loss(
        batch["token_BT"],
        chunks=config.train.vocab_chunks,
        schedule=pipeline.schedule(config.mesh),
        **masking(batch),
    )
    return loss_BL * batch["weight_BL"]


@dataclasses.dataclass(frozen=True)
class Program:
    """A config on a mesh, ready to run inside `numerics.on_mesh(mesh)`."""

    mesh: typing.Any
    graph: typing.Any
    abstract_state: TrainState  # ShapeDtypeStructs
    state_sharding: TrainState  # NamedShardings
    train_batch_sharding: typing.Any  # of arrays [S, B, ...]
    eval_batch_sharding: typing.Any  # of arrays [B, ...]
    init: typing.Callable  # () -> TrainState, each leaf created where it lives
    train: typing.Callable  # (state, batch, learning_rate_S) -> (state, metrics); the state is donated
    evaluate: typing.Callable  # (params, batch) -> (loss_sum_B, weight_sum_B)
    weighted_loss: typing.Callable  # (params, batch) -> loss_BL


@numerics.settings()
def build(config, mesh, kernel: str) -> Program:
    """The Program of a config with vocab_size set. Nothing is compiled or allocated yet.

    Raises UserError: see `flops.check_counts`.
    """
    graph, params, axes = architectures.abstract(config.model, kernel)
    flops.check_counts(config.model, sum(leaf.size for leaf in jax.tree.leaves(params)))
    abstract_state = jax.eval_shape(functools.partial(init_state, config, kernel))
    state_sharding = shard_state(config, abstract_state, params, axes, mesh)
    param_spec = jax.tree.map(lambda s: s.spec, state_sharding.params)
    replicated = sharding.replicated(mesh)
    train_batch, eval_batch = sharding.batch_sharding(mesh, leading=1), sharding.batch_sharding(mesh)
    functions = {"graph": graph, "config": config}
    return Program(
        mesh=mesh,
        graph=graph,
        abstract_state=abstract_state,
        state_sharding=state_sharding,
        train_batch_sharding=train_batch,
        eval_batch_sharding=eval_batch,
        init=compiling.jit(
            functools.partial(init_state, config, kernel),
            out_shardings=state_sharding,
            compiler_options=init_compiler_options(mesh),
        ),
        train=compiling.jit(
            functools.partial(train_call, param_spec=param_spec, **functions),
            in_shardings=(state_sharding, train_batch, replicated),
            out_shardings=(state_sharding, replicated),
            donate_argnums=0,
            compiler_options=train_compiler_options(mesh),
        ),
        evaluate=compiling.jit(
            functools.partial(eval_call, **functions),
            in_shardings=(state_sharding.params, eval_batch),
            out_shardings=replicated,
        ),
        weighted_loss=compiling.jit(
            functools.partial(weighted_loss, **functions),
            in_shardings=(state_sharding.params, eval_batch),
            out_shardings=replicated,
        ),
    )


def init_compiler_options(mesh) -> dict | None:
    """LLVM spends most of a small run's start on the random numbers of its initialisation; with -O1 they are the same
    bits, as fast, and compiled in a third of the time."""
    on_cpu = isinstance(mesh, jax.sharding.Mesh) and mesh.devices.flat[0].platform == "cpu"
    return {"xla_backend_optimization_level": 1} if on_cpu else None


def train_compiler_options(mesh) -> dict | None:
    """Those of the mesh's kind of TPU; None elsewhere, and where shapes stand for devices."""
    if not isinstance(mesh, jax.sharding.Mesh) or mesh.devices.flat[0].platform != "tpu":
        return None
    return tpu.compiler_options(mesh.devices.flat[0].device_kind)


def shard_state(config, abstract_state: TrainState, params, axes: dict, mesh) -> TrainState:
    """NamedShardings of a TrainState: optimizer state and average laid out as the parameters they belong to."""
    by_path = sharding.param_shardings(axes, mesh)
    param_sharding = jax.tree_util.tree_map_with_path(lambda path, _: by_path[tuple(k.key for k in path)], params)
    shapes = {tuple(k.key for k in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    named = {path: (shape, axes[path]) for path, shape in shapes.items()}
    opt_state = sharding.state_shardings(abstract_state.opt_state, named, mesh)
    if config.mesh.offload_optimizer:
        opt_state = sharding.host_shardings(opt_state, abstract_state.opt_state)
    return TrainState(
        step=sharding.replicated(mesh),
        params=param_sharding,
        opt_state=opt_state,
        ema=None if abstract_state.ema is None else param_sharding,
        skips=jax.tree.map(lambda _: sharding.replicated(mesh), abstract_state.skips),
    )
