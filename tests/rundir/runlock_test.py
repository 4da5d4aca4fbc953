import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import runs

from gptjax import cli, errors, supervisor
from gptjax.errors import DirectoryMoved, DirectoryTaken, UserError
from gptjax.rundir import metrics, run_directory, runlock
from gptjax.training import hooks

HOLD = """
import sys, time
from gptjax.rundir import runlock
if sys.argv[2] == "lease":
    runlock.BEAT_SECONDS, runlock.LEASE_SECONDS = 0.1, 1.0
    runlock.Lease.__init__.__defaults__ = (0.1, 1.0)
with runlock.hold(sys.argv[1], lease=sys.argv[2] == "lease"):
    print("held", flush=True)
    time.sleep(60)
"""
LEASE = (0.1, 1.0)


def holder(directory, kind):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(directory), kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def take(directory, kind):
    file = directory / runlock.NAME
    return runlock.Flock(file) if kind == "flock" else runlock.Lease(file, *LEASE)


@pytest.mark.parametrize("kind", ["flock", "lease"])
def test_a_second_writer_is_refused_by_the_name_of_the_first_until_that_one_is_killed(tmp_path, kind):
    first = holder(tmp_path, kind)
    try:
        with pytest.raises(UserError) as error:
            take(tmp_path, kind)
        message = str(error.value)
        assert f"process {first.pid} on {os.uname().nodename} since 2" in message and "\n" not in message
        assert "wait for it or stop it, or use another --workdir" in message
    finally:
        first.kill()
        first.wait()
    take(tmp_path, kind).release()


@pytest.mark.parametrize("kind", ["flock", "lease"])
def test_a_lock_that_was_given_back_is_taken_at_once(tmp_path, kind):
    for _ in range(2):
        begun = time.monotonic()
        take(tmp_path, kind).release()
        assert time.monotonic() - begun < 0.5


def test_half_a_lease_is_waited_for_and_not_crashed_on(tmp_path):
    """It may be of one that is writing it just now: free only if it stays as it is for the time of a lease."""
    (tmp_path / runlock.NAME).write_text('{"host": ')
    begun = time.monotonic()
    take(tmp_path, "lease").release()
    assert time.monotonic() - begun >= LEASE[1]


@pytest.mark.parametrize("kind", ["flock", "lease"])
def test_of_several_that_come_at_once_one_stays(tmp_path, kind):
    words = [sys.executable, "-c", HOLD, str(tmp_path), kind]
    started = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    try:
        deadline = time.monotonic() + 20
        while sum(process.poll() is None for process in started) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        [stays] = [process for process in started if process.poll() is None]
        assert stays.stdout.readline() == "held\n"
        time.sleep(1.5)
        assert stays.poll() is None
        for process in started:
            if process is not stays:
                assert f"process {stays.pid} on" in process.stderr.read() or kind == "lease"
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_a_lease_beats_on_when_its_store_comes_back_whatever_its_client_raised_meanwhile(tmp_path):
    class Store:
        parent, away = tmp_path, False

        def __getattr__(self, name):
            if self.away:
                raise RuntimeError("503 Service Unavailable")  # no OSError
            return getattr(tmp_path / runlock.NAME, name)

    store = Store()
    lease = runlock.Lease(store, *LEASE)
    store.away = True
    time.sleep(0.3)
    store.away, before = False, runlock._read(tmp_path / runlock.NAME)["beat"]
    time.sleep(0.5)
    assert runlock._read(tmp_path / runlock.NAME)["beat"] > before
    lease.release()


def test_who_lost_its_lease_to_another_ends(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), "lease"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    (tmp_path / runlock.NAME).write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "another"}))
    assert process.wait(10) == errors.PEER_LOST
    assert "process 1 on elsewhere has taken over" in process.stderr.read()


def test_a_second_training_run_in_a_directory_is_refused_in_one_line(values, tmp_path, capsys):
    config = runs.write_config(values, tmp_path / "fields.py")
    with runlock.hold(tmp_path / "run"):
        assert cli.main(["train", config, f"--workdir={tmp_path / 'run'}"]) == errors.USER_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gptjax: ")]
    assert len(lines) == 1 and f"is being written to by process {os.getpid()} on" in lines[0]
    assert [path.name for path in (tmp_path / "run").iterdir()] == [runlock.NAME], "nothing was written"


def test_who_removes_the_file_lets_no_second_writer_in(tmp_path):
    first = holder(tmp_path, "flock")
    try:
        (tmp_path / runlock.NAME).unlink()
        with pytest.raises(UserError, match="by another process .its writer.lock names none.; wait for it"):
            take(tmp_path, "flock")
    finally:
        first.kill()
        first.wait()
    take(tmp_path, "flock").release()


