"""A step against NumPy, and the same run on every mesh, in every number of microbatches and calls.

Runs are compiled once and shared: each is 20 steps over 20 batches whose rows weigh differently, some of them nothing.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from flax import nnx

from gptjax.config.fields import Config, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gptjax.models import architectures
from gptjax.optim import optimizers, rounding
from gptjax.parallel import meshes, sharding
from gptjax.training import losses, step
from gptjax.training import program as programs

STEPS, BATCH, LENGTH, RATE = 20, 16, 16, 1e-3
BASE = Config(
    model=ModelConfig(
        vocab_size=65, context_length=LENGTH, n_layers=2, d_model=32, n_heads=8, init_std=0.1, dtype="float32"
    ),
    # eps: a key's bias has no gradient but rounding noise, which Adam would blow up to whole steps.
    optim=OptimConfig(name="adamw", peak_lr=RATE, clip_norm=0.5, eps=1e-5, ema_decay=0.75),
    train=TrainConfig(steps=STEPS, batch_size=BATCH, z_loss=1e-2, log_every=STEPS),
    mesh=MeshConfig(fsdp=1),
)
RUNS = {  # what differs from BASE
    "8 fsdp": {"mesh": dict(fsdp=8)},
    "4 fsdp x 2 tensor": {"mesh": dict(fsdp=4, tensor=2)},
    "2 fsdp x 4 tensor": {"mesh": dict(fsdp=2, tensor=4), "train": dict(vocab_chunks=4)},
    "8 tensor": {"mesh": dict(fsdp=1, tensor=8)},
    "2 replica x 2 fsdp x 2 tensor": {"mesh": dict(replica=2, fsdp=2, tensor=2)},
    "2 fsdp x 2 sequence x 2 tensor": {"mesh": dict(fsdp=2, sequence=2, tensor=2)},
    "8 fsdp, 2 microbatches": {"mesh": dict(fsdp=8), "train": dict(microbatches=2)},
    "2 fsdp x 2 tensor, 4 microbatches": {"mesh": dict(fsdp=2, tensor=2), "train": dict(microbatches=4)},
}


def batches(seed=0) -> dict[str, np.ndarray]:
    """20 batches of tokens that repeat, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    token_SBT = np.cumsum(rng.integers(0, 3, (STEPS, BATCH, LENGTH + 1)), axis=-1) % 65
    weight_SBL = (rng.random((STEPS, BATCH, LENGTH)) < rng.random((STEPS, BATCH, 1)) ** 2).astype(np.float32)
    weight_SBL[:, 3::5] = 0  # whole rows of padding
    return {"token_BT": token_SBT.astype(np.int32), "weight_BL": weight_SBL}


def one_batch(index: int) -> dict[str, np.ndarray]:
    return {name: array[index] for name, array in batches().items()}


def program_of(config, **changes) -> programs.Program:
    config = config.replace(**changes)
    n_devices = config.mesh.replica * config.mesh.fsdp * config.mesh.sequence * config.mesh.tensor
    return programs.build(config, meshes.make_mesh(config, jax.devices()[:n_devices]), "xla")


@functools.cache
def initial_state() -> step.TrainState:
    """In NumPy: the same for every run, whose calls donate their own copy."""
    return jax.device_get(program_of(BASE).init())


