"""launch/local.py: its processes as one job, and real trainings that are killed and stopped."""

import argparse
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
import quick_compilation
from launching import CONFIG, ROOT, seen, wait_until

from gptjax import errors
from gptjax.rundir import metrics, run_directory

import common  # isort: skip
import local  # isort: skip


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    """Where users stand."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XLA_FLAGS", quick_compilation.FLAGS)


# --- Processes on this machine ---


@pytest.fixture
def group():
    """group(code of each process ...) are Python processes as one Job; none outlives the test."""
    groups = []

    def start(*codes: str, grace_seconds: float = 20):
        made = local.Group([sys.executable, "-u", "-c", "import os; exec(os.environ['CODE'])"], [
            common.environment(CODE=code) for code in codes
        ], grace_seconds)  # fmt: skip
        groups.append(made)
        return made

    yield start
    for made in groups:
        made.send_signal(signal.SIGKILL)
        made.wait()


SAVE = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); print('ready'); time.sleep(60)"


def test_lines_of_each_process_begin_with_its_index(group, capfd):
    assert group("print('a'); print('b')", "import sys; print('c', file=sys.stderr)").wait() == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["[0] a", "[0] b", "[1] c"]


def test_a_signal_reaches_every_process_and_75_means_that_all_have_saved(group, capfd):
    job = group(SAVE, SAVE)
    wait_until(lambda: seen(capfd).count("ready") == 2)
    job.send_signal(signal.SIGTERM)
    assert job.wait() == errors.SAVED_AND_STOPPED


def test_the_code_is_that_of_the_process_that_failed_first_and_not_of_those_that_lost_it(group, capfd):
    assert group("raise SystemExit(78)", "import os, time; time.sleep(0.5); os.kill(os.getpid(), 9)").wait() == 137
    assert group("raise SystemExit(3)", "import time; time.sleep(0.5); raise SystemExit(78)").wait() == 3
    assert group("raise SystemExit(75)", "import time; time.sleep(0.3); raise SystemExit(4)").wait() == 4


def test_a_process_that_does_not_notice_the_failure_of_another_is_killed_after_the_grace_time(group, capfd):
    begun = time.monotonic()
    assert group("import os; os.kill(os.getpid(), 9)", "import time; time.sleep(60)", grace_seconds=0.5).wait() == 137
    assert group("raise SystemExit(78)", "import time; time.sleep(60)", grace_seconds=0.1).wait() == 78
    assert 0.5 < time.monotonic() - begun < 10 and "[1] has not ended 0.5 s after" in capfd.readouterr().err


def test_gpus_are_divided_among_the_processes_and_not_shared(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,5")
    args = argparse.Namespace(num_processes=2, devices_per_process=None)
    run = common.Run([CONFIG], "configs/quickstart.py", "x")
    assert local.device_variables(args, run) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,5"}]
    args.devices_per_process = 1
    assert local.device_variables(args, run) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    args.devices_per_process = 3
    with pytest.raises(common.UserError, match="needs 6, but there are 4"):
        local.device_variables(args, run)


@pytest.mark.parametrize(
    "override, devices",
    [([], "mesh.cpu_devices=2 of "), (["--config.mesh.cpu_devices=1"], "--config.mesh.cpu_devices=1 c")],
)
def test_devices_that_cannot_be_divided_are_named_where_they_were_given(monkeypatch, override, devices):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    run = common.Run([CONFIG, *override], "configs/quickstart.py", "x")
    with pytest.raises(common.UserError) as refused:
        local.device_variables(argparse.Namespace(num_processes=3, devices_per_process=None), run)
    assert str(refused.value).startswith(devices) and "to a multiple of it" in str(refused.value)


# --- Real trainings: quickstart with fewer steps and a small model ---

SMALL = (
    "model.n_layers=1", "model.d_model=24", "model.n_heads=2", "model.context_length=32", "model.scan_unroll=1",
    "data.tokenizer=bytes", "train.steps=200", "train.tensorboard=False", "checkpoint.every_steps=50",
    "eval.every_steps=200", "eval.max_tokens=512", "eval.sample_tokens=0",
)  # fmt: skip


@pytest.fixture
def start_local():
    """start_local(workdir) trains there in two processes. A launcher that still runs at the end is killed, and they go."""
    started = []

    def start(workdir: pathlib.Path) -> subprocess.Popen:
        train = [CONFIG, f"--workdir={workdir}", *(f"--config.{field}" for field in SMALL)]
        train.append(f"--config.data.cache_dir={workdir.parent / 'cache'}")
        words = [sys.executable, "launch/local.py", "--num_processes=2", "--backoff_seconds=0.1", "--", *train]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GPTJAX_")}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen(words, env=environment, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def children(pid: int) -> list[int]:
    return [int(word) for word in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def logged_losses(workdir: pathlib.Path) -> list[tuple]:
    file = run_directory.open_run(str(workdir)).metrics
    rows = metrics.read_metrics(file, "train") if file.exists() else []
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows]


def wait_for_step(workdir: pathlib.Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not any(row[0] >= step for row in logged_losses(workdir)):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.01)


@pytest.mark.slow  # six processes; supervisor_test restarts runs, distributed_test kills and resumes one bit-equal
def test_a_killed_run_is_restarted_by_the_supervisor_and_ends_bit_equal_to_an_undisturbed_one(start_local, tmp_path):
    undisturbed = start_local(tmp_path / "undisturbed")
    output, _ = undisturbed.communicate(timeout=240)
    assert undisturbed.returncode == 0, output
    killed = start_local(tmp_path / "killed")
    wait_for_step(tmp_path / "killed", 70, killed)
    victims = children(killed.pid)
    assert len(victims) == 2
    os.kill(victims[-1], signal.SIGKILL)
    output, _ = killed.communicate(timeout=240)
    assert killed.returncode == 0, output
    [line] = [line for line in output.splitlines() if line.startswith("supervisor: ")]
    assert re.search(r"code 137 \(SIGKILL\) at step [1-9]\d*, having gained [1-9]\d*; restart 1 of 100", line)
    assert "[0] " in output and "[1] " in output
    losses = logged_losses(tmp_path / "undisturbed")
    assert len(losses) == 21 and losses[-1][0] == 200
    assert logged_losses(tmp_path / "killed") == losses


@pytest.mark.slow  # groups of processes get signals above, distributed_test stops a training so
def test_sigterm_to_the_launcher_saves_the_run_and_exits_with_75(start_local, tmp_path):
    process = start_local(tmp_path / "run")
    wait_for_step(tmp_path / "run", 10, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == errors.SAVED_AND_STOPPED, output
    assert "Traceback" not in output and "told to stop by SIGTERM" in output
    assert run_directory.open_run(str(tmp_path / "run")).steps()[-1] == logged_losses(tmp_path / "run")[-1][0]


def test_a_mistake_in_the_text_is_not_restarted(tmp_path):
    train = [CONFIG, f"--workdir={tmp_path / 'run'}", "--config.data.path=/nowhere/text.txt"]
    done = subprocess.run([sys.executable, "launch/local.py", "--", *train], capture_output=True, text=True)
    assert done.returncode == 2 and "not restarted: code 2" in done.stderr and "/nowhere/text.txt" in done.stderr
