"""gptjax study run: killed and run again, with what diverges and fails, on real processes."""

import json
import os
import random
import signal

import launching
import pytest
import studying

from gptjax import errors

MIXED = """tokens=(5120,), grid={"optim.peak_lr": (3e-3, 1e6), "eval.tasks": (None, "no/such/task.yaml")},
        keep=lambda factors: factors["optim.peak_lr"] == 3e-3 or factors["eval.tasks"] is None"""  # 40 steps
FINE, FAILS, DIVERGES = (f"s-D5.12e+03-{rest}-seed0" for rest in (
    "peak_lr=0.003-tasks=None", "peak_lr=0.003-tasks=no/such/task.yaml", "peak_lr=1000000.0-tasks=None",
))  # fmt: skip
ALONE = "tokens=(5120,)"  # FINE, by another name
SEVERAL = "tokens=(5120,), seeds=(0, 1, 2)"


def write(tmp_path, text, fields: str):
    return studying.write_study(tmp_path / "study.py", text, fields)


@pytest.fixture(scope="module")
def mixed(text, tmp_path_factory):
    """(study file, its folder, exit code, output) of a study in which one run is fine, one fails and one diverges."""
    folder = tmp_path_factory.mktemp("mixed")
    file = write(folder, text, MIXED)
    return file, folder / "out", *studying.run(file, folder / "out", "--parallel=2")


def test_a_run_that_diverges_and_one_that_fails_stay_visible_with_their_reasons(mixed):
    _, out, code, said = mixed
    assert code == 1, said
    states = studying.states(out)
    assert {name: known.state for name, known in states.items()} == {
        FINE: "done", FAILS: "failed", DIVERGES: "diverged"
    }  # fmt: skip
    assert "no/such/task.yaml: no such file" in states[FAILS].reason and "exit code 2" in states[FAILS].reason
    assert "is nan at step" in states[DIVERGES].reason or "is inf at step" in states[DIVERGES].reason
    for name, known in states.items():
        [line] = [line for line in said.splitlines() if name in line and line.startswith(known.state)]
        assert known.reason in line and line.endswith(" s")
    assert json.loads((out / "logs" / f"{states[DIVERGES].entry.key}.exit.json").read_text())["code"] == 76


@pytest.mark.slow
def test_run_again_what_is_done_or_diverged_is_left_alone_and_what_failed_is_tried_once_more(mixed):
    file, out, _, _ = mixed
    states = studying.states(out)
    kept = [p for name in (FINE, DIVERGES) for p in (out / "runs" / states[name].entry.key).rglob("*")]
    kept += [out / "logs" / f"{states[name].entry.key}.log" for name in (FINE, DIVERGES)]
    before = {path: path.stat().st_mtime_ns for path in kept}
    code, said = studying.run(file, out)
    assert code == 1 and len([line for line in said.splitlines() if line.startswith("failed ")]) == 1
    assert {path: path.stat().st_mtime_ns for path in kept} == before and len(before) > 20
    assert json.loads((out / "logs" / f"{states[FAILS].entry.key}.exit.json").read_text())["attempt"] == 2


def kill_at_step(file, out, step: int, *flags: str) -> int:
    """kill -9 of the command and its runs when they have taken so many steps. Returns how many they then had."""
    process = studying.start(file, out, *flags)
    studying.wait_until(lambda: process.poll() is not None or studying.steps_taken(out) >= step)
    assert process.poll() is None, process.communicate()[0]
    studying.kill_all(out, process)
    return studying.steps_taken(out)


@pytest.mark.slow  # half a minute of CPU; a group's kills are in study_batched_test, who starts what in study_launching_test
def test_killed_while_it_begins_and_in_the_middle_and_told_to_stop_it_ends_with_the_points_of_an_undisturbed_one(
    mixed, text, tmp_path
):
    file, out = write(tmp_path, text, ALONE), tmp_path / "out"
    process = studying.start(file, out)
    studying.wait_until((out / "study.json").exists)
    studying.kill_all(out, process)
    assert studying.steps_taken(out) == 0

    assert 12 <= kill_at_step(file, out, 12) < 40

    process = studying.start(file, out)
    studying.wait_until(lambda: studying.steps_taken(out) >= 22)
    os.kill(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=studying.SECONDS)
    assert process.returncode == errors.SAVED_AND_STOPPED, said
    assert "SIGTERM: stopped; run the same command again to continue" in said
    assert not studying.of_folder(out)
    [stopped] = studying.states(out).values()
    assert stopped.state == "partial" and 22 <= stopped.step < 40

    code, said = studying.run(file, out)
    assert code == 0, said
    [ended], [key] = studying.points(out).values(), [known.entry.key for known in studying.states(out).values()]
    undisturbed = studying.points(mixed[1])[FINE]
    assert ended == undisturbed and len(ended) == 41
    assert key == studying.states(mixed[1])[FINE].entry.key


@pytest.mark.slow
def test_killed_five_times_at_random_points_three_runs_end_with_the_points_they_have_one_after_the_other(
    text, tmp_path
):
    file, out, undisturbed = write(tmp_path, text, SEVERAL), tmp_path / "out", tmp_path / "undisturbed"
    code, said = studying.run(file, undisturbed, "--parallel=1")
    assert code == 0, said
    rng = random.Random(0)
    for _ in range(5):
        kill_at_step(file, out, studying.steps_taken(out) + rng.randint(1, 22), "--parallel=2")
    code, said = studying.run(file, out, "--parallel=2")
    assert code == 0, said
    assert studying.points(out) == studying.points(undisturbed)


@pytest.mark.slow
def test_through_the_slurm_launcher_a_study_ends_as_it_does_here(mixed, tmp_path, monkeypatch):
    """sbatch and srun run what they are given at once: what is tried is all else, supervisor and exit codes included."""
    launching.program(tmp_path / "sbatch", 'SLURM_JOB_ID=7 bash "$1" &> "${1%.sbatch}-7.log"')
    launching.program(tmp_path / "srun", 'while [[ "$1" == --* ]]; do shift; done; exec "$@"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("PJRT_NPROC", "1")
    file, here, _, _ = mixed
    flags = ["--launcher=slurm", "--launcher_flag=--time=1:00:00", "--parallel=2"]
    code, said = studying.run(file, tmp_path / "out", *flags)
    assert code == 1, said
    assert studying.points(tmp_path / "out") == studying.points(here)
    states = {name: known.state for name, known in studying.states(tmp_path / "out").items()}
    assert states == {FINE: "done", FAILS: "failed", DIVERGES: "diverged"}
    assert studying.states(tmp_path / "out")[FAILS].reason == studying.states(here)[FAILS].reason
