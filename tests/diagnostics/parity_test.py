"""The certificate for the shipped configs, that it fails when sharding is broken on purpose, and what it covers."""

import functools
import json
import os
import subprocess
import sys

import jax
import optax
import pytest
import runs
from places import ROOT

from gptjax import cli
from gptjax.config import catalogue
from gptjax.config.config_file import from_dict, load_config
from gptjax.diagnostics import miniature, parity
from gptjax.models import attention
from gptjax.optim import optimizers
from gptjax.parallel import meshes, sharding
from gptjax.training import step

CONFIGS = {
    "gpt1": [],
    "gpt2_small": [],
    "gpt3_175b": ["model.band_width=256"],
}


def config_of(name: str, *overrides: str):
    return load_config(str(ROOT / "configs" / f"{name}.py"), [*CONFIGS.get(name, []), *overrides])


def failures(outcomes) -> list[str]:
    return [parity.line(outcome) for outcome in outcomes if outcome.differs]


# An LSTM, which compiles fastest and has two remat policies, where only replica can be split: four runs.
INDIVISIBLE = {
    "model": dict(architecture="lstm", n_layers=2, d_model=25, context_length=25, vocab_size=65),
    "train": dict(steps=1, batch_size=8),
}


# The shipped configs


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_runs_that_cover_every_pair_of_axes_remat_and_accumulation_equal_one_device(name):
    shallow = ["model.n_layers=8"] if name == "gpt3_175b" else []  # half the time; a pipeline of eight is slow's
    outcomes = parity.certify(config_of(name, *shallow), steps=2, every_mesh=False)
    assert not failures(outcomes)
    assert parity.passed(outcomes)
    ran = [outcome.case for outcome in outcomes if not outcome.refused]
    assert {case.remat for case in ran} == set(catalogue.entry("gpt").remat)
    assert {axis for case in ran for axis, _ in case.mesh} >= set(meshes.AXES)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*CONFIGS, "gpt2_xl"])
def test_every_factorisation_equals_one_device_or_is_refused_with_the_reason(name):
    config = config_of(name)
    outcomes = parity.certify(config, steps=3)
    assert not failures(outcomes)
    assert {outcome.case.mesh for outcome in outcomes} == set(parity.factorisations(config.mesh))
    assert all(outcome.refused is None or "use" in outcome.refused for outcome in outcomes)


