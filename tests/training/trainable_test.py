"""Training some parameters and freezing the rest (train.trainable): the same steps on every mesh, in less memory."""

import functools

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from gptjax.config.fields import Config, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.parallel import numerics, sharding
from gptjax.planning import estimate
from gptjax.training import program as programs
from gptjax.training import step, trainable

STEPS, BATCH, LENGTH = 3, 8, 16
CHOSEN = "blocks/mlp, final_norm, head"
BASE = Config(
    model=ModelConfig(
        vocab_size=65,
        context_length=LENGTH,
        n_layers=2,
        d_model=32,
        n_heads=4,
        init_std=0.1,
        dtype="float32",
        tied_head=False,
    ),
    optim=OptimConfig(eps=1e-5, ema_decay=0.5, skip="nonfinite"),
    train=TrainConfig(steps=STEPS, batch_size=BATCH, microbatches=2, log_every=1, trainable=CHOSEN),
    mesh=MeshConfig(fsdp=1),
)
EVERY = BASE.replace(train={"trainable": None})


def batches() -> dict:
    rng = np.random.default_rng(0)
    token_SBT = rng.integers(0, 3, (STEPS, BATCH, LENGTH + 1)).cumsum(-1) % 65
    return {"token_BT": token_SBT.astype(np.int32), "weight_BL": rng.random((STEPS, BATCH, LENGTH)).astype(np.float32)}


@functools.cache
def program_of(config) -> programs.Program:
    sizes = [getattr(config.mesh, axis) for axis in config.mesh.AXES]
    return programs.of(config, jax.devices()[: int(np.prod(sizes))])


def run(config):
    """(state before, state after 3 steps, metrics)."""
    program = program_of(config)
    with numerics.on_mesh(program.mesh):
        state = program.init()
        before = jax.device_get(state)
        batch = jax.device_put(batches(), program.train_batch_sharding)
        return before, *jax.device_get(program.train(state, batch, np.full(STEPS, 1e-2, np.float32)))


@functools.cache
def on_one_device():
    return run(BASE)


def is_chosen(name: str) -> bool:
    return name.startswith(("blocks/mlp/", "final_norm/")) or name == "head"


def assert_trained_alone(before, after):
    """Of parameters and averages."""
    for trees in ((before.params, after.params), (before.ema, after.ema)):
        old, new = (flatten_dict(tree, sep="/") for tree in trees)
        for name, array in old.items():
            assert np.array_equal(array, new[name]) != is_chosen(name), name


def test_frozen_parameters_stay_bit_for_bit_and_the_others_learn():
    before, after, numbers = on_one_device()
    assert_trained_alone(before, after)
    assert numbers["loss"][-1] < numbers["loss"][0] and after.skips["skipped"] == 0


@pytest.mark.slow
def test_in_bfloat16_too_where_every_step_rounds_anew_and_with_moments_on_the_host():
    optim = {"param_dtype": "bfloat16", "moment_dtype": "bfloat16", "skip": "outliers"}
    config = BASE.replace(optim=optim, mesh=dict(fsdp=4, offload_optimizer=True))
    before, after, _ = run(config)
    assert {str(array.dtype) for array in jax.tree.leaves(after.params)} == {"bfloat16"}
    assert_trained_alone(before, after)
    places = jax.tree.leaves(program_of(config).state_sharding.opt_state)
    assert {place.memory_kind for place in places} >= {sharding.HOST_MEMORY}


def test_the_steps_on_eight_devices_are_those_on_one():
    before, after, numbers = run(BASE.replace(mesh=dict(fsdp=2, tensor=2, stage=2)))
    _, expected, expected_numbers = on_one_device()
    assert_trained_alone(before, after)
    np.testing.assert_allclose(numbers["loss"], expected_numbers["loss"], rtol=1e-5)
    ours, theirs = (jax.tree.leaves((state.params, state.ema)) for state in (after, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


def test_gradients_exist_for_those_alone_and_are_those_of_the_whole_model():
    batch = {name: array[0] for name, array in batches().items()}
    gradients = []
    for config in (BASE, EVERY):
        program = program_of(config)
        spec = jax.tree.map(lambda place: place.spec, program.state_sharding.params)
        function = functools.partial(step.mean_gradient, graph=program.graph, config=config, param_spec=spec)
        state = step.TrainState(np.int32(0), jax.device_get(program_of(BASE).init()).params, None, None)
        with numerics.on_mesh(program.mesh):
            gradients.append(flatten_dict(jax.device_get(jax.jit(function)(state, batch)[0]), sep="/"))
    ours, whole = gradients
    assert ours.keys() == {name for name in whole if is_chosen(name)} and len(ours) < len(whole)
    for name, gradient in ours.items():
        assert np.linalg.norm(gradient - whole[name]) <= 1e-6 * np.linalg.norm(whole[name]), name


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon", "sgd"])
def test_the_optimizer_keeps_nothing_of_what_is_frozen(name):
    """Bytes on a device of four, by the plan's own count."""
    sizes = {}
    for chosen in (None, "final_norm"):
        config = BASE.replace(optim={"name": name, "ema_decay": None}, mesh={"fsdp": 4}, train={"trainable": chosen})
        program = program_of(config)
        sizes[chosen] = estimate.state_bytes(config, program)
        state = program.abstract_state
        names = {
            "/".join(str(getattr(k, "key", "")) for k in path)
            for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)
            if leaf.size > 16  # Muon's coefficients are of no parameter
        }
        if chosen:
            assert all("final_norm" in each for each in names), names
        assert sharding.bytes_on_one_device(state.opt_state, program.state_sharding.opt_state) == sizes[chosen][1]
    assert sizes[None][0] == sizes["final_norm"][0]
    assert sizes["final_norm"][1] < sizes[None][1] / 20


def test_gradients_of_an_estimate_are_of_what_is_trained():
    params, optimizer = estimate.state_bytes(BASE, program_of(BASE))
    names = flatten_dict(program_of(BASE).abstract_params, sep="/")
    trained = sum(leaf.size for name, leaf in names.items() if is_chosen(name))
    for config, count in ((BASE, trained), (EVERY, params / 4)):
        counted = estimate.memory(config, dict(program_of(BASE).mesh.shape), params, optimizer)["gradients"]
        assert counted == pytest.approx(2 * 4 * count)  # of a microbatch, and their sum


def test_all_is_none_and_so_is_a_star():
    params = program_of(EVERY).abstract_params
    for chosen in ("all", None):
        assert trainable.split(params, BASE.replace(train={"trainable": chosen})) == (params, {})
    trained, frozen = trainable.split(params, BASE.replace(train={"trainable": "*"}))
    assert trained == params and frozen == {} and trainable.join(trained, frozen) == params


def test_a_name_that_no_parameter_has_is_refused_with_those_near_it():
    with pytest.raises(UserError, match="'final_nrm' matches no parameter of this model; the nearest are final_norm/"):
        programs.of(BASE.replace(train={"trainable": "head, final_nrm"}), jax.devices()[:1])
