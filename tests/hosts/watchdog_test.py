"""Runs that stop getting on: a peer that is stopped, a reader and a source that block."""

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest
import runs
from etils import epath

from gptjax import errors
from gptjax.config.fields import Config, TrainConfig
from gptjax.hosts import watchdog
from gptjax.hosts.watchdog import STEPS_KNOWN, Watchdog


def dog_of(tmp_path, seconds: float) -> Watchdog:
    return Watchdog(epath.Path(tmp_path), 0, Config(train=TrainConfig(steps=1, stall_seconds=seconds)))


def test_a_step_may_take_a_multiple_of_the_median_and_all_else_its_own_allowance(tmp_path, monkeypatch):
    monkeypatch.setattr(watchdog, "FACTOR", 10.0)
    monkeypatch.setattr(watchdog, "LEAST_SECONDS", 0.001)
    monkeypatch.setattr(watchdog, "SHARE", 0.0)
    dog = dog_of(tmp_path, 50.0)
    assert dog.limit() == 50  # nothing is known of a step yet
    dog.stepped()
    for _ in range(STEPS_KNOWN):
        time.sleep(0.01)
        dog.stepped()
    assert 0.1 <= dog.limit() < 5
    with dog.doing("saving"):
        assert dog.limit() == 50
        time.sleep(0.3)
    dog.stepped()
    assert 0.1 <= dog.limit() < 2  # the save is in no step


@pytest.mark.parametrize("seconds, of_a_step", [(3600.0, 300.0), (36_000.0, 3000.0), (1000.0, 300.0), (10.0, 10.0)])
def test_a_step_may_take_minutes_whatever_the_median_and_more_on_a_slower_disk(tmp_path, seconds, of_a_step):
    dog = dog_of(tmp_path, seconds)
    assert dog.limit() == seconds
    for _ in range(STEPS_KNOWN + 1):
        dog.stepped()
    assert dog.limit() == of_a_step


@pytest.mark.slow  # waits for the watchdog twice over; the same end as a blocked reader's below
def test_a_run_whose_peer_is_stopped_ends_and_leaves_the_stacks(values, tmp_path):
    endless = dict(train=dict(steps=4000), checkpoint=dict(every_steps=None), eval=dict(every_steps=None))
    values = runs.changed(values, **endless)
    with runs.processes(values, tmp_path / "run", tmp_path, 2, 1, program=runs.impatient(4.0)) as started:
        runs.wait_for_step(tmp_path / "run", STEPS_KNOWN + 5, started[0])
        at = time.monotonic()
        started[1].send_signal(signal.SIGSTOP)
        assert started[0].ends_with(errors.STALLED) - at < 20
        assert "training: no progress for" in started[0].output()
    stacks = (tmp_path / "run" / "watchdog-0.txt").read_text()
    assert "gptjax/training/recorder.py" in stacks and stacks.count("Thread 0x") > 2
    assert not (tmp_path / "run" / "watchdog-1.txt").exists()


BLOCKED_READER = """
import dataclasses, os, sys
from gptjax.config import config_file; from gptjax.hosts import coordination, interrupt, watchdog; from gptjax.rundir import run_directory as rundir; from gptjax.training import session, main as train; from gptjax import terminal
from gptjax import errors

class Disk:
    '''Rows on a disk that stops answering after some reads.'''
    def __init__(self, rows, reads):
        self.inner, self.reads, self.pipe = rows, reads, os.pipe()[0]
    def __getattr__(self, name):
        return getattr(self.inner, name)
    def rows(self, first, stop):
        self.reads -= 1
        if self.reads < 0:
            os.read(self.pipe, 1)
        return self.inner.rows(first, stop)

watchdog.FACTOR, watchdog.LEAST_SECONDS, watchdog.SHARE = 2, 2.0, 0

def main(file, workdir):
    settings = config_file.load_config(file)
    directory = rundir.open_run(workdir)
    directory.write_json("manifest.json", {})
    directory.write_config(settings)
    prepared = session.prepare(settings)
    prepared = dataclasses.replace(prepared, rows=Disk(prepared.rows, 160))
    with interrupt.StopRequest() as stop, watchdog.Watchdog(directory.path, 0, settings) as dog:
        train.run_session(prepared, directory, terminal.Progress(), coordination.Alone(), stop, dog, 0.0)

main(*sys.argv[1:])
"""


def test_a_run_whose_reader_blocks_ends_and_leaves_the_stacks(values, tmp_path):
    endless = dict(train=dict(steps=4000), checkpoint=dict(every_steps=None), eval=dict(every_steps=None))
    values = runs.changed(values, **endless)
    config = runs.write_config(values, tmp_path / "fields.py").partition("=")[2]
    command = [sys.executable, "-c", BLOCKED_READER, config, str(tmp_path / "run")]
    result = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=runs.SECONDS)
    assert result.returncode == errors.STALLED, result.stderr
    stacks = (tmp_path / "run" / "watchdog-0.txt").read_text()
    assert "in rows" in stacks and "in __getitem__" in stacks and "in next" in stacks
    assert len(runs.train_rows(tmp_path / "run")) > STEPS_KNOWN


@pytest.mark.slow  # waits for the watchdog; the same end as a blocked reader's above
def test_a_run_whose_source_blocks_ends_and_leaves_the_stacks(values, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("abc " * 1000)
    watched = dict(stall_seconds=10.0)
    values = runs.changed(values, train=watched, data=dict(path=str(text)))
    with text.open("r+") as file:
        before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # the kernel asks us to give the lease back
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)  # while we hold it, whoever opens the file waits
        except OSError as error:
            pytest.skip(f"no leases on this disk: {error}")
        try:
            process = runs.start(values, tmp_path / "run", tmp_path)
            _, stderr = process.communicate(timeout=runs.SECONDS)
        finally:
            process.kill()
            signal.signal(signal.SIGIO, before)
    assert process.returncode == errors.STALLED, stderr
    assert "starting: no progress for" in stderr and "Traceback" not in stderr
    assert "gptjax/data/sources/text.py" in (tmp_path / "run" / "watchdog-0.txt").read_text()