def run(program, calls: int = 1):
    """(final state, metrics [20]) after 20 steps in so many calls."""
    state, metrics = jax.device_put(initial_state(), program.state_sharding), []
    with jax.set_mesh(program.mesh):
        for call in range(calls):
            steps = np.s_[call * STEPS // calls : (call + 1) * STEPS // calls]
            batch = {name: array[steps] for name, array in batches().items()}
            batch = jax.device_put(batch, program.train_batch_sharding)
            state, numbers = program.train(state, batch, np.full(STEPS // calls, RATE, np.float32))
            metrics.append(jax.device_get(numbers))
    return state, jax.tree.map(lambda *parts: np.concatenate(parts), *metrics)


@functools.cache
def run_on_one_device():
    return run(program_of(BASE))


@functools.cache
def states_of_single_steps() -> tuple[list[step.TrainState], list[dict]]:
    """On one device, a step a call: all 21 states and the metrics of each step."""
    program, states, metrics = program_of(BASE), [initial_state()], []
    with jax.set_mesh(program.mesh):
        for i in range(STEPS):
            batch = {name: array[i : i + 1] for name, array in batches().items()}
            state = jax.device_put(states[-1], program.state_sharding)
            state, numbers = program.train(state, batch, np.full(1, RATE, np.float32))
            states.append(jax.device_get(state))
            metrics.append({name: value[0] for name, value in jax.device_get(numbers).items()})
    return states, metrics


def relative_difference(a, b) -> float:
    a, b = np.float64(a), np.float64(b)
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12)


# The same run however it is laid out


def assert_same_run(ours, expected):
    for name, value in expected[1].items():
        np.testing.assert_allclose(ours[1][name], value, rtol=1e-5, err_msg=name)
    for tree, reference in ((ours[0].params, expected[0].params), (ours[0].ema, expected[0].ema)):
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(reference), strict=True):
            assert relative_difference(a, b) < 1e-5, jax.tree_util.keystr(path)


def test_the_run_that_others_are_held_to_learns():
    state, metrics = run_on_one_device()
    assert state.step == STEPS
    assert metrics["loss"][-1] < metrics["loss"][0] - 0.1
    moved = [relative_difference(a, b) for a, b in zip(*map(jax.tree.leaves, (state.params, initial_state().params)))]
    assert min(moved) > 1e-4  # every parameter moved far more than the tolerance


LAYOUTS = ("2 fsdp x 4 tensor", "8 tensor", "2 replica x 2 fsdp x 2 tensor", "2 fsdp x 2 sequence x 2 tensor")


@pytest.mark.parametrize("name", runs.default_or_slow(RUNS, (*LAYOUTS, "8 fsdp, 2 microbatches")))
def test_twenty_steps_are_the_same_on_every_mesh_and_lie_where_they_belong(name):
    program = program_of(BASE, **RUNS[name])
    ours = run(program)
    assert_same_run(ours, run_on_one_device())
    for leaf, place in zip(jax.tree.leaves(ours[0]), jax.tree.leaves(program.state_sharding), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)


def test_twenty_calls_of_one_step_equal_one_call_of_twenty():
    states, metrics = states_of_single_steps()
    together = jax.tree.map(lambda *values: np.stack(values), *metrics)
    assert_same_run((states[-1], together), run_on_one_device())


def test_gradients_are_laid_out_as_their_parameters():
    config = BASE.replace(mesh=dict(fsdp=4, tensor=2), train=dict(microbatches=2))
    mesh = meshes.make_mesh(config)
    program = programs.build(config, mesh, "xla")
    param_sharding = program.state_sharding.params
    spec = jax.tree.map(lambda place: place.spec, param_sharding)
    gradient = functools.partial(step.accumulate, graph=program.graph, config=config, param_spec=spec)
    arguments = (param_sharding, program.eval_batch_sharding, sharding.replicated(mesh))
    batch = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in one_batch(0).items()}
    with jax.set_mesh(mesh):
        lowered = jax.jit(gradient, in_shardings=arguments).lower(
            program.abstract_state.params, batch, jax.random.key(0)
        )
        grads, *_ = lowered.compile().output_shardings
    shapes = program.abstract_state.params
    for place, expected, leaf in zip(*map(jax.tree.leaves, (grads, param_sharding, shapes)), strict=True):
        assert place.is_equivalent_to(expected, leaf.ndim)


# One step against NumPy


