"""Training some of the layers (train.trainable="blocks[1:]/mlp"): the steps of a model of which they alone are updated."""

import functools
import shutil

import jax
import numpy as np
import pytest
import runs
from flax.traverse_util import flatten_dict, unflatten_dict
from judging import trained_values

from gptjax import cli
from gptjax.config.fields import Config, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.models import architectures
from gptjax.optim import layer_rates
from gptjax.parallel import numerics
from gptjax.planning import estimate
from gptjax.run import run as saved_runs
from gptjax.training import depth, step, trainable
from gptjax.training import program as programs

STEPS, BATCH, LENGTH, LAYERS = 3, 8, 16, 4
CHOSEN = "blocks[-2:]/mlp, blocks[0]/attention/out, blocks[2]/attention/out, final_norm"
TRAINED = {"blocks/mlp/": (2, 3), "blocks/attention/out/": (0, 2)}  # final_norm: whole
BASE = Config(
    model=ModelConfig(
        vocab_size=65,
        context_length=LENGTH,
        n_layers=LAYERS,
        d_model=32,
        n_heads=4,
        init_std=0.1,
        dtype="float32",
    ),
    optim=OptimConfig(eps=1e-5, ema_decay=0.5, skip="nonfinite"),
    train=TrainConfig(steps=STEPS, batch_size=BATCH, microbatches=2, log_every=1, trainable=CHOSEN),
    mesh=MeshConfig(fsdp=1),
)


def layers_of(name: str) -> tuple[int, ...]:
    """The trained layers of a parameter in blocks."""
    return next((layers for start, layers in TRAINED.items() if name.startswith(start)), ())


def batches() -> dict:
    rng = np.random.default_rng(0)
    token_SBT = rng.integers(0, 3, (STEPS, BATCH, LENGTH + 1)).cumsum(-1) % 65
    return {"token_BT": token_SBT.astype(np.int32), "weight_BL": rng.random((STEPS, BATCH, LENGTH)).astype(np.float32)}


@functools.cache
def program_of(config) -> programs.Program:
    sizes = [getattr(config.mesh, axis) for axis in config.mesh.AXES]
    return programs.of(config, jax.devices()[: int(np.prod(sizes))])


@functools.cache
def run(config):
    """(state before, state after 3 steps, metrics)."""
    program = program_of(config)
    with numerics.on_mesh(program.mesh):
        state = program.init()
        before = jax.device_get(state)
        batch = jax.device_put(batches(), program.train_batch_sharding)
        return before, *jax.device_get(program.train(state, batch, np.full(STEPS, 1e-2, np.float32)))


def assert_trained_alone(before, after):
    for trees in ((before.params, after.params), (before.ema, after.ema)):
        old, new = (flatten_dict(tree, sep="/") for tree in trees)
        for name, array in old.items():
            if not name.startswith("blocks/"):
                assert np.array_equal(array, new[name]) != name.startswith("final_norm"), name
                continue
            for layer in range(LAYERS):
                assert np.array_equal(array[layer], new[name][layer]) != (layer in layers_of(name)), (name, layer)


def test_layers_that_are_not_named_stay_bit_for_bit_and_the_others_learn():
    before, after, numbers = run(BASE)
    assert_trained_alone(before, after)
    assert numbers["loss"][-1] < numbers["loss"][0]


