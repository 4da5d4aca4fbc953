"""Runs of reinforcement learning as processes of their own: killed at random points, on meshes, as two processes."""

import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import runs

from gptjax.rundir import metrics, run_directory

ITERATIONS, ANSWERS = 30, 32  # in all; in each
KILLS = int(os.environ.get("GPTJAX_TEST_KILLS", 5))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rl_values(text):
    """GRPO with a divergence in the loss, and groups drawn again."""
    return {
        "model": dict(context_length=32, n_layers=1, d_model=16, n_heads=2, dtype="float32"),
        "data": dict(tokenizer="bytes", chat="gptjax", cache_dir=str(text.parent / "cache")),
        "optim": dict(peak_lr=3e-3, schedule="constant"),
        "train": dict(steps=2 * ITERATIONS, batch_size=16, steps_per_call=2, log_every=2, loss="grpo(beta=0.01)", tensorboard=False),
        "rl": dict(prompts="copying(shortest=2, longest=3)", problems=50, eval_prompts=8, rewards="ended + 0.25*length(target=3)",
                   group=4, max_tokens=5, redraws=1),
        "checkpoint": dict(every_steps=6, keep=3),
        "eval": dict(every_steps=20, sample_every_steps=2),
    }  # fmt: skip


def rollouts(workdir) -> list[dict]:
    return metrics.read_metrics(workdir / "metrics.jsonl", "rollout")


def drawn(workdir) -> list:
    """Every answer shown, and what answers were worth, by step."""
    shown = [row for row in metrics.read_metrics(workdir / "metrics.jsonl", "event") if row["event"] == "answer"]
    return [(row["step"], row["prompt"], row["text"], row["reward"]) for row in shown] + [
        (row["step"], row["reward"], row["tokens"], row["end_rate"]) for row in rollouts(workdir)
    ]


@pytest.fixture(scope="module")
def alone(rl_values, tmp_path_factory):
    """The directory of a run of one process on one device."""
    folder = tmp_path_factory.mktemp("alone")
    with runs.processes(rl_values, folder / "run", folder, 1, 1) as [process]:
        process.ends_with(0)
    return folder / "run"


@pytest.mark.parametrize(("count", "devices"), [(1, 2), (1, 8), (2, 1)])
def test_answers_and_rewards_are_the_same_on_any_mesh_and_in_two_processes(rl_values, alone, tmp_path, count, devices):
    with runs.processes(rl_values, tmp_path / "run", tmp_path, count, devices) as started:
        for process in started:
            process.ends_with(0)
    assert drawn(tmp_path / "run") == drawn(alone) and len(rollouts(alone)) == ITERATIONS
    for name in ("kl_k3", "entropy"):
        values = [[row[name] for row in rollouts(workdir)] for workdir in (tmp_path / "run", alone)]
        np.testing.assert_allclose(*values, rtol=2e-3, atol=1e-5)


def kill_now(answer) -> float:
    """A reward that kills its process with the answer that the file it watches counts down to; without the file, none."""
    file = os.environ.get("GPTJAX_TEST_KILL")
    if file and os.path.exists(file):
        counted = int(pathlib.Path(file).read_text()) - 1
        pathlib.Path(file).write_text(str(counted))
        if counted == 0:
            os.remove(file)
            os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def test_a_run_that_is_killed_at_random_points_comes_to_the_same_bits(rl_values, alone, tmp_path):
    """By turns while it scores, at any moment of an update or a rollout, and while it starts; up to eight iterations behind a
    resume, before it has saved once and after. GPTJAX_TEST_KILLS: how often."""
    rng, killed, countdown = random.Random(0), tmp_path / "killed", tmp_path / "countdown"
    values = runs.changed(rl_values, rl=dict(rewards=rl_values["rl"]["rewards"] + " + 0*rl_restarts_test:kill_now"))
    command = [sys.executable, "-m", "gptjax", "train", runs.write_config(values, tmp_path / "fields.py")]
    command.append(f"--workdir={killed}")
    environment = os.environ | {
        "XLA_FLAGS": re.sub(r"device_count=\d+", "device_count=1", os.environ["XLA_FLAGS"]),
        "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path]),
        "GPTJAX_TEST_KILL": str(countdown),
    }
    for number in range(KILLS):
        lose_late_checkpoints(killed)
        if number % 3 == 0:
            countdown.write_text(str(rng.randint(1, 5 * ANSWERS)))
        started = time.time()
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        if number % 3 == 1:  # a row is written between scoring and update
            new_rows = rng.randint(1, 8)
            runs.wait_until(lambda: since(killed, started) >= new_rows, process)  # noqa: B023
            time.sleep(rng.uniform(0, seconds_of_iteration(alone)))
        elif number % 3 == 2:
            time.sleep(rng.uniform(1, 6))
        if number % 3:
            process.kill()
        stderr = process.communicate(timeout=runs.SECONDS)[1]
        assert process.returncode == -signal.SIGKILL, stderr
    end = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    assert drawn(killed) == drawn(alone)
    runs.assert_same_state(alone, killed, 2 * ITERATIONS)


def seconds_of_iteration(workdir) -> float:
    """The median time between two rows."""
    return float(np.median(np.diff([row["time"] for row in rollouts(workdir)])))


def since(workdir, started: float) -> int:
    """Iterations that were logged after a time."""
    file = workdir / "metrics.jsonl"
    return sum(row["time"] >= started for row in rollouts(workdir)) if file.exists() else 0


def lose_late_checkpoints(workdir) -> None:
    """Those of the second half, so that the run does not come to its end before all kills."""
    if workdir.exists():
        for step in run_directory.open_run(workdir).steps():
            if ITERATIONS < step:
                shutil.rmtree(workdir / "checkpoints" / str(step))
