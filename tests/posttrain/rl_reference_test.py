"""The reference of reinforcement learning is one checkpoint from the beginning of a run to its end, and in its branches."""

import shutil

import pytest
import runs

from gptjax.config.config_file import from_dict
from gptjax.errors import UserError
from gptjax.rundir import metrics, run_directory
from gptjax.training import branching, main

VALUES = {
    "model": dict(context_length=16, n_layers=1, d_model=16, n_heads=2, dtype="float32"),
    "data": dict(tokenizer="bytes", chat="gptjax"),
    "optim": dict(peak_lr=1e-2, schedule="constant"),
    "train": dict(steps=4, batch_size=8, steps_per_call=2, log_every=2, loss="grpo(beta=0.1)", tensorboard=False),
    "rl": dict(
        prompts="copying(shortest=1, longest=2)",
        problems=20,
        eval_prompts=4,
        rewards="length(target=3, unit='characters')",
        group=4,
        max_tokens=4,
    ),
    "checkpoint": dict(every_steps=2, keep=9),
    "eval": dict(every_steps=None),
}


def config_of(**sections):
    return from_dict(runs.changed(VALUES, **sections))


def numbers(workdir) -> list[tuple]:
    """Of each iteration: step, divergence, reward."""
    rows = metrics.read_metrics(workdir / "metrics.jsonl", "rollout")
    return [(row["step"], row.get("kl_k3"), row["reward"]) for row in rows]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run that others start from, or are held to."""
    workdir = tmp_path_factory.mktemp("base") / "run"
    assert main.train(config_of(rl=dict(reference=None), train=dict(loss="grpo")), str(workdir)) == 0
    return workdir


@pytest.mark.slow
def test_a_reference_that_is_trained_on_stays_the_checkpoint_that_it_was(base, tmp_path):
    other, workdir = tmp_path / "other", tmp_path / "run"
    shutil.copytree(base, other)
    shutil.rmtree(other / "checkpoints" / "4")
    config = config_of(rl=dict(reference=str(other)))
    assert main.train(config, str(workdir)) == 0
    undisturbed = numbers(workdir)
    shutil.copytree(base / "checkpoints" / "4", other / "checkpoints" / "4")
    shutil.rmtree(workdir / "checkpoints" / "4")
    assert main.train(config, str(workdir)) == 0
    assert numbers(workdir) == undisturbed and undisturbed[-1][1] > 1e-5

    shutil.rmtree(other / "checkpoints" / "2")
    shutil.copytree(other / "checkpoints" / "4", other / "checkpoints" / "2")
    shutil.rmtree(workdir / "checkpoints" / "4")
    with pytest.raises(UserError, match=r"rl\.reference: step 2 of .* is another checkpoint than when this run began"):
        main.train(config, str(workdir))


@pytest.mark.slow
def test_a_branch_is_held_to_the_start_of_its_trunk(base, tmp_path):
    config = config_of(train=dict(start_from=str(base)))
    trunk, branch = tmp_path / "trunk", tmp_path / "branch"
    assert main.train(config, str(trunk)) == 0
    origin = branching.Origin(run_directory.open_run(str(trunk)), 2)
    assert main.train(config, str(branch), origin=origin) == 0
    assert numbers(branch)[-1] == numbers(trunk)[-1] and numbers(trunk)[-1][1] > 1e-4
    runs.assert_same_state(trunk, branch, 4)


def test_what_cannot_be_a_reference_is_refused_by_the_name_of_the_field(base, tmp_path):
    with pytest.raises(UserError, match=r"rl\.reference='.*nowhere' is not a run directory"):
        main.train(config_of(rl=dict(reference=str(tmp_path / "nowhere"))), str(tmp_path / "run"))