@pytest.mark.parametrize(
    "optim, rtol",
    [
        pytest.param({}, 0, marks=pytest.mark.slow),
        ({"layer_lr_decay": 0.5}, 0),
        pytest.param({"name": "lion"}, 0, marks=pytest.mark.slow),
        ({"name": "muon"}, 1e-5),
    ],
    ids=["adamw", "decay", "lion", "muon"],
)
def test_steps_are_those_of_a_whole_model_in_which_the_other_updates_are_zero(optim, rtol):
    """Bit for bit; Muon up to the order of its sums. Without clipping, whose norm is a sum in another order."""
    optim = {"clip_norm": None, "ema_decay": None, "skip": "none"} | optim
    config = BASE.replace(optim=optim, train={"microbatches": 1})
    whole = config.replace(train={"trainable": None})
    program, spec = program_of(whole), jax.tree.map(lambda place: place.spec, program_of(whole).state_sharding.params)
    before, after, _ = run(config)

    def masked(params, old):
        """The new parameters where they are trained."""
        new, frozen = flatten_dict(params, sep="/"), flatten_dict(old, sep="/")
        for name in new:
            if name.startswith("blocks/"):
                is_trained = np.isin(np.arange(LAYERS), layers_of(name)).reshape(-1, *[1] * (new[name].ndim - 1))
                new[name] = jax.numpy.where(is_trained, new[name], frozen[name])
            elif not name.startswith("final_norm"):
                new[name] = frozen[name]
        return unflatten_dict(new, sep="/")

    @jax.jit
    def reference(state, batch, learning_rate):
        grads, _ = step.mean_gradient(state, batch, graph=program.graph, config=whole, param_spec=spec)
        new, _ = step.update(state, grads, learning_rate, config=whole)
        return new._replace(params=masked(new.params, state.params))

    with numerics.on_mesh(program.mesh):
        state = program.init()
        for index in range(STEPS):
            batch = {name: array[index] for name, array in batches().items()}
            state = reference(state, batch, np.float32(1e-2))
    ours = flatten_dict(after.params, sep="/")
    for name, array in flatten_dict(jax.device_get(state.params), sep="/").items():
        assert np.linalg.norm(array - ours[name]) <= rtol * np.linalg.norm(array), name


@pytest.mark.parametrize(
    "mesh",
    [pytest.param(dict(fsdp=4, tensor=2), marks=pytest.mark.slow), dict(fsdp=2, tensor=2, stage=2)],
    ids=["fsdp", "pipeline"],
)
def test_the_steps_on_eight_devices_are_those_on_one(mesh):
    before, after, numbers = run(BASE.replace(mesh=mesh))
    _, expected, expected_numbers = run(BASE)
    assert_trained_alone(before, after)
    np.testing.assert_allclose(numbers["loss"], expected_numbers["loss"], rtol=1e-5)
    ours, theirs = (jax.tree.leaves((state.params, state.ema)) for state in (after, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)


@pytest.mark.slow
def test_bfloat16_parameters_of_frozen_layers_are_not_rounded_anew():
    config = BASE.replace(optim={"param_dtype": "bfloat16", "moment_dtype": "bfloat16"}, mesh=dict(fsdp=4))
    before, after, _ = run(config)
    assert_trained_alone(before, after)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon", "sgd"])
def test_moments_are_of_the_trained_layers_alone(name):
    sizes = {}
    for chosen in ("blocks/mlp/down/weight", "blocks[:1]/mlp/down/weight"):
        config = BASE.replace(optim={"name": name, "ema_decay": None}, mesh={"fsdp": 4}, train={"trainable": chosen})
        sizes[chosen] = estimate.state_bytes(config, program_of(config))
    (params, whole), (same_params, quarter) = sizes.values()
    assert params == same_params and whole / 4 <= quarter <= whole / 4 + 256  # counts of steps, coefficients


def test_layers_of_a_list_are_counted_from_either_end():
    for pattern, expected in {
        "blocks[6:]/mlp": ("blocks/mlp", range(6, 12)),
        "blocks[:2]": ("blocks", range(0, 2)),
        "blocks[-2:-1]/*/bias": ("blocks/*/bias", range(10, 11)),
        "blocks[-1]": ("blocks", range(11, 12)),
        "blocks[:]": ("blocks", range(12)),
    }.items():
        assert depth.parse(pattern, 12) == expected
    config = BASE.replace(train={"trainable": "blocks[:2]/mlp, blocks[2:]/mlp"})
    assert trainable.chosen("blocks/mlp/up/weight", config) is True
    assert trainable.chosen("blocks/mlp/up/weight", BASE) == (2, 3)
    assert trainable.chosen("token_embedding", BASE) is False


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("blocks[4:]", "name layers of 0 to 3"),
        ("blocks[2:9]/mlp", "name layers of 0 to 3"),
        ("blocks[3:1]", "the end of a range behind its start"),
        ("blocks[-5]", "name layers of 0 to 3"),
        ("blocks[::2]", "expected blocks.6:., blocks.2:4."),
        ("blocks[1]mlp", "expected blocks.6:., blocks.2:4."),
        ("blocks[1]/mpl/*", "'blocks.1./mpl/.' matches no parameter of this model; the nearest are blocks/mlp"),
    ],
)
def test_layers_that_the_model_has_not_are_refused(pattern, message):
    with pytest.raises(UserError, match=message):
        programs.of(BASE.replace(train={"trainable": pattern}), jax.devices()[:1])