def mean_loss(params, batch):
    """What the definition says is minimised, in one piece: means over all weighted tokens of the batch."""
    gpt = nnx.merge(architectures.abstract(BASE.model)[0], params)
    loss_BL, log_normaliser_BL, _ = gpt.token_loss(batch["token_BT"])
    mean = lambda value_BL: jnp.sum(value_BL * batch["weight_BL"]) / batch["weight_BL"].sum()  # noqa: E731
    return mean(loss_BL) + BASE.train.z_loss * mean(log_normaliser_BL**2), mean(loss_BL)


@functools.cache
def first_gradient():
    grad = jax.jit(jax.grad(mean_loss, has_aux=True))
    grads, loss = grad(initial_state().params, one_batch(0))
    return jax.tree.map(np.float64, grads), float(loss)


def norm(tree) -> float:
    return float(np.sqrt(sum(np.square(np.float64(leaf)).sum() for leaf in jax.tree.leaves(tree))))


def test_a_step_is_adamw_on_the_clipped_gradient_of_the_weighted_mean():
    grads, loss = first_gradient()
    (before, after, *_), (metrics, *_) = states_of_single_steps()
    assert norm(grads) > 2 * BASE.optim.clip_norm
    shrink = BASE.optim.clip_norm / norm(grads)
    decayed = optimizers.decay_mask(BASE.optim, architectures.roles(BASE.model), before.params)

    def update(p, g, decays):  # the first: both of Adam's averages, bias-corrected, are the gradient's own
        return -RATE * (shrink * g / (np.abs(shrink * g) + BASE.optim.eps) + BASE.optim.weight_decay * decays * p)

    updates = jax.tree.map(update, before.params, grads, decayed)
    for p, u, new in zip(*map(jax.tree.leaves, (before.params, updates, after.params)), strict=True):
        np.testing.assert_allclose(new - p, u, atol=1e-3 * RATE)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)  # without the z-loss
    assert metrics["grad_norm"] == pytest.approx(norm(grads), rel=1e-5)  # before clipping
    assert metrics["update_norm"] == pytest.approx(norm(updates), rel=1e-4)
    assert metrics["param_norm"] == pytest.approx(norm(after.params), rel=1e-6)


def test_the_average_of_the_parameters_is_that_worked_step_by_step():
    states, _ = states_of_single_steps()
    average = jax.tree.map(np.float64, states[0].params)
    for state in states[1:]:
        average = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, average, state.params)
        for ours, expected in zip(jax.tree.leaves(state.ema), jax.tree.leaves(average), strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-6)


# Sums and averages


def sgd_step(microbatches: int):
    """(parameters before minus after, metrics) of one step of the gradient itself, unclipped."""
    limit = 1.01 * norm(first_gradient()[0])
    optimizer = dict(name="sgd", momentum=0.0, weight_decay=0.0, clip_norm=limit, ema_decay=None)
    config = BASE.replace(optim=optimizer, train=dict(microbatches=microbatches))
    program, params = program_of(config), initial_state().params
    state = step.TrainState(
        np.int32(0), params, optimizers.make_optimizer(config.optim, config.model).init(params), None
    )
    batch = {name: array[None] for name, array in one_batch(0).items()}
    with jax.set_mesh(program.mesh):
        state = jax.device_put(state, program.state_sharding)
        after, metrics = jax.device_get(program.train(state, batch, np.ones(1, np.float32)))
    return jax.tree.map(np.subtract, params, after.params), {name: value[0] for name, value in metrics.items()}


def test_microbatches_of_unequal_weight_give_the_gradient_of_the_mean_over_all_tokens():
    taken, metrics = sgd_step(microbatches=4)
    grads, loss = first_gradient()
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(taken), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6, err_msg=jax.tree_util.keystr(path))
    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)
    assert metrics["update_norm"] == pytest.approx(metrics["grad_norm"], rel=1e-6)  # below the limit: not clipped
    weight_G = [one_batch(0)["weight_BL"][part::4].sum() for part in range(4)]
    assert max(weight_G) > 1.2 * min(weight_G)  # so that a mean of means would not pass


