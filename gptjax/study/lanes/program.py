"""Same-shaped runs as lanes of one program: what `program.Program` does for a run, for R of them at once.

The runs lie along a mesh axis "runs": each device holds R / devices of them and computes those alone, with nothing sent
between devices. What tells lanes apart are arrays that the program is given: learning rates, seed, and which of the U
orders of rows a lane reads. Inside a device, on a CPU, lanes take their turn (`lax.map`), which leaves every core its own
lane and the numbers of a lane as they are alone; elsewhere they are `vmap`ped, since a small model leaves most of an
accelerator idle. Measured on two cores, by size of the model: docs/studies_batched.md.

Axes: R lanes, U orders of rows, S steps of one call, B sequences.
"""

import copy
import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from gptjax.models import placed
from gptjax.parallel import meshes
from gptjax.training import program as programs
from gptjax.training import step

AXIS = "runs"


@dataclasses.dataclass(frozen=True)
class Program:
    """R lanes of a config's program on a mesh, which its functions bring along: no mesh need be in context."""

    mesh: Mesh
    alone: programs.Program  # of one run, on the first device
    lane_sharding: NamedSharding  # of arrays [R, ...]
    eval_batch_sharding: NamedSharding  # the same batch for all lanes
    init: typing.Callable  # seed_R -> state_R
    train: typing.Callable  # (state_R, [batch] of length U, learning_rate_RS, order_R, seed_R) -> (state_R, metrics_RS)
    evaluate: typing.Callable  # (params_R, batch) -> (loss_sum_RB, weight_sum_RB)
    runs: int  # R

    @property
    def lanes_of_a_device(self) -> int:
        return self.runs // self.mesh.shape[AXIS]


def build(config, devices, runs: int) -> Program:
    """The Program of a resolved config for so many runs, a multiple of the devices. Nothing is compiled yet."""
    assert runs % len(devices) == 0
    mesh = Mesh(np.array(devices).reshape(-1, *[1] * len(meshes.AXES)), (AXIS, *meshes.AXES), axis_types=_auto())
    alone = programs.of(config, devices[:1])
    param_spec = jax.tree.map(lambda place: place.spec, alone.state_sharding.params)
    each = _one_by_one if devices[0].platform == "cpu" else jax.vmap
    lane, everywhere = PartitionSpec(AXIS), PartitionSpec()

    def init(seed_R):
        return each(lambda seed: step.init_state(with_seed(config, seed), alone.kernel))(seed_R)

    def train(state_R, batches, learning_rate_RS, order_R, seed_R):
        batch_U = jax.tree.map(lambda *arrays: jnp.stack(arrays), *batches)

        def train_lane(state, learning_rate_S, order, seed):
            batch = jax.tree.map(lambda array_U: array_U[order], batch_U)
            options = {"graph": alone.graph, "config": with_seed(config, seed), "param_spec": param_spec}
            return step.train_call(state, batch, learning_rate_S, **options)

        return each(train_lane)(state_R, learning_rate_RS, order_R, seed_R)

    def evaluate(params_R, batch):
        functions = {"graph": alone.graph, "mesh_config": config.mesh, "vocab_chunks": config.train.vocab_chunks}
        return each(lambda params: placed.eval_call(params, batch, **functions))(params_R)

    on_devices = functools.partial(jax.shard_map, mesh=mesh, out_specs=lane, axis_names={AXIS}, check_vma=False)
    return Program(
        mesh=mesh,
        alone=alone,
        lane_sharding=NamedSharding(mesh, lane),
        eval_batch_sharding=NamedSharding(mesh, everywhere),
        init=jax.jit(on_devices(init, in_specs=lane), compiler_options=programs.init_compiler_options(mesh)),
        train=jax.jit(
            on_devices(train, in_specs=(lane, everywhere, lane, lane, lane)),
            donate_argnums=0,
            compiler_options=programs.train_compiler_options(mesh),
        ),
        evaluate=jax.jit(on_devices(evaluate, in_specs=(lane, everywhere))),
        runs=runs,
    )