def test_layers_that_do_not_divide_over_stages_are_refused():
    config = BASE.replace(train={"trainable": "blocks[1:]/mlp"}, mesh=dict(stage=2, tensor=4))
    with pytest.raises(UserError, match="trains 3 of 4 layers of blocks/mlp/.* do not divide over mesh.stage=2"):
        programs.of(config, jax.devices())


def test_an_array_taken_apart_is_put_together_again():
    array = np.arange(12.0).reshape(6, 2)
    for layers in ((0,), (5,), (1, 2), (0, 2, 4), (1, 5), (0, 1, 4, 5)):
        taken, rest = depth.apart(array, layers)
        assert np.array_equal(taken, array[list(layers)]) and np.array_equal(depth.together(taken, rest), array)


def test_a_layers_rate_goes_by_its_place_in_the_model():
    config = BASE.replace(optim={"layer_lr_decay": 0.5})
    role = trainable.roles(config)[("blocks", "mlp", "up", "weight")]
    assert layer_rates.factor(role, config.optim, config.model, 3).ravel().tolist() == [0.5, 1.0]
    whole = architectures.roles(config.model)[("blocks", "mlp", "up", "weight")]
    assert layer_rates.factor(whole, config.optim, config.model, 3).ravel().tolist() == [0.125, 0.25, 0.5, 1.0]


@pytest.fixture(scope="module")
def base(values, tmp_path_factory):
    """A run of two layers."""
    folder = tmp_path_factory.mktemp("base")
    config = runs.changed(trained_values(values), model=dict(n_layers=2), train=dict(steps=2))
    assert cli.main(["train", runs.write_config(config, folder / "config.py"), f"--workdir={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.mark.parametrize(
    "model, chosen, frozen_name",
    [
        pytest.param({}, "blocks[1:]/mlp", "blocks/mlp/up/weight", marks=pytest.mark.slow),
        pytest.param(
            {"adapter": "lora(rank=2, on='all')"},
            "blocks[1:]/*adapter/*",
            "blocks/mlp/up/adapter/whole/B",
            marks=pytest.mark.slow,
        ),
        ({"adapter": "lora(rank=2)"}, "*adapter/*, blocks[1:]/mlp", "blocks/mlp/up/weight"),
    ],
    ids=["layers", "adapter", "both"],
)
def test_a_run_that_trains_some_layers_of_another_goes_on_bit_equal_after_a_kill(
    base, values, tmp_path, model, chosen, frozen_name
):
    config = runs.changed(
        trained_values(values),
        model=dict(n_layers=2) | model,
        optim=dict(peak_lr=0.05),
        train=dict(steps=4, start_from=str(base), trainable=chosen),
        checkpoint=dict(every_steps=2, keep=9),
        eval=dict(every_steps=None),
    )
    file, run, disturbed = runs.write_config(config, tmp_path / "config.py"), tmp_path / "run", tmp_path / "disturbed"
    assert cli.main(["train", file, f"--workdir={run}"]) == 0
    shutil.copytree(run, disturbed)
    shutil.rmtree(disturbed / "checkpoints" / "4")
    assert cli.main(["train", file, f"--workdir={disturbed}"]) == 0
    assert runs.losses(disturbed) == runs.losses(run)
    before, after = (runs.saved_arrays(each, 4) for each in (run, disturbed))
    assert before.keys() == after.keys() and all(np.array_equal(array, after[name]) for name, array in before.items())
    start, end = (flatten_dict(saved_runs.load(run, step).params, sep="/")[frozen_name] for step in (0, 4))
    assert np.array_equal(start[0], end[0]) and not np.array_equal(start[1], end[1])