def test_per_layer_numbers_are_logged_for_each_step_and_layer():
    for microbatches in (1, 2):
        config = BASE.replace(train=dict(log_activations=True, microbatches=microbatches))
        program = program_of(config)
        with jax.set_mesh(program.mesh):
            _, metrics = jax.eval_shape(program.train, program.abstract_state, batches(), jnp.zeros(STEPS))
        shapes = {name: value.shape for name, value in metrics.items()}
        assert shapes.pop("activation_rms") == shapes.pop("max_attention_logit") == (STEPS, 2)
        assert shapes == dict.fromkeys(("loss", "grad_norm", "update_norm", "param_norm"), (STEPS,))


def test_per_layer_numbers_of_microbatches_are_reduced_as_their_names_say():
    number_GN = jnp.array([[1.0, 2.0], [7.0, -2.0]])
    assert losses.RootMeanSquare(number_GN).merged().value.tolist() == [5.0, 2.0]
    assert losses.Largest(number_GN).merged().value.tolist() == [7.0, 2.0]


# Randomness and evaluation


def test_dropout_differs_between_steps_and_microbatches_and_repeats_with_the_seed():
    program = program_of(BASE, model=dict(residual_dropout=0.5), optim=dict(ema_decay=None), train=dict(microbatches=2))
    twins = {name: np.repeat(array[::2], 2, axis=0) for name, array in one_batch(0).items()}  # in both microbatches

    def losses(weight_B):
        """Of two steps, at a learning rate of zero."""
        batch = {name: np.stack([array] * 2) for name, array in twins.items()}
        batch["weight_BL"] = batch["weight_BL"] * np.float32(weight_B)[:, None]
        state = jax.device_put(initial_state()._replace(ema=None), program.state_sharding)
        with jax.set_mesh(program.mesh):
            return jax.device_get(program.train(state, batch, np.zeros(2, np.float32))[1]["loss"])

    both, first_alone = losses([1, 1] * (BATCH // 2)), losses([1, 0] * (BATCH // 2))
    assert abs(both[0] - both[1]) > 1e-3
    assert np.all(np.abs(both - first_alone) > 1e-3)  # equal, if both microbatches dropped the same
    np.testing.assert_array_equal(both, losses([1, 1] * (BATCH // 2)))


def test_evaluation_gives_the_sums_of_each_row():
    program = program_of(BASE, mesh=dict(fsdp=4, tensor=2), train=dict(vocab_chunks=2))
    params = jax.device_put(initial_state().params, program.state_sharding.params)

    def evaluate(batch):
        with jax.set_mesh(program.mesh):
            return jax.device_get(program.evaluate(params, jax.device_put(batch, program.eval_batch_sharding)))

    batch = one_batch(0)
    loss_sum_B, weight_sum_B = evaluate(batch)
    assert loss_sum_B.sum() / weight_sum_B.sum() == pytest.approx(first_gradient()[1], rel=1e-6)
    np.testing.assert_array_equal(weight_sum_B, batch["weight_BL"].sum(-1))
    assert not np.any(loss_sum_B[3::5])
    backwards = evaluate({name: array[::-1] for name, array in batch.items()})
    np.testing.assert_allclose(backwards[0][::-1], loss_sum_B, rtol=1e-6)


# What is stored in bfloat16, what waits on the host


def three_steps(**changes):
    """(state, losses) after three steps from the shared parameters, rounded to what bfloat16 holds."""
    program = program_of(BASE, **changes)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(np.float32), initial_state().params)
    opt_state = optimizers.make_optimizer(BASE.optim, BASE.model).init(params)
    state = step.TrainState(np.int32(0), params, opt_state, params)
    metrics = []
    with jax.set_mesh(program.mesh):
        state = jax.device_put(jax.device_get(step.store(state, BASE.replace(**changes))), program.state_sharding)
        for i in range(3):  # a call each: without changes the program is that of states_of_single_steps
            batch = {name: array[i : i + 1] for name, array in batches().items()}
            state, numbers = program.train(state, batch, np.full(1, RATE, np.float32))
            metrics.append(jax.device_get(numbers))
    return jax.device_get(state), jax.tree.map(lambda *parts: np.concatenate(parts), *metrics)


BFLOAT16 = dict(param_dtype="bfloat16", moment_dtype="bfloat16")


@functools.cache
def stored_in_bfloat16():
    return three_steps(optim=BFLOAT16)


@pytest.mark.slow
def test_parameters_and_moments_stored_in_bfloat16_stay_near_those_in_float32_and_the_average_is_float32():
    (ours, metrics), (exact, expected) = stored_in_bfloat16(), three_steps()
    assert metrics["loss"][0] == expected["loss"][0]  # the same parameters, computed with in float32
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-3)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours.params)} == {np.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(ours.ema)} == {np.dtype(np.float32)}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(ours.opt_state)} == {"bfloat16", "int32"}
    for p, q in zip(jax.tree.leaves(ours.params), jax.tree.leaves(exact.params), strict=True):
        gap = 2.0**-7 * np.maximum(abs(q), 2.0**-30) + 3 * RATE  # three roundings, three steps
        assert np.all(abs(np.float32(p) - q) <= 3 * gap)


