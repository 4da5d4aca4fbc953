"""The supervisor, run for real on small children that make a run directory of their own."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from gptjax import errors, supervisor

# Takes its orders from plan.json, one a start: a checkpoint to make, then a code to exit with, a signal to die of, or
# "wait": until SIGTERM, to save another checkpoint then.
CHILD = """
import json, os, pathlib, signal, sys, time
from etils import epath
from gptjax.checkpoints import validity
here = pathlib.Path(sys.argv[1])
starts = here / "starts.txt"
number = len(starts.read_text().split()) if starts.exists() else 0
plan = json.loads((here / "plan.json").read_text())
step, ending = plan[min(number, len(plan) - 1)]
def save(step):
    folder = here / "checkpoints" / str(step)
    folder.mkdir(parents=True, exist_ok=True)
    validity.write_manifest(epath.Path(folder), step, config={}, data={}, arrays={})
def on_term(*_):
    save(step + 5)
    sys.exit(75)
signal.signal(signal.SIGTERM, on_term)
signal.signal(signal.SIGINT, on_term)
if step:
    save(step)
with starts.open("a") as file:
    file.write(f"{os.getpid()}\\n")
if ending == "wait":
    time.sleep(60)
elif ending < 0:
    os.kill(os.getpid(), -ending)
sys.exit(ending)
"""


def start(directory: pathlib.Path, plan: list, *flags: str) -> subprocess.Popen:
    directory.mkdir(exist_ok=True)
    (directory / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, "-c", CHILD, str(directory)]
    words = [sys.executable, "-m", "gptjax.supervisor", f"--workdir={directory}", "--backoff_seconds=0.05", *flags]
    return subprocess.Popen([*words, "--", *command], stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> tuple[int, list[str]]:
    """Its exit code and what it said."""
    _, stderr = process.communicate(timeout=30)
    assert "Traceback" not in stderr, stderr
    return process.returncode, stderr.splitlines()


def starts(directory: pathlib.Path) -> list[int]:
    file = directory / "starts.txt"
    return [int(pid) for pid in file.read_text().split()] if file.exists() else []


def wait_for_start(directory: pathlib.Path, count: int) -> None:
    deadline = time.monotonic() + 20
    while len(starts(directory)) < count:
        assert time.monotonic() < deadline, f"no start number {count}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_run_that_crashes_while_it_gains_steps_is_restarted_until_it_is_done(tmp_path):
    passing = [errors.STALLED, errors.PEER_LOST, errors.SAVE_FAILED, errors.SAVED_AND_STOPPED]
    endings = [1, -signal.SIGKILL, *passing, 0]
    plan = [[10 * i, ending] for i, ending in enumerate(endings, 1)]
    code, lines = finish(start(tmp_path, plan, "--max_stalled=1"))
    assert code == 0 and len(starts(tmp_path)) == 7
    assert [f"restart {i} of 100" in line for i, line in enumerate(lines, 1)] == [True] * 6
    assert "code 137 (SIGKILL) at step 20, having gained 10" in lines[1]


def test_a_run_that_gains_nothing_is_given_up_and_the_last_line_says_where_and_why(tmp_path):
    code, lines = finish(start(tmp_path, [[10, 1], [10, 1], [20, 1], [20, 3]], "--max_stalled=2"))
    assert code == supervisor.GAVE_UP and len(starts(tmp_path)) == 5
    assert "giving up" in lines[-1] and "code 3 at step 20" in lines[-1] and "2 starts in a row" in lines[-1]


@pytest.mark.parametrize("code", [2, errors.DIVERGED, supervisor.GAVE_UP, errors.MOVED])
def test_an_end_that_a_restart_cannot_mend_is_final(tmp_path, code):
    got, lines = finish(start(tmp_path, [[10, code], [20, 0]]))
    assert got == code and len(starts(tmp_path)) == 1
    assert "not restarted" in lines[-1] and "at step 10" in lines[-1]


def test_restarts_have_a_limit(tmp_path):
    code, lines = finish(start(tmp_path, [[i, 1] for i in range(1, 20)], "--max_restarts=3"))
    assert code == supervisor.GAVE_UP and len(starts(tmp_path)) == 4
    assert "restarted 3 times, which is the limit" in lines[-1] and "step 4" in lines[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_the_save_is_waited_for_and_75_tells_to_run_it_again(tmp_path, number):
    process = start(tmp_path, [[10, "wait"]])
    wait_for_start(tmp_path, 1)
    process.send_signal(number)
    code, lines = finish(process)
    assert code == errors.SAVED_AND_STOPPED and "checkpoint of step 15" in lines[-1]
    assert (tmp_path / "checkpoints/15").exists()
    assert len(starts(tmp_path)) == 1 and not alive(starts(tmp_path)[0])


def test_a_signal_during_the_pause_before_a_restart_ends_it_at_once(tmp_path):
    process = start(tmp_path, [[10, 1]], "--backoff_seconds=60")
    wait_for_start(tmp_path, 1)
    assert "restart 1" in process.stderr.readline()
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, _ = finish(process)
    assert code == errors.SAVED_AND_STOPPED and time.monotonic() - begun < 5 and len(starts(tmp_path)) == 1


def test_a_child_that_was_sent_sigterm_by_somebody_else_is_started_again(tmp_path):
    process = start(tmp_path, [[10, "wait"], [30, 0]])
    wait_for_start(tmp_path, 1)
    os.kill(starts(tmp_path)[0], signal.SIGTERM)
    code, lines = finish(process)
    assert code == 0 and len(starts(tmp_path)) == 2 and "code 75 (saved and stopped) at step 15" in lines[0]


@pytest.mark.skipif(sys.platform != "linux", reason="the system cannot tell a child that its parent has died")
def test_the_child_of_a_killed_supervisor_saves_and_ends(tmp_path):
    process = start(tmp_path, [[10, "wait"]])
    wait_for_start(tmp_path, 1)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while alive(starts(tmp_path)[0]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert (tmp_path / "checkpoints/15").exists()
    process.stderr.close()


def test_pauses_double_while_no_step_is_gained(tmp_path):
    _, lines = finish(start(tmp_path, [[0, 1], [0, 1], [0, 1], [7, 1], [7, 0]], "--max_stalled=4"))
    assert [line.rpartition(" in ")[2] for line in lines[:4]] == ["0.05 s", "0.1 s", "0.2 s", "0.05 s"]


def test_a_directory_out_of_reach_for_a_moment_does_not_end_the_run():
    steps = iter([0, OSError("the bucket is away"), 4])

    def read_step():
        step = next(steps)
        if isinstance(step, Exception):
            raise step
        return step

    codes = iter([1, 0])
    begin = lambda: supervisor.start_process([sys.executable, "-c", f"raise SystemExit({next(codes)})"])  # noqa: E731
    assert supervisor.supervise(begin, read_step, supervisor.Limits(backoff_seconds=0.01)) == 0


@pytest.mark.parametrize(
    "words,expected",
    [
        (["--workdir=x"], "no command given"),
        (["--workdir=x", "--max_restarts=-1", "--", "true"], "--max_restarts=-1; expected 0 or more"),
        (["--workdir=x", "--max_stalled=0", "--", "true"], "--max_stalled=0; expected 1 or more"),
        (["--workdir=x", "--backoff_seconds=-5", "--", "true"], "--backoff_seconds=-5.0; expected 0 or more"),
        (["--workdir=x", "--", "/nowhere/python"], "cannot start '/nowhere/python'"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert supervisor.main(words) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_the_supervisor_needs_no_jax():
    code = "import sys; from gptjax import supervisor; supervisor.checkpoint_step('/nowhere/run'); print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