def test_a_lock_whose_file_was_removed_is_made_again_and_one_that_another_holds_is_lost(tmp_path):
    lock, file = take(tmp_path, "flock"), tmp_path / runlock.NAME
    lock.check()
    file.unlink()
    lock.check()
    assert json.loads(file.read_text())["pid"] == os.getpid()
    file.unlink()
    with file.open("w") as other:  # as of a writer who cannot lock directories, or does not know of that
        other.write(json.dumps({"host": "elsewhere", "pid": 1}))
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DirectoryTaken, match="process 1 on elsewhere has taken over"):
            lock.check()
    lock.release()


def test_a_directory_that_was_moved_or_removed_is_found_out(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    lock = take(place, "flock")
    place.rename(tmp_path / "other")
    with pytest.raises(
        DirectoryMoved, match=f"moved to {tmp_path}/other during .* no checkpoint; run .*={tmp_path}/other"
    ):
        lock.check()
    place.mkdir()  # another one in its place
    with pytest.raises(DirectoryMoved, match=f"moved to {tmp_path}/other"):
        lock.check()
    shutil.rmtree(tmp_path / "other")
    with pytest.raises(DirectoryMoved, match="was removed during training; run the same command again to start over"):
        lock.check()
    lock.release()


@pytest.fixture
def disturbed(values, tmp_path, monkeypatch, capfd):
    """disturbed(act) is (exit code, last line) of `gptjax train` in tmp_path/run, which saves every five steps, in this
    process; act(run directory) comes after step 7, when step 5 is on disk, and SIGTERM after step 13."""

    class Disturb(hooks.Hook):
        def __init__(self, config, act):
            super().__init__(config)
            self._act = act

        def due(self, step):
            return step in (7, 13)

        def run(self, state, step, should_stop):
            run = self.training.directory
            if step == 7:
                deadline = time.monotonic() + runs.SECONDS
                while run.steps() != [5]:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                self._act(run)
            else:
                os.kill(os.getpid(), signal.SIGTERM)

    often = runs.changed(
        values,
        train=dict(steps=20),
        checkpoint=dict(every_steps=5),
        eval=dict(every_steps=None),
    )

    def train(act) -> tuple[int, str]:
        monkeypatch.setitem(hooks.HOOKS, "disturb", lambda config: Disturb(config, act))
        words = [runs.write_config(often, tmp_path / "fields.py"), f"--workdir={tmp_path / 'run'}"]
        code = cli.main(["train", *words])
        said = capfd.readouterr().err
        assert "Traceback" not in said, said
        return code, [line for line in said.splitlines() if line.startswith("gptjax: ")][-1]

    return train


def test_a_run_whose_directory_is_moved_ends_with_a_code_of_its_own_and_says_where_it_is(disturbed, tmp_path):
    code, line = disturbed(lambda run: (tmp_path / "run").rename(tmp_path / "moved"))
    assert code == errors.MOVED and code in supervisor.FINAL
    assert f"was moved to {tmp_path}/moved during training; there " in line and "whole by names and sizes" in line
    assert not (tmp_path / "run" / "config.json").exists(), "no other run was begun in its place"


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_removed_says_what_is_there_and_saves_the_next(disturbed, tmp_path):
    code, line = disturbed(lambda run: shutil.rmtree(run.checkpoints))
    assert code == errors.SAVED_AND_STOPPED
    assert "the checkpoint of step 5, which was written, is gone; later checkpoints will" in line
    run = run_directory.open_run(tmp_path / "run")
    after_removal, stopped = run.steps()
    assert after_removal == 10 and 13 <= stopped < 20
    [event] = [row for row in metrics.read_metrics(run.metrics, "event") if row["event"] == "checkpoint_gone"]
    assert (event["step"], event["checkpoint"]) == (10, 5)


@pytest.mark.slow
def test_a_run_that_can_save_no_more_where_its_checkpoints_were_removed_says_that_there_is_none(disturbed):
    def replace(run):
        shutil.rmtree(run.checkpoints)
        run.checkpoints.mkdir()
        (run.checkpoints / "10").write_text("in the way")

    code, line = disturbed(replace)
    assert code == errors.SAVE_FAILED and "there is no checkpoint" in line


def test_a_run_whose_lock_another_writer_has_ends_before_it_saves(disturbed, tmp_path):
    with contextlib.ExitStack() as stack:

        def take_over(run):
            (tmp_path / "run" / runlock.NAME).unlink()
            other = stack.enter_context((tmp_path / "run" / runlock.NAME).open("w"))
            fcntl.flock(other, fcntl.LOCK_EX)

        code, line = disturbed(take_over)
    assert code == errors.PEER_LOST and "has taken over --workdir=" in line
    assert run_directory.open_run(tmp_path / "run").steps() == [5]


def test_a_file_that_goes_wrong_while_a_run_goes_on_is_no_mistake_in_the_command(disturbed):
    def replace(run):
        run.metrics.unlink()
        run.metrics.mkdir()

    code, line = disturbed(replace)
    assert code == errors.SAVE_FAILED
    assert "Is a directory: " in line and "metrics.jsonl; run the same command again to continue" in line
