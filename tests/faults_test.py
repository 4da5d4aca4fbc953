"""The table of faults in docs/checkpoints.md: what is done to a checkpoint or its disk for real, and what a run makes of
it. States of a few arrays where no training is needed."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import runs
from etils import epath

from gptjax import checkpoint, cli, interrupt, keeper, metrics, runlock, rundir, train, validity
from gptjax.config import Config, TrainConfig, from_dict
from gptjax.errors import SaveFailed, UserError
from gptjax.peers import Alone
from gptjax.step import TrainState

CONFIG = Config(train=TrainConfig(steps=90, batch_size=8)).replace(checkpoint={"keep": 9})


def state_of(step: int) -> TrainState:
    """Arrays that differ from step to step."""
    rng = np.random.default_rng(step)
    params = {
        "embed": jnp.asarray(rng.standard_normal((97, 32)), jnp.float32),
        "blocks": {"gain": jnp.asarray(rng.standard_normal((2, 32)), jnp.bfloat16)},
    }
    return TrainState(jnp.int32(step), params, {"mu": params, "count": jnp.int32(step)}, None)


ABSTRACT = jax.eval_shape(lambda: state_of(0))
SHARDING = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), ABSTRACT)


def save(directory, steps, config=CONFIG, **options) -> None:
    saver = checkpoint.Checkpointer(directory / "checkpoints", config, **options)
    for step in steps:
        saver.save(state_of(step), step, batch_hash=f"{step:016x}", rows_read=8 * step)
    saver.wait()
    saver.close()


class Log(list):
    def write(self, kind, step, **numbers):
        self.append({"kind": kind, "step": step, **numbers})


def resume(directory, in_place=False, config=CONFIG):
    """(what a run goes on from, lines said, events)."""
    said, log = [], Log()
    checkpointer = checkpoint.Checkpointer(directory / "checkpoints", config, in_place=in_place)
    keeping = keeper.Keeper(checkpointer, "stop", Alone(), said.append)
    try:
        resumed = keeping.resume(rundir.open_run(directory), ABSTRACT, SHARDING)
        keeping.log_to(log, 0 if resumed is None else resumed.step)
    finally:
        checkpointer.close()
    return resumed, said, log


def assert_state(resumed, step) -> None:
    assert (resumed.step, int(resumed.state.step)) == (step, step)
    assert resumed.data == {"batch_hash": f"{step:016x}", "rows_read": 8 * step}
    for found, expected in zip(jax.tree.leaves(resumed.state), jax.tree.leaves(state_of(step)), strict=True):
        assert found.dtype == expected.dtype and np.array_equal(found, expected)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """{in_place: a folder with the steps 10, 20 and 30}."""
    folders = {in_place: tmp_path_factory.mktemp("saved") for in_place in (False, True)}
    for in_place, folder in folders.items():
        save(folder, (10, 20, 30), in_place=in_place)
    return folders


@pytest.fixture(params=[False, True], ids=["rename", "commit_file"])
def in_place(request):
    return request.param


@pytest.fixture
def directory(saved, in_place, tmp_path):
    """A copy of its own, as of a bucket."""
    shutil.copytree(saved[in_place], tmp_path / "run")
    return tmp_path / "run"


# ---- damage on disk, one step of three


def data_file(step) -> pathlib.Path:
    """The file with the most of the parameters."""
    return max((step / "params").rglob("d/*"), key=lambda path: path.stat().st_size)


def flip(file, bit=2) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1 << bit
    file.write_bytes(content)


def truncate(file) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(step) -> None:
    shutil.rmtree(step)
    step.mkdir()


def tear(step) -> None:
    """As a save that was killed, or a copy that was broken off, leaves a step where nothing is renamed."""
    for name in ("manifest.json", "commit_success.txt", "params/manifest.ocdbt"):
        (step / name).unlink()


def alter(step) -> None:
    file = step / "manifest.json"
    file.write_text(file.read_text().replace('"rows_read": 240', '"rows_read": 241'))


FAULTS = {  # what is done to a step: (how, its standing before anything is read, part of the reason)
    "flipped bit": (lambda step: flip(data_file(step)), "valid", "checksums differ for params/embed"),
    "truncated file": (lambda step: truncate(data_file(step)), "damaged", "were written"),
    "missing data file": (lambda step: data_file(step).unlink(), "damaged", "is missing"),
    "missing manifest": (lambda step: (step / "manifest.json").unlink(), "incomplete", "manifest.json"),
    "half a manifest": (lambda step: truncate(step / "manifest.json"), "damaged", "manifest.json is no manifest"),
    "altered manifest": (alter, "damaged", "its own checksum differs"),
    "missing marker": (lambda step: (step / "commit_success.txt").unlink(), "damaged", "commit_success.txt is missing"),
    "empty step": (empty, "incomplete", "its writing never ended"),
    "missing metadata": (lambda step: (step / "params/_METADATA").unlink(), "damaged", "_METADATA is missing"),
    "empty metadata": (lambda step: os.truncate(step / "params/_METADATA", 0), "damaged", "_METADATA has 0 bytes"),
    "missing ocdbt manifest": (lambda step: (step / "params/manifest.ocdbt").unlink(), "damaged", "manifest.ocdbt"),
    "flipped bit of metadata": (lambda step: flip(step / "params/_METADATA", 7), "valid", "params/_METADATA has changed"),
    "torn step": (tear, "incomplete", "manifest.json"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_the_step_before_a_damaged_one_is_taken_and_it_is_said(directory, in_place, fault):
    damage, state, reason = FAULTS[fault]
    step = directory / "checkpoints" / "30"
    damage(step)
    standing = validity.standing_of(epath.Path(step))
    assert standing.state == state
    assert rundir.open_run(directory).steps() == ([10, 20, 30] if standing.counts else [10, 20])

    resumed, said, log = resume(directory, in_place)
    assert_state(resumed, 20)
    [line], [event] = said, log
    assert "step 30" in line and reason in line and reason in event["reason"]
    assert event["kind"] == "event" and event["step"] == 20 and event["checkpoint"] == 30
    assert event["event"] == "checkpoint_incomplete" if state == "incomplete" else "checkpoint_set_aside"
    assert rundir.open_run(directory).steps() == [10, 20]
    if state != "incomplete":  # its files are kept
        kept = step if in_place else directory / "checkpoints" / "30.damaged-1"
        assert (kept / "damaged.json").exists() and len(list(kept.iterdir())) > 3

    save(directory, (30,), in_place=in_place)  # the run comes there again
    resumed, said, log = resume(directory, in_place)
    assert_state(resumed, 30)
    assert not said and not log


def test_stock_orbax_returns_the_flipped_bit_as_data(saved, tmp_path):
    """Or the first fault above would be none."""
    shutil.copytree(saved[False], tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "30"
    flip(data_file(step))
    with ocp.StandardCheckpointer() as reader:
        found = reader.restore(step / "params", ABSTRACT.params)
    assert np.sum(np.asarray(found["embed"]) != np.asarray(state_of(30).params["embed"])) == 1


@pytest.mark.parametrize("faults", [("flipped bit", "truncated file"), ("empty step", "flipped bit")])
def test_the_newest_and_the_one_before_damaged_leave_the_one_before_these(directory, in_place, faults):
    for step, fault in zip((30, 20), faults):
        FAULTS[fault][0](directory / "checkpoints" / str(step))
    resumed, said, _ = resume(directory, in_place)
    assert_state(resumed, 10)
    assert len(said) == 2 and "step 30" in said[0] + said[1] and "step 20" in said[0] + said[1]


def test_with_every_step_damaged_a_run_does_not_start_over_until_it_is_told(directory, in_place):
    for step, fault in zip((10, 20, 30), ("flipped bit", "missing data file", "flipped bit of metadata")):
        FAULTS[fault][0](directory / "checkpoints" / str(step))
    for _ in range(2):  # nor at the second try
        with pytest.raises(UserError) as error:
            resume(directory, in_place)
        message = str(error.value)
        assert "no checkpoint left that can be trusted" in message and "\n" not in message
        assert all(f"{step}: " in message for step in (10, 20, 30)) and "to start over" in message
    shutil.rmtree(directory / "checkpoints")
    assert resume(directory, in_place)[0] is None


def test_a_good_copy_put_back_is_taken(directory, saved, in_place):
    for step in (10, 20, 30):
        flip(data_file(directory / "checkpoints" / str(step)))
    with pytest.raises(UserError, match="Put a copy of a good one"):
        resume(directory, in_place)
    target = directory / "checkpoints" / "20"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(saved[in_place] / "checkpoints" / "20", target)
    assert_state(resume(directory, in_place)[0], 20)


def test_two_steps_without_a_manifest_and_no_other_are_no_run_to_start_over(directory, in_place):
    """A crash leaves one such step; two were trusted once."""
    for step in (10, 20, 30):
        (directory / "checkpoints" / str(step) / "manifest.json").unlink()
    with pytest.raises(UserError, match="no checkpoint left that can be trusted"):
        resume(directory, in_place)
    for step in (10, 20):
        shutil.rmtree(directory / "checkpoints" / str(step))
    resumed, said, _ = resume(directory, in_place)
    assert resumed is None and "step 30 does not count" in said[0]