def test_the_command_starts_its_own_devices_and_exits_0(tmp_path):
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    config = runs.write_config(INDIVISIBLE, tmp_path / "fields.py")
    command = [sys.executable, "-m", "gptjax", "parity", config, "--steps=1"]
    done = subprocess.run(command, env=kept, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *rows, last = done.stdout.splitlines()
    assert "equal to one device within 1e-05" in last
    meshes = parity.factorisations(from_dict(INDIVISIBLE).mesh)
    indivisible = [mesh for mesh in meshes if not all(axis.endswith("replica") for axis, _ in mesh)]
    assert sum("refused: m" in row for row in rows) == len(indivisible) > 10
    replicated = [row for row in rows if row.startswith("replica=") and "refused" not in row]
    assert len(replicated) == len(catalogue.entry("lstm").remat) * 2


# It can fail


@functools.cache
def runner(optimizer: str = "adamw", steps: int = 2, name: str = "gpt2_small") -> parity.Runner:
    return parity.Runner.of(miniature.shrink(config_of(name, f"optim.name={optimizer}"), steps))


@functools.cache
def reference(*made: str | int):
    return runner(*made).reference()


def outcome_of(mesh: dict, *made: str | int) -> parity.Outcome:
    return runner(*made).run(parity.Case(tuple(mesh.items()), 1, "none"), *reference(*made))


def axis_size(axis: str) -> int:
    return sharding.mesh_axis_size(axis)


def count_of_one_device(accumulate):
    def broken(*args, **options):
        grads, loss_sum, count, numbers = accumulate(*args, **options)
        return grads, loss_sum, count / axis_size("fsdp"), numbers

    return broken


def biases_summed_twice(accumulate):
    def broken(*args, **options):
        grads, *others = accumulate(*args, **options)
        path_grads, tree = jax.tree_util.tree_flatten_with_path(grads)
        twice = [g * axis_size("replica") if path[-1].key in ("bias", "gain") else g for path, g in path_grads]
        return tree.unflatten(twice), *others

    return broken


def neighbour_unseen(visible):
    def broken(query_L, key_M, window):
        seen = visible(query_L, key_M, window)
        distance = query_L[:, None] - key_M[None, :]
        return seen & (distance != 1) if axis_size("sequence") > 1 else seen

    return broken


def rate_off_by_a_percent(update):
    def broken(state, grads, learning_rate, *, config):
        return update(state, grads, learning_rate * (1.01 if axis_size("tensor") > 1 else 1.0), config=config)

    return broken


FAULTS = [  # where, what, on which mesh it shows, on which it doesn't, in which numbers
    (
        step,
        "accumulate",
        count_of_one_device,
        dict(fsdp=8),
        dict(replica=8),
        ["loss", "gradient"],
    ),  # Adam takes no scale
    (step, "accumulate", biases_summed_twice, dict(replica=8), dict(fsdp=8), ["gradient"]),
    (attention, "visible", neighbour_unseen, dict(sequence=8), dict(fsdp=8), ["loss", "gradient"]),
    (step, "update", rate_off_by_a_percent, dict(fsdp=4, tensor=2), dict(fsdp=8), ["parameter"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "module,name,broken,wrong,right,kinds",
    [  # the command's fault is biases_summed_twice, and an optimizer's below shows in parameters alone
        pytest.param(*fault, id=fault[2].__name__, marks=[pytest.mark.slow] * (fault[2] is not count_of_one_device))
        for fault in FAULTS
    ],
)
def test_a_fault_in_sharding_shows_on_the_meshes_that_have_it(module, name, broken, wrong, right, kinds, monkeypatch):
    reference()
    jax.clear_caches()
    monkeypatch.setattr(module, name, broken(getattr(module, name)))
    found = outcome_of(wrong)
    assert set(kinds) <= set(found.differs)
    assert ("parameter" in found.differs) == ("parameter" in kinds), "all update along the gradients of one device"
    assert "gradient" not in kinds or found.worst["gradient"][0] > 1e-3
    assert not outcome_of(right).differs
    jax.clear_caches()


ALL_AXES = dict(fsdp=2, sequence=2, tensor=2)


def momentum_halved(update):
    """As of a state that two devices take to be another's part."""

    def broken(state, grads, learning_rate, *, config):
        def halve(path, leaf):
            names = [getattr(key, "name", getattr(key, "key", "")) for key in path]
            return leaf * 0.5 if axis_size("tensor") > 1 and {"mu", "trace", "v", "nu"} & {*names} else leaf

        halved = jax.tree_util.tree_map_with_path(halve, state.opt_state)
        return update(state._replace(opt_state=halved), grads, learning_rate, config=config)

    return broken


def norm_of_a_shard(clip):
    """RMS over the entries of one device, taken for that of the parameter."""

    def broken(threshold):
        whole = clip(threshold)

        def of_shard(updates, state, params=None):
            clipped, state = whole.update(updates, state, params)
            return jax.tree.map(lambda u: u / axis_size("tensor") ** 0.5, clipped), state

        return optax.GradientTransformation(whole.init, of_shard)

    return broken


def larger_size_of_a_shard(scale):
    def broken(updates, params):
        return jax.tree.map(lambda u: u / axis_size("tensor") ** 0.5, scale(updates, params))

    return broken


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [dict(fsdp=8), ALL_AXES, dict(stage=2, tensor=4)])
def test_signs_of_gradients_that_are_zero_but_for_rounding_make_no_difference(mesh):
    """Of eight layers, on whose meshes Lion's own gradients turn some signs, and parameters by 1e-4 after three steps."""
    found = outcome_of(mesh, "lion", 3, "gpt3_2_7b")
    assert not found.differs, parity.line(found)


OPTIMIZER_FAULTS = {  # of its state, or of a norm that it takes of whole parameters
    "adamw": (step, "update", momentum_halved),
    "adafactor": (optax, "clip_by_block_rms", norm_of_a_shard),
    "lion": (step, "update", momentum_halved),
    "muon": (optimizers, "_to_adamw_rms", larger_size_of_a_shard),
    "sgd": (step, "update", momentum_halved),
}


@pytest.mark.parametrize("name", runs.default_or_slow(optimizers.OPTIMIZERS, ["lion"]))
def test_every_optimizer_equals_one_device_over_steps_and_a_fault_in_its_state_shows(name, monkeypatch):
    made = (name, 3)
    right = outcome_of(ALL_AXES, *made)
    assert not right.differs, parity.line(right)
    jax.clear_caches()
    module, function, broken = OPTIMIZER_FAULTS[name]
    monkeypatch.setattr(module, function, broken(getattr(module, function)))
    assert {"parameter"} <= {*outcome_of(ALL_AXES, *made).differs} <= {"loss", "parameter"}
    jax.clear_caches()


def test_a_fault_makes_the_command_exit_1_and_is_named(monkeypatch, capsys, tmp_path):
    config = runs.write_config(INDIVISIBLE, tmp_path / "fields.py")
    jax.clear_caches()
    monkeypatch.setattr(step, "accumulate", biases_summed_twice(step.accumulate))
    assert cli.main(["parity", config, "--json", "--steps=1"]) == 1
    jax.clear_caches()
    facts = json.loads(capsys.readouterr().out)
    assert not facts["passed"]
    wrong = [run for run in facts["runs"] if run["differs"]]
    assert wrong and all("gradient" in run["differs"] and "replica" in run["mesh"] for run in wrong)
    assert all(run["gradient"]["where"].endswith(("bias", "gain")) for run in wrong)
