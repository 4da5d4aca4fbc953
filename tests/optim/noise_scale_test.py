"""The gradient noise scale against numbers worked by hand, gradients of known covariance, and the gradients of a model."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY

from gptjax.config.fields import Config, OptimConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.models import architectures
from gptjax.optim import noise_scale
from gptjax.parallel import meshes
from gptjax.rundir import resuming
from gptjax.training import program as programs
from gptjax.training import step

SIGNAL, TRACE = noise_scale.SIGNAL, noise_scale.TRACE


def test_estimates_are_those_worked_by_hand():
    """Two microbatches of 4 tokens with mean gradients (3, 0) and (1, 2): |small|^2 = 7, large (2, 1), |large|^2 = 5.

    |G|^2 = (8 * 5 - 4 * 7) / (8 - 4) = 3; tr S = (7 - 5) / (1/4 - 1/8) = 16.
    """
    sums_GP = 4.0 * np.array([[3.0, 0.0], [1.0, 2.0]])
    found = estimated(sums_GP, np.array([4.0, 4.0]))
    assert found == pytest.approx({SIGNAL: 3.0, TRACE: 16.0})


def estimated(sums_GP, weight_G) -> dict:
    return noise_scale.estimates(np.square(sums_GP).sum(-1), weight_G, np.square(sums_GP.sum(0)).sum())


@pytest.mark.parametrize("weight_G", [(32, 32), (16, 16, 16, 16), (5, 40, 0, 19)])
def test_averages_are_unbiased_for_gradients_of_known_covariance(weight_G):
    """Tokens' gradients are normal with mean G and covariance S; microbatches weigh differently, one nothing at all."""
    random, steps = np.random.default_rng(0), 20_000
    mean_P, deviation_P = np.array([0.5, -0.2, 0.1]), np.array([2.0, 0.5, 1.0])
    weight_G = np.array(weight_G, float)
    noise_SGP = random.standard_normal((steps, len(weight_G), 3)) * deviation_P * np.sqrt(weight_G)[:, None]
    found = [estimated(sums_GP, weight_G) for sums_GP in mean_P * weight_G[:, None] + noise_SGP]
    for name, truth in ((SIGNAL, np.square(mean_P).sum()), (TRACE, np.square(deviation_P).sum())):
        values = np.array([each[name] for each in found])
        error = values.std() / math.sqrt(steps)
        assert abs(values.mean() - truth) < 4 * error < 0.06 * truth, name


# ---- in the step


@pytest.fixture(scope="module")
def config():
    return Config(
        model=TINY, optim=OptimConfig(warmup_steps=1, eps=1e-5), train=TrainConfig(steps=4, batch_size=8, log_every=1, microbatches=4)
    )  # fmt: skip


def test_it_needs_microbatches_to_compare(config):
    with pytest.raises(UserError, match="train.log_noise_scale compares .* train.microbatches=1; use at least 2"):
        config.replace(train={"log_noise_scale": True, "microbatches": 1})


def batch_of() -> dict:
    rng = np.random.default_rng(0)
    weight_BL = (rng.random((8, 16)) < 0.7).astype(np.float32)
    weight_BL[[2, 6]] = 0  # all of the third microbatch
    return {"token_BT": rng.integers(0, 65, (8, 17)).astype(np.int32), "weight_BL": weight_BL}


def gradient_of(config):
    """Compiled: (state, batch) -> gradient and numbers of a step."""
    functions = {"graph": architectures.abstract(config.model)[0], "config": config, "param_spec": None}
    return jax.jit(functools.partial(step.mean_gradient, **functions))


def test_a_step_logs_what_the_gradients_of_its_microbatches_give(config, make_variant):
    """Against each microbatch's own gradient, taken alone, in NumPy."""
    state = step.TrainState(jnp.zeros((), jnp.int32), make_variant("gpt2").params, None, None)
    batch, alone = batch_of(), gradient_of(config.replace(train={"microbatches": 1}))
    gradient, numbers = gradient_of(config.replace(train={"log_noise_scale": True}))(state, batch)
    sums_GP, weight_G = [], []
    for part in range(4):
        rows = {name: np.zeros_like(array) for name, array in batch.items()}  # as long: one program
        for name in rows:
            rows[name][:2] = batch[name][part::4]
        weight_G.append(rows["weight_BL"].sum())
        mean = flat(alone(state, rows)[0]) if weight_G[-1] else np.zeros_like(flat(gradient))
        sums_GP.append(weight_G[-1] * mean)
    assert weight_G[2] == 0 < weight_G[1]
    for name, value in estimated(np.array(sums_GP), np.array(weight_G)).items():
        assert float(numbers[name]) == pytest.approx(value, rel=2e-5), name
    np.testing.assert_allclose(flat(gradient), sum(sums_GP) / sum(weight_G), rtol=1e-4, atol=1e-6)


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf).astype(float) for leaf in jax.tree.leaves(tree)])


def numbers_of(config, mesh: dict, **train):
    """Of two steps in one call, from a state that is the same everywhere; and the parameters after them."""
    here = config.replace(mesh=mesh, train=train | {"steps_per_call": 2, "log_every": 2})
    n_devices = mesh.get("fsdp", 1) * mesh.get("tensor", 1) * mesh.get("stage", 1)
    program = programs.build(here, meshes.make_mesh(here, jax.devices()[:n_devices]), "xla")
    with jax.set_mesh(program.mesh):
        batch = {name: np.stack([array] * 2) for name, array in batch_of().items()}
        state, numbers = program.train(program.init(), batch, np.full(2, 1e-3, np.float32))
    return {name: value.tolist() for name, value in jax.device_get(numbers).items()}, jax.device_get(state.params)


@pytest.mark.slow
def test_it_is_the_same_on_every_mesh_and_changes_the_rest_by_no_more_than_rounding(config):
    config = config.replace(train={"microbatches": 2})
    off, params = numbers_of(config, {"fsdp": 1})
    on, same = numbers_of(config, {"fsdp": 1}, log_noise_scale=True)
    assert on.keys() - off.keys() == {SIGNAL, TRACE}
    for name in off:
        np.testing.assert_allclose(on[name], off[name], rtol=1e-6, err_msg=name)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6), params, same)
    for mesh in ({"fsdp": 4, "tensor": 2}, {"fsdp": 2, "stage": 2, "tensor": 2}):
        there, _ = numbers_of(config, mesh, log_noise_scale=True)
        for name in on:
            np.testing.assert_allclose(there[name], on[name], rtol=2e-4, err_msg=name)


def test_a_run_may_start_to_log_it_when_it_is_resumed(config):
    resuming.check_resume(config, config.replace(train={"log_noise_scale": True}))