def _auto() -> tuple[AxisType, ...]:
    return (AxisType.Auto, *meshes.auto_axes())


def _one_by_one(function):
    """As jax.vmap, one lane after the other."""
    return lambda *arrays: jax.lax.map(lambda lane: function(*lane), arrays)


def with_seed(config, seed):
    """config with a traced number for train.seed, which the step only makes random keys of. No check could read it."""
    traced = copy.copy(config)
    object.__setattr__(traced, "train", dataclasses.replace(config.train, seed=seed))
    return traced


def seeds(configs) -> np.ndarray:
    """int32 [R] of train.seed, cut as jax.random.key cuts a Python integer."""
    return np.array([config.train.seed for config in configs], np.int64).astype(np.int32)


class Lanes:
    """The states of R runs on their way. order_R: which batch of a call each lane reads."""

    def __init__(self, program: Program, configs, order_R):
        self.program = program
        self._seed_R = self._placed(seeds(configs))
        self._order_R = self._placed(np.array(order_R, np.int32))
        self._state = program.init(self._seed_R)
        self._read = None  # gives the metrics [R, S] of the last call
        self._calls = 0  # what was taken of the state before another call is of another state
        self._taken = {}

    def _placed(self, array):
        return jax.device_put(array, self.program.lane_sharding)

    def put(self, lane_states: dict[int, step.TrainState]) -> None:
        """Replaces the state of some lanes, as of runs that go on from a checkpoint."""

        def replaced(array_R, *arrays):
            values = np.array(array_R)
            values[list(lane_states)] = [np.asarray(array) for array in arrays]
            return jax.device_put(values, array_R.sharding)

        self._state = jax.tree.map(replaced, self._state, *lane_states.values())
        self._forget()

    def train(self, batches, learning_rate_RS) -> None:
        """Dispatches one call of all lanes."""
        rates = self._placed(np.asarray(learning_rate_RS, np.float32))
        self._state, on_device = self.program.train(self._state, batches, rates, self._order_R, self._seed_R)
        self._read = functools.cache(functools.partial(jax.device_get, on_device))  # once, by the first lane that reads
        self._forget()

    def _forget(self) -> None:
        self._calls, self._taken = self._calls + 1, {}

    def metrics(self, lane: int) -> typing.Callable[[], dict]:
        """Gives those of the last call, [S] each; the device is not waited for before."""
        read = self._read
        return lambda: {name: value_RS[lane] for name, value_RS in read().items()}

    def params(self, prefix: str = ""):
        """Of all lanes, or their averages: [R, ...]."""
        return self._state.ema if prefix else self._state.params

    def state(self, lane: int) -> "LaneState":
        return LaneState(self, lane)

    def take(self, field: str, lane: int):
        """One field of the TrainState of a lane, on the device that holds it."""
        if (field, lane) not in self._taken:
            size = self.program.lanes_of_a_device
            here = jax.tree.map(lambda array_R: _shard_with(array_R, lane), getattr(self._state, field))
            self._taken[field, lane] = _at(here, lane % size)
        return self._taken[field, lane]


def _shard_with(array_R, lane: int):
    for shard in array_R.addressable_shards:
        first, stop, _ = shard.index[0].indices(array_R.shape[0])
        if first <= lane < stop:
            return shard.data
    raise AssertionError(f"no device here holds lane {lane}")


@jax.jit
def _at(tree, index):
    return jax.tree.map(lambda array: array[index], tree)


class LaneState:
    """What a lane has come to, as a TrainState: a field is taken from the device when it is asked for, and not before."""

    _fields = step.TrainState._fields

    def __init__(self, lanes: Lanes, lane: int):
        self._lanes, self._lane = lanes, lane

    def __getattr__(self, field: str):
        if field not in self._fields:
            raise AttributeError(field)
        return self._lanes.take(field, self._lane)