def test_parameters_are_rounded_by_the_same_bits_on_every_mesh():
    (ours, _), (alone, _) = three_steps(optim=BFLOAT16, mesh=dict(fsdp=4, tensor=2)), stored_in_bfloat16()
    same = np.concatenate([(a == b).ravel() for a, b in zip(*map(jax.tree.leaves, (ours.params, alone.params)))])
    assert same.mean() > 0.98  # with other bits half of them would differ


def test_small_updates_of_bfloat16_parameters_are_not_lost():
    """Updates of 1/100 of the distance between bfloat16 numbers: rounding to nearest would keep none."""
    config = BASE.replace(
        optim=dict(name="sgd", momentum=0.0, clip_norm=None, weight_decay=0.0, param_dtype="bfloat16")
    )
    params = {"final_norm": {"gain": jnp.ones(20_000, jnp.bfloat16)}}  # a vector, of which nothing asks how long it is
    opt_state = optimizers.make_optimizer(config.optim, config.model).init(rounding.widen(params))
    state = step.TrainState(jnp.int32(0), params, opt_state, None)
    grads = {"final_norm": {"gain": jnp.full(20_000, -(2.0**-7) / 100)}}

    def one(state, _):
        return step.update(state, grads, 1.0, config=config)[0], None

    state, _ = jax.jit(lambda s: jax.lax.scan(one, s, length=10))(state)
    moved = np.float64(state.params["final_norm"]["gain"]).mean() - 1
    assert moved == pytest.approx(10 * 2.0**-7 / 100, rel=0.1)


def test_optimizer_state_and_layer_inputs_on_the_host_change_no_bit():
    mesh = dict(fsdp=4, tensor=2)
    on_device = three_steps(mesh=mesh, model=dict(remat="full"))
    on_host = three_steps(mesh=dict(**mesh, offload_optimizer=True), model=dict(remat="offload"))
    for a, b in zip(jax.tree.leaves(on_device), jax.tree.leaves(on_host), strict=True):
        np.testing.assert_array_equal(a, b)


def test_offloaded_optimizer_state_lies_in_host_memory_before_and_after_a_step():
    program = program_of(BASE, mesh=dict(fsdp=8, offload_optimizer=True))
    batch = {name: array[:1] for name, array in batches().items()}
    with jax.set_mesh(program.mesh):
        before = program.init()
        kinds = [leaf.sharding.memory_kind for leaf in jax.tree.leaves(before.opt_state) if leaf.size > 64]
        after, _ = program.train(before, batch, np.full(1, RATE, np.float32))
    kinds += [leaf.sharding.memory_kind for leaf in jax.tree.leaves(after.opt_state) if leaf.size > 64]
    assert set(kinds) == {"pinned_host"} and len(kinds) > 20
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(after.params)} == {"device"}
