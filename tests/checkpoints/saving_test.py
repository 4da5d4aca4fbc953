"""Saves of two real processes of which one cannot do its part: a file in its way, a full quota of file sizes, a write that
comes late, an array that cannot be summed."""

import os
import pathlib
import time

import pytest
import runs

from gptjax import errors
from gptjax.checkpoints.saving import CheckpointFailed
from gptjax.rundir import run_directory

SAVES = """
import resource, sys, threading, time
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from gptjax.checkpoints import checkpointer as checkpoint, checksums; from gptjax.hosts import distributed; from gptjax.training.resume import items; from gptjax.rundir import run_directory as rundir
from gptjax.config.fields import Config, TrainConfig
from gptjax.errors import SaveFailed
from gptjax.training.step import TrainState

peers = distributed.start()
mesh = Mesh(np.array(jax.devices()), ("fsdp",))
def made(whole, *axes):
    return jax.make_array_from_callback(whole.shape, NamedSharding(mesh, PartitionSpec(*axes)), lambda at: whole[at])
weight = made(np.random.default_rng(0).standard_normal((2048, 64), np.float32), "fsdp")
count = made(np.int32(7))
state = TrainState(count, {"w": weight}, {"count": count}, None)
folder = rundir.open_run(sys.argv[1]).checkpoints
config = Config(train=TrainConfig(steps=90, batch_size=8)).replace(checkpoint={"keep": 9})
saver = checkpoint.Checkpointer(folder, config, peers)

def save(step):
    begun = time.monotonic()
    try:
        saver.save(items(state), step)
        saver.wait()
        print(step, "saved", flush=True)
    except SaveFailed as error:
        print(step, "failed", round(time.monotonic() - begun), error, flush=True)

save(10)
if peers.index == 0:
    (folder / "20").write_text("in the way")
save(20)
if peers.index == 0:
    (folder / "20").unlink()
if peers.index == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
save(30)
if peers.index == 1:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
save(30)
save(40)

def write_late(end=time.monotonic() + 2):
    while time.monotonic() < end:
        try:
            late = folder / "50.orbax-checkpoint-tmp" / "params.orbax-checkpoint-tmp"
            late.mkdir(parents=True, exist_ok=True)
            (late / str(time.monotonic())).write_text("late")
        except OSError:
            pass  # removed between the two
writer = threading.Thread(target=write_late)
if peers.index == 1:
    writer.start()
save(50)
if peers.index == 1:
    writer.join()
finish = checksums.finish
def not_in_one(parts):
    if peers.index == 1:
        raise OSError("no sum")
    return finish(parts)
checksums.finish = not_in_one
save(60)
checksums.finish = finish
save(70)
saver.close()
peers.finish()
"""


@pytest.mark.slow
def test_a_save_that_one_process_cannot_make_fails_in_both_with_its_reason_and_the_next_one_succeeds(tmp_path):
    first, second = runs.lines_of_two(SAVES, str(tmp_path / "run"))
    for lines in (first, second):
        saved = [line for line in lines if line[:3] in {f"{step} " for step in range(10, 80, 10)}]
        assert saved[0] == "10 saved" and saved[3:6] == ["30 saved", "40 saved", "50 saved"], lines
        assert saved[6].startswith("60 failed") and "process 1 (" in saved[6] and "no sum" in saved[6]
        assert saved[7:] == ["70 saved"], lines
        begun, written = saved[1], saved[2]
        assert begun.startswith("20 failed") and "process 0 (" in begun and "Not a directory" in begun
        assert "there is that of step 10, whole by names and sizes; run the same command again to continue" in begun
        assert written.startswith("30 failed") and "process 1 (" in written and "free some space" not in written
        assert max(int(line.split()[2]) for line in (begun, written, saved[6])) < 60, (
            "nobody waits until Orbax gives up"
        )
    left = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert left == ["10", "30", "40", "50", "70"]
    assert run_directory.open_run(tmp_path / "run").steps() == [10, 30, 40, 50, 70]


@pytest.mark.slow  # without a run: above
def test_a_run_of_two_whose_first_process_cannot_save_ends_with_its_reason_in_both(values, tmp_path):
    short = runs.changed(values, checkpoint=dict(every_steps=5, keep=3), eval=dict(every_steps=None))
    folder = tmp_path / "run" / "checkpoints"
    with runs.processes(short, tmp_path / "run", tmp_path, 2, 1) as started:
        runs.wait_until((tmp_path / "run" / "config.json").exists, started[0])
        folder.mkdir(exist_ok=True)
        (folder / "5").write_text("in the way")  # long before step 5: the step is still to be compiled
        at = time.monotonic()
        for process in started:
            process.ends_with(errors.SAVE_FAILED)
            line = [line for line in process.output().splitlines() if line.startswith("gptjax: ")][-1]
            assert "process 0 (" in line and "Not a directory" in line and "there is no checkpoint" in line
        assert time.monotonic() - at < 120


def test_advice_follows_from_the_reason_and_what_is_there_from_a_look(tmp_path):
    full = str(CheckpointFailed(tmp_path / "none", f"ENOSPC: {os.strerror(28)}"))
    assert "there is no checkpoint; free some space, then run the same command again" in full
    other = str(CheckpointFailed(tmp_path / "none", "PermissionError"))
    assert "free some space" not in other and "run the same command again to continue" in other
    assert pathlib.Path(tmp_path).exists() and not (tmp_path / "none").exists()
