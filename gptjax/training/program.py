"""A config on a mesh, ready to run: the shapes of its state, where each array lies, and its jitted functions.

Shardings are always given: left to itself, jit would replicate the optimizer state and the gradients.
"""

import dataclasses
import functools
import typing

import jax

from gptjax import flops
from gptjax.hosts import compiling
from gptjax.models import architectures, attention, placed
from gptjax.parallel import meshes, numerics, sharding
from gptjax.training import losses, trainable
from gptjax.training.step import TrainState, init_state, train_call


@dataclasses.dataclass(frozen=True)
class Program(placed.Placed):
    """A placed model that can be trained too. It runs inside `numerics.on_mesh(mesh)`."""

    kernel_reason: str  # why this kernel of attention
    abstract_state: TrainState  # ShapeDtypeStructs
    state_sharding: TrainState  # NamedShardings
    train_batch_sharding: typing.Any  # of arrays [S, B, ...]
    init: typing.Callable  # () -> TrainState, each leaf created where it lives
    train: typing.Callable  # (state, batch, learning_rate_S) -> (state, metrics); the state is donated


def of(config, devices=None) -> Program:
    """The Program of a config with vocab_size set, on its mesh of devices (default: all there are). Raises UserError for
    what does not fit together."""
    return on_mesh(config, meshes.make_mesh(config, devices))


def on_mesh(config, mesh) -> Program:
    """The Program of a config on a mesh of devices, with the attention kernel that is chosen there."""
    kernel, reason = attention.choose_kernel(config, mesh.devices.flat[0].platform, mesh.shape["sequence"])
    return build(config, mesh, kernel, reason)


@numerics.settings()
def build(config, mesh, kernel: str, kernel_reason: str = "as given") -> Program:
    """The Program of a config with vocab_size set, also on a mesh of no devices. Nothing is compiled or allocated yet.

    Raises UserError: see `flops.check_counts`, `losses.of`, `trainable.check`.
    """
    losses.of(config)
    model = placed.place(config.model, config.mesh, mesh, kernel, config.train.vocab_chunks)
    flops.check_counts(config.model, architectures.entries(model.abstract_params))
    trainable.check(config, model.abstract_params)
    init = functools.partial(init_state, config, kernel)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # as it is run: so it is traced once for both
        abstract_state = jax.eval_shape(init)
    state_sharding = shard_state(config, abstract_state, model)
    param_spec = jax.tree.map(lambda s: s.spec, state_sharding.params)
    replicated, train_batch = sharding.replicated(mesh), sharding.batch_sharding(mesh, leading=1)
    return Program(
        **{field.name: getattr(model, field.name) for field in dataclasses.fields(model)},
        kernel_reason=kernel_reason,
        abstract_state=abstract_state,
        state_sharding=state_sharding,
        train_batch_sharding=train_batch,
        init=compiling.jit(init, out_shardings=state_sharding, compiler_options=init_compiler_options(mesh)),
        train=compiling.jit(
            functools.partial(train_call, param_spec=param_spec, graph=model.graph, config=config),
            in_shardings=(state_sharding, train_batch, replicated),
            out_shardings=(state_sharding, replicated),
            donate_argnums=0,
            compiler_options=train_compiler_options(mesh),
        ),
    )


def init_compiler_options(mesh) -> dict | None:
    """LLVM spends most of a small run's start on the random numbers of its initialisation; with -O1 they are the same
    bits, as fast, and compiled in a third of the time."""
    on_cpu = isinstance(mesh, jax.sharding.Mesh) and mesh.devices.flat[0].platform == "cpu"
    return {"xla_backend_optimization_level": 1} if on_cpu else None


def train_compiler_options(mesh) -> dict | None:
    """Those of the mesh's kind of TPU or GPU; None elsewhere, and where shapes stand for devices."""
    if not isinstance(mesh, jax.sharding.Mesh) or mesh.devices.flat[0].platform == "cpu":
        return None
    device = mesh.devices.flat[0]
    from gptjax.parallel import gpu, tpu

    kinds = {"tpu": tpu, "gpu": gpu}
    return kinds[device.platform].compiler_options(device.device_kind) if device.platform in kinds else None


def shard_state(config, abstract_state: TrainState, model: placed.Placed) -> TrainState:
    """NamedShardings of a TrainState: optimizer state and average laid out as the parameters they belong to."""
    mesh, replicated = model.mesh, sharding.replicated(model.mesh)
    shapes = {
        tuple(k.key for k in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(trainable.split(model.abstract_params, config)[0])
    }
    named = {path: (shape, model.axes[path]) for path, shape in shapes.items()}
    opt_state = sharding.state_shardings(abstract_state.opt_state, named, mesh)
    if config.mesh.offload_optimizer:
        opt_state = sharding.host_shardings(opt_state, abstract_state.opt_state)
    return TrainState(
        step=replicated,
        params=model.param_sharding,
        opt_state=opt_state,
        ema=None if abstract_state.ema is None else model.param_sharding,
        skips=jax.tree.map(lambda _: replicated, abstract_state.skips),
        importance=sharding.state_shardings(abstract_state.importance, named, mesh),
    )
