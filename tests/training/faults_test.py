"""The table of faults in docs/checkpoints.md: what is done to a checkpoint or its disk for real, and what a run makes of
it. States of a few arrays where no training is needed."""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import runs
from damage import data_file, flip, truncate
from etils import epath
from places import ROOT

from gptjax import cli, errors
from gptjax.checkpoints import checkpointer as checkpoint
from gptjax.checkpoints import validity
from gptjax.config.config_file import from_dict
from gptjax.config.fields import Config, TrainConfig
from gptjax.errors import NoWayBack, SaveFailed, UserError
from gptjax.hosts.coordination import Alone
from gptjax.optim import skipping
from gptjax.rundir import metrics, run_directory, verification
from gptjax.training import hooks, main
from gptjax.training.resume import Keeper, items, read_state
from gptjax.training.step import TrainState

CONFIG = Config(train=TrainConfig(steps=90, batch_size=8)).replace(checkpoint={"keep": 9})


def state_of(step: int) -> TrainState:
    """Arrays that differ from step to step; of random bits, so that zstd leaves them as they are."""
    rng = np.random.default_rng(step)
    bits = rng.integers(0, 2**32, (97, 32), dtype=np.uint32)
    params = {
        "embed": jnp.asarray(bits.view(np.float32)),
        "blocks": {"gain": jnp.asarray(rng.standard_normal((2, 32)), jnp.bfloat16)},
    }
    return TrainState(jnp.int32(step), params, {"mu": params, "count": jnp.int32(step)}, None)


ABSTRACT = jax.eval_shape(lambda: state_of(0))
SHARDING = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), ABSTRACT)


def save(directory, steps, config=CONFIG, **options) -> None:
    saver = checkpoint.Checkpointer(directory / "checkpoints", config, **options)
    keeping = Keeper(saver, config.checkpoint, Alone(), print)
    for step in steps:
        keeping.save(state_of(step), step, batch_hash=f"{step:016x}", rows_read=8 * step)
    keeping.settle(steps[-1])
    saver.close()


class Log(list):
    def write(self, kind, step, **numbers):
        self.append({"kind": kind, "step": step, **numbers})


ALONE = Alone()


def resume(directory, in_place=False, config=CONFIG, peers=ALONE):
    """(what a run goes on from, lines said, events)."""
    said, log = [], Log()
    checkpointer = checkpoint.Checkpointer(directory / "checkpoints", config, in_place=in_place)
    keeping = Keeper(checkpointer, config.checkpoint, peers, said.append)
    try:
        resumed = keeping.resume(run_directory.open_run(directory), ABSTRACT, SHARDING)
        keeping.log_to(log, 0 if resumed is None else resumed.step)
    finally:
        checkpointer.close()
    return resumed, said, log


def assert_state(resumed, step) -> None:
    assert (resumed.step, int(resumed.state.step)) == (step, step)
    assert resumed.data == {"batch_hash": f"{step:016x}", "rows_read": 8 * step}
    for found, expected in zip(jax.tree.leaves(resumed.state), jax.tree.leaves(state_of(step)), strict=True):
        assert found.dtype == expected.dtype and np.asarray(found).tobytes() == np.asarray(expected).tobytes()


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


@pytest.fixture(scope="module")
def trained(values, tmp_path_factory):
    """The run directory of a run of ten steps."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    short = runs.changed(values, train=values["train"] | dict(steps=10), eval=dict(every_steps=None))
    assert main.train(from_dict(short), str(workdir)) == 0
    return workdir


# ---- damage on disk, one step of three


def empty(step) -> None:
    shutil.rmtree(step)
    step.mkdir()


def tear(step) -> None:
    """As a save that was killed, or a copy that was broken off, leaves a step where nothing is renamed."""
    for name in ("manifest.json", "commit_success.txt", "params/manifest.ocdbt"):
        (step / name).unlink()


def alter(step) -> None:
    file = step / "manifest.json"
    file.write_text(file.read_text().replace('"rows_read": ', '"rows_read": 1'))


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


def test_process_0_waits_for_others_only_where_they_wait_too(directory, in_place):
    """Others see nothing of what process 0 renames by itself, and count the rounds of what all do together."""

    class Counting(Alone):
        names = []

        def tell(self, name, value, **options):
            self.names.append(name)
            return value

    os.truncate(directory / "checkpoints/30/params/_METADATA", 0)
    flip(directory / "checkpoints/20/params/_METADATA", 7)  # known when it is read, by all
    resumed, _, _ = resume(directory, in_place, peers=Counting())
    assert resumed.step == 10 and Counting.names == ["standings", "set_aside"]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_step_before_a_damaged_one_is_taken_and_it_is_said(directory, in_place, fault):
    damage, state, reason = FAULTS[fault]
    step = directory / "checkpoints" / "30"
    damage(step)
    standing = validity.standing_of(epath.Path(step))
    assert standing.state == state
    assert run_directory.open_run(directory).steps() == ([10, 20, 30] if standing.counts else [10, 20])

    resumed, said, log = resume(directory, in_place)
    assert_state(resumed, 20)
    [line], [event] = said, log
    assert "step 30" in line and reason in line and reason in event["reason"]
    assert event["kind"] == "event" and event["step"] == 20 and event["checkpoint"] == 30
    assert event["event"] == ("checkpoint_incomplete" if state == "incomplete" else "checkpoint_set_aside")
    assert run_directory.open_run(directory).steps() == [10, 20]
    if state != "incomplete":  # its files are kept
        kept = step if in_place else directory / "checkpoints" / "30.damaged-1"
        assert (kept / "damaged.json").exists() and len(list(kept.iterdir())) > 3

    save(directory, (30,), in_place=in_place)  # the run comes there again
    resumed, said, log = resume(directory, in_place)
    assert_state(resumed, 30)
    assert not said and not log


def rewind(directory, in_place, last: int):
    """(what a run that is going on turns back to, lines said, events)."""
    said, log = [], Log()
    checkpointer = checkpoint.Checkpointer(directory / "checkpoints", CONFIG, in_place=in_place)
    keeping = Keeper(checkpointer, CONFIG.checkpoint, ALONE, said.append)
    keeping.log_to(log, 35)
    try:
        return keeping.rewind(run_directory.open_run(directory), last, ABSTRACT, SHARDING), said, log
    finally:
        checkpointer.close()


def test_a_run_that_turns_back_passes_over_a_damaged_step_and_then_deletes_the_later_ones(directory, in_place):
    flip(data_file(directory / "checkpoints" / "20"))
    resumed, [line], [event] = rewind(directory, in_place, last=25)
    assert_state(resumed, 10)
    assert "step 20 is set aside" in line and (event["event"], event["step"]) == ("checkpoint_set_aside", 20)
    assert run_directory.open_run(directory).steps() == [10]


def test_a_run_that_cannot_turn_back_keeps_its_later_steps(directory, in_place):
    flip(data_file(directory / "checkpoints" / "10"))
    with pytest.raises(NoWayBack, match="no valid checkpoint left"):
        rewind(directory, in_place, last=15)
    assert run_directory.open_run(directory).steps() == [20, 30]
    with pytest.raises(NoWayBack, match="no checkpoint from step 15 or before is left"):
        rewind(directory, in_place, last=15)


def test_stock_orbax_returns_the_flipped_bit_as_data(saved, tmp_path):
    """Or the first fault above would be none."""
    shutil.copytree(saved[False], tmp_path / "run")
    step = tmp_path / "run" / "checkpoints" / "30"
    flip(data_file(step))
    with ocp.StandardCheckpointer() as reader:
        found = reader.restore(step / "params", ABSTRACT.params)
    found, written = (np.asarray(array).view(np.uint32) for array in (found["embed"], state_of(30).params["embed"]))
    assert np.sum(found != written) == 1


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
        assert "no valid checkpoint left" in message and "\n" not in message
        assert all(f"{step}: " in message for step in (10, 20, 30)) and "to start over" in message
    shutil.rmtree(directory / "checkpoints")
    assert resume(directory, in_place)[0] is None


def test_a_good_copy_put_back_is_taken(directory, saved, in_place):
    for step in (10, 20, 30):
        flip(data_file(directory / "checkpoints" / str(step)))
    with pytest.raises(UserError, match="Copy a good one"):
        resume(directory, in_place)
    target = directory / "checkpoints" / "20"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(saved[in_place] / "checkpoints" / "20", target)
    assert_state(resume(directory, in_place)[0], 20)


def test_two_steps_without_a_manifest_and_no_other_are_no_run_to_start_over(directory, in_place):
    """A crash leaves one such step; two were trusted once."""
    for step in (10, 20, 30):
        (directory / "checkpoints" / str(step) / "manifest.json").unlink()
    with pytest.raises(UserError, match="no valid checkpoint left"):
        resume(directory, in_place)
    for step in (10, 20):
        shutil.rmtree(directory / "checkpoints" / str(step))
    resumed, said, _ = resume(directory, in_place)
    assert resumed is None and "step 30 is not valid" in said[0]


def with_skips(policy: str, window: int = 8, taken: int = 3) -> TrainState:
    """A state whose counters of updates left out are those of a policy, and have counted."""
    skips = skipping.initial(CONFIG.replace(optim={"skip": policy, "skip_window": window}).optim)
    return state_of(20)._replace(skips=jax.tree.map(lambda leaf: leaf + taken, skips))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("outliers", 8), ("nonfinite", 8)),
        (("nonfinite", 8), ("outliers", 8)),
        (("outliers", 8), ("outliers", 16)),
        (("none", 8), ("outliers", 8)),
        (("outliers", 8), ("none", 8)),
        (("outliers", 8), ("outliers", 8)),
    ],
)
def test_a_run_whose_skip_policy_was_changed_goes_on_and_says_what_begins_anew(before, after, tmp_path):
    saver = checkpoint.Checkpointer(tmp_path / "checkpoints", CONFIG)
    saver.save(items(with_skips(*before)), 20)
    saver.wait()
    wanted = with_skips(*after, taken=0)
    sharding = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), wanted)
    said, log = [], Log()
    keeping = Keeper(saver, CONFIG.checkpoint, ALONE, said.append)
    resumed = keeping.resume(run_directory.open_run(tmp_path), jax.eval_shape(lambda: wanted), sharding)
    keeping.log_to(log, 20)
    saver.close()
    kept = before == after
    expected = with_skips(*after) if kept else wanted
    for found, value in zip(jax.tree.leaves(resumed.state), jax.tree.leaves(expected), strict=True):
        assert np.asarray(found).tobytes() == np.asarray(value).tobytes()
    anew = not kept and after[0] != "none"
    assert [event["event"] for event in log] == ["skips_begin_anew"] * anew
    assert [("optim.skip or optim.skip_window differed at step 20" in line) for line in said] == [True] * anew


def test_another_model_is_refused_by_the_name_of_an_array_and_nothing_is_set_aside(directory, in_place):
    def other(like):
        return like._replace(params={**like.params, "embed": jax.ShapeDtypeStruct((97, 48), jnp.float32)})

    reader = checkpoint.Checkpointer(directory / "checkpoints", in_place=in_place)
    with pytest.raises(UserError, match=r"params/embed has shape \(97, 32\) there and \(97, 48\) here") as error:
        read_state(reader, 30, other(ABSTRACT), SHARDING)
    assert type(error.value) is UserError
    with pytest.raises(UserError, match="the checkpoint has no params/missing"):
        reader.restore(30, {"params": {**ABSTRACT.params, "missing": ABSTRACT.params["embed"]}})
    with pytest.raises(UserError, match="this model has no params/blocks/gain"):
        reader.restore(30, {"params": {"embed": ABSTRACT.params["embed"]}})
    reader.close()
    assert run_directory.open_run(directory).steps() == [10, 20, 30]


def test_what_was_saved_in_one_dtype_is_checked_in_it_and_read_in_another(saved):
    place = SHARDING.params["embed"]
    reader = checkpoint.Checkpointer(saved[False] / "checkpoints")
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=place), ABSTRACT.params)
    found = reader.restore(30, {"params": wanted})["params"]
    reader.close()
    assert found["embed"].dtype == jnp.bfloat16
    expected = state_of(30).params["embed"].astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.float32(found["embed"]), np.float32(expected))


# ---- schema 1, which had no manifest


def save_schema_1(directory, steps) -> None:
    """As gptjax 0.1.0 did."""
    manager = ocp.CheckpointManager(directory / "checkpoints", options=ocp.CheckpointManagerOptions(create=True))
    for step in steps:
        state = state_of(step)
        items = {"params": state.params, "opt_state": checkpoint.to_plain(state.opt_state)}
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        meta = {"schema": 1, "step": step, "batch_hash": f"{step:016x}", "rows_read": 8 * step}
        manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **args), force=True)
    manager.close()


def test_a_run_of_schema_1_goes_on_unverified_and_a_damaged_step_of_it_is_set_aside(tmp_path):
    save_schema_1(tmp_path, (10, 20, 30))
    states = [standing.state for standing in validity.standings(tmp_path / "checkpoints")]
    assert states == ["unverified"] * 3 and run_directory.open_run(tmp_path).steps() == [10, 20, 30]
    os.truncate(tmp_path / "checkpoints/30/params/_METADATA", 0)
    data_file(tmp_path / "checkpoints/20").unlink()
    resumed, said, _ = resume(tmp_path)
    assert_state(resumed, 10)
    assert len(said) == 2
    save(tmp_path, (20,))
    assert [s.state for s in validity.standings(tmp_path / "checkpoints") if s.counts] == ["unverified", "valid"]
    assert_state(resume(tmp_path)[0], 20)


def test_a_torn_step_of_schema_1_does_not_count(tmp_path):
    save_schema_1(tmp_path, (10, 20))
    file = tmp_path / "checkpoints/20/_CHECKPOINT_METADATA"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"commit_timestamp_nsecs": None}))  # as one begins
    assert run_directory.open_run(tmp_path).steps() == [10]


def test_a_newer_schema_is_refused_and_not_set_aside(directory, in_place):
    file = directory / "checkpoints/30/manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema": 3}))
    with pytest.raises(UserError, match="has schema 3, this gptjax reads up to 2; update gptjax"):
        resume(directory, in_place)
    assert run_directory.open_run(directory).steps() == [10, 20, 30]


# ---- saves that do not end well

SAVE_LARGE = """
import sys
import numpy as np
from gptjax.checkpoints import checkpointer as checkpoint
from gptjax.config.fields import Config, TrainConfig
directory, step, in_place = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "True"
import jax.numpy as jnp
params = {"embed": jnp.asarray(np.random.default_rng(0).standard_normal((40, 2**18)), jnp.float32)}
saver = checkpoint.Checkpointer(directory, Config(train=TrainConfig(steps=90, batch_size=8)), in_place=in_place)
saver.save({"params": params}, step)
print("saving", flush=True)
saver.wait()
print("saved", flush=True)
"""


def test_a_save_that_is_killed_leaves_what_there_was(directory, in_place):
    words = [sys.executable, "-c", SAVE_LARGE, str(directory / "checkpoints"), "40", str(in_place)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "saving\n"
    process.kill()
    assert process.communicate()[0] == "", "it was over before it was killed"
    left = [path.name for path in (directory / "checkpoints").iterdir() if path.name.startswith("40")]
    assert len(left) == 1 and (left == ["40"]) == in_place
    assert run_directory.open_run(directory).steps() == [10, 20, 30]
    resumed, said, _ = resume(directory, in_place)
    assert_state(resumed, 30)
    assert any("step 40 is not valid" in line for line in said) == in_place
    names = {path.name for path in (directory / "checkpoints").iterdir()}
    assert names == {"10", "20", "30"} | ({"40"} if in_place else set()), (
        "a run that starts clears away what is no step"
    )
    save(directory, (40,), in_place=in_place)
    names = sorted(path.name for path in (directory / "checkpoints").iterdir())
    assert names == ["10", "20", "30", "40"], "and nothing of it stays"


def test_a_step_that_is_being_saved_is_none_yet(directory, in_place):
    saver = checkpoint.Checkpointer(directory / "checkpoints", CONFIG, in_place=in_place)
    seen = []
    large = state_of(40)._replace(opt_state={"mu": jnp.ones((2**22,))})
    saver.save(items(large), 40, batch_hash="0", rows_read=0)
    alive = True
    while saver.steps() == [10, 20, 30]:
        assert alive
        seen.append(os.path.exists(directory / "checkpoints" / "40"))
        alive = saver._thread.is_alive()
    assert seen and saver.steps() == [10, 20, 30, 40]
    assert validity.standing_of(epath.Path(directory / "checkpoints" / "40")).state == "valid"
    saver.wait()
    saver.close()


def test_the_newest_steps_and_every_nth_are_kept_and_bad_ones_are_not_counted(tmp_path):
    config = CONFIG.replace(checkpoint={"keep": 2, "keep_every": 40})
    save(tmp_path, (10, 20, 30, 40, 50, 60), config)
    assert run_directory.open_run(tmp_path).steps() == [40, 50, 60]
    empty(tmp_path / "checkpoints/60")
    save(tmp_path, (70,), config)
    assert run_directory.open_run(tmp_path).steps() == [40, 50, 70]
    assert not (tmp_path / "checkpoints/60").exists()


def test_deleting_a_step_that_is_interrupted_leaves_none_that_looks_whole(directory, monkeypatch):
    step = epath.Path(directory / "checkpoints" / "10")
    monkeypatch.setattr(type(step), "rmtree", lambda *_, **__: None)
    validity.remove(step)
    assert step.exists() and run_directory.open_run(directory).steps() == [20, 30]


@pytest.fixture
def small_disk(tmp_path):
    """mount(megabytes): a file system of that size."""
    mounted = []

    def mount(size: str) -> pathlib.Path:
        place = tmp_path / "disk"
        place.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True
        ).returncode:
            pytest.skip("mounting needs root")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=True)


def test_what_is_to_follow_a_failed_save_is_stop_or_continue():
    with pytest.raises(
        UserError, match="checkpoint.on_save_failure='retry' is not known; expected one of: stop, continue"
    ):
        CONFIG.replace(checkpoint={"on_save_failure": "retry"})


def test_what_a_failed_save_left_is_removed_while_its_threads_still_write_to_it(tmp_path):
    checkpointer = checkpoint.Checkpointer(tmp_path, CONFIG)
    late = tmp_path / f"20{validity.TEMPORARY}" / "params"

    def write():
        for number in range(200):
            late.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # removed between the two
                (late / str(number)).write_text("late")
            time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    checkpointer._clean(20)
    writer.join()
    checkpointer.close()
    assert not list(tmp_path.iterdir())


def test_a_failed_save_that_nobody_waited_for_is_told_and_removed_when_closed(tmp_path, monkeypatch, capsys):
    def refuse(parts):
        raise OSError("no sum")

    checkpointer = checkpoint.Checkpointer(tmp_path, CONFIG)
    monkeypatch.setattr(checkpoint.checksums, "finish", refuse)
    checkpointer.save(items(state_of(20)), 20)
    checkpointer.close()
    assert "a checkpoint could not be written: no sum" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("policy", ["stop", "continue"])
def test_a_full_disk_leaves_earlier_steps_intact_and_stops_the_run_or_does_not(small_disk, policy):
    directory = small_disk("4m") / "run"
    save(directory, (10,))
    said, log = [], Log()
    checkpointer = checkpoint.Checkpointer(directory / "checkpoints", CONFIG)
    settings = CONFIG.replace(checkpoint={"on_save_failure": policy}).checkpoint
    keeping = Keeper(checkpointer, settings, Alone(), said.append)
    keeping.log_to(log, 10)
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(b"x" * 4096)
    os.truncate(filler, filler.stat().st_size - 40_000)  # begins, and cannot end
    keeping.save(state_of(20), 20)
    if policy == "stop":
        with pytest.raises(
            SaveFailed,
            match="could not be written to .*there is that of step 10, whole by names and sizes; free some space",
        ):
            keeping.settle(21)
        assert not said and not log
    else:
        keeping.settle(21)
        assert "could not be written" in said[0] and "training continues" in said[0]
        assert [row["event"] for row in log] == ["save_failed"] and log[0]["step"] == 21
    assert keeping.saved_step is None
    filler.unlink()
    keeping.save(state_of(30), 30, last=True, batch_hash=f"{30:016x}", rows_read=240)
    checkpointer.close()
    assert run_directory.open_run(directory).steps() == [10, 30]
    left = {path.name for path in (directory / "checkpoints").iterdir()}
    assert left == {"10", "30"}, "what was half written is gone, also what TensorStore wrote late"
    assert_state(resume(directory)[0], 30)
    shutil.rmtree(directory / "checkpoints/30")
    assert_state(resume(directory)[0], 10)


@pytest.mark.slow
def test_a_run_that_may_go_on_with_a_full_disk_trains_to_its_end_before_it_fails(
    values, trained, small_disk, tmp_path, monkeypatch, capfd
):
    config = from_dict(values).replace(
        checkpoint={"on_save_failure": "continue", "keep": 1}, eval={"every_steps": None}
    )
    step = sum(path.stat().st_blocks * 512 for path in (trained / "checkpoints").rglob("*"))
    workdir, disk = tmp_path / "run", small_disk(f"{int(step * 1.6) // 1024}k")

    class Elsewhere(hooks.Hook):
        """Has the checkpoints alone on the small disk: the log has room at any moment."""

        def begin(self, training, step):
            (workdir / "checkpoints").symlink_to(disk)

        def due(self, step):
            return False

    monkeypatch.setitem(hooks.HOOKS, "elsewhere", Elsewhere)
    with pytest.raises(SaveFailed, match="could not be written"):
        main.train(config, str(workdir))
    assert run_directory.open_run(workdir).steps() == [10]
    assert [row["step"] for row in runs.train_rows(workdir)] == list(range(1, 41))
    failed = [row for row in metrics.read_metrics(workdir / "metrics.jsonl", "event") if row["event"] == "save_failed"]
    assert [row["step"] for row in failed] == [30, 40, 40], "when it was noticed"
    said = capfd.readouterr().err
    assert said.count("training continues") == 3 and "Traceback" not in said


def test_a_directory_that_cannot_be_written_to_is_one_line_before_the_first_step(values, small_disk, tmp_path, capsys):
    place = small_disk("1m")
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    file = runs.write_config(values, tmp_path / "fields.py")
    assert cli.main(["train", file, f"--workdir={place / 'run'}"]) == errors.USER_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gptjax: ")]
    assert lines == [
        f"gptjax: --workdir={place / 'run'} cannot be written to: Read-only file system; mount it for writing, or use another."
    ]


# ---- runs that are killed, several processes, the log


@pytest.mark.slow
def test_a_run_killed_at_25_random_points_ends_bit_identical_to_an_undisturbed_one(values, tmp_path):
    """With three of them: train_test."""
    steps = 400
    values = runs.changed(values, train=values["train"] | dict(steps=steps), eval=dict(every_steps=None))
    assert main.train(from_dict(values), str(tmp_path / "undisturbed")) == 0
    points = runs.kill_at_random_points(values, tmp_path / "killed", tmp_path, 25, most_steps=16)
    assert len(points) == 25
    assert runs.losses(tmp_path / "killed") == runs.losses(tmp_path / "undisturbed"), points
    runs.assert_same_state(tmp_path / "undisturbed", tmp_path / "killed", steps)


PATHS = [str(ROOT / "tests" / name) for name in ("training", "support")]
TWO_PROCESSES = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
sys.path[:0] = sys.argv[2:]
from gptjax.checkpoints import checkpointer as checkpoint, validity; from gptjax.hosts import distributed; from gptjax.training.resume import Keeper, items, read_state; from gptjax.rundir import run_directory as rundir
from gptjax.errors import SaveFailed
from gptjax.training.step import TrainState
peers = distributed.start()
import damage, faults_test
mesh = Mesh(np.array(jax.devices()), ("fsdp",))
halves = NamedSharding(mesh, PartitionSpec("fsdp"))
whole = np.random.default_rng(0).standard_normal((64, 32), np.float32)
array = jax.make_array_from_callback(whole.shape, halves, lambda at: whole[at])
count = jax.make_array_from_callback((), NamedSharding(mesh, PartitionSpec()), lambda at: np.int32(7))
state = TrainState(count, {"w": array}, {"count": count}, None)
directory = rundir.open_run(sys.argv[1])
saver = checkpoint.Checkpointer(directory.checkpoints, faults_test.CONFIG, peers)
for step in (10, 20, 30):
    saver.save(items(state), step)
saver.wait()
if peers.index == 0:
    def own(step):
        return max((directory.checkpoints / str(step) / "params/ocdbt.process_1").glob("d/*"), key=lambda p: p.stat().length)
    pieces = validity.read_manifest(directory.checkpoints / "30")["arrays"]["params/w"]["pieces"]
    print("pieces", [piece["start"] for piece in pieces])
    damage.flip(own(30))
    own(20).write_bytes(bytes(255 - byte for byte in own(20).read_bytes()))
peers.tell("damaged", None)
said = []
keeping = Keeper(saver, faults_test.CONFIG.checkpoint, peers, said.append)
abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
sharding = jax.tree.map(lambda a: a.sharding, state)
resumed = keeping.resume(directory, abstract, sharding)
same = all(np.array_equal(shard.data, whole[shard.index]) for shard in resumed.state.params["w"].addressable_shards)
print("resumed", resumed.step, same)
print("".join(line + chr(10) for line in said))
saver.close()
peers.finish()
"""


@pytest.mark.slow
def test_two_processes_agree_on_the_step_before_damaged_ones_which_only_one_of_them_can_tell(tmp_path):
    """Each reads its own half of a parameter. Of process 1's, a bit is flipped in one step and another is no zstd."""
    place = {"GPTJAX_COORDINATOR": f"127.0.0.1:{runs.free_port()}", "GPTJAX_NUM_PROCESSES": "2"}
    environment = os.environ | place | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    words = [sys.executable, "-c", TWO_PROCESSES, str(tmp_path / "run"), *PATHS]
    started = [
        subprocess.Popen(
            words, env=environment | {"GPTJAX_PROCESS_ID": str(i)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in (0, 1)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=runs.SECONDS) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert "pieces [[0, 0], [32, 0]]" in outputs[0][0], "a checksum a shard"
    assert all("resumed 10 True" in out for out, _ in outputs)
    assert "step 30 is set aside" in outputs[0][0] and "checksums differ for params/w" in outputs[0][0]
    assert "step 20 is set aside" in outputs[0][0] and "params cannot be read" in outputs[0][0]
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == [
        "10",
        "20.damaged-1",
        "30.damaged-1",
    ]


def test_a_torn_or_damaged_line_of_metrics_costs_that_line_only(trained, tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = (trained / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if b'"kind": "train", "step": 5,' in line)
    lines[at] = b'{"kind": "tr\xff\x00\n'
    file.write_bytes(b"7\n" + b"".join(lines) + b'{"kind": "train", "step": 2')
    others = [
        row for row in metrics.read_metrics(trained / "metrics.jsonl") if (row["kind"], row["step"]) != ("train", 5)
    ]
    assert metrics.read_metrics(file) == others and metrics.torn_lines(file) == 3
    log = metrics.MetricsLog(epath.Path(tmp_path), resume_step=8, tensorboard=False, wandb_project=None, config=None)
    log.write("train", 9, loss=1.0)
    log.close()
    assert [row["step"] for row in metrics.read_metrics(file, "train")] == [1, 2, 3, 4, 6, 7, 8, 9]
    assert metrics.torn_lines(file) == 0


# ---- gptjax verify


def verify(capsys, workdir, *flags):
    """(exit code, {name: state}, everything found)."""
    code = cli.main(["verify", f"--workdir={workdir}", "--json", *flags])
    found = json.loads(capsys.readouterr().out)
    assert found["good"] == (code == 0)
    return code, {each["name"]: each["state"] for each in found["found"]}, found["found"]


FILES = {"config.json": "readable", "manifest.json": "readable", "metrics.jsonl": "readable", "tokenizer": "readable"}


def test_verify_finds_a_sound_run_sound_and_says_how_much_it_read(trained, capsys):
    code, states, found = verify(capsys, trained)
    assert code == 0 and states == FILES | {"10": "valid"}
    stored = runs.saved_arrays(trained, 10).values()
    assert found[-1]["checked_bytes"] == sum(array.nbytes for array in stored)
    assert cli.main(["verify", f"--workdir={trained}"]) == 0
    assert (
        "all files are as they were written; the newest valid checkpoint is that of step 10" in capsys.readouterr().out
    )


def forget_the_run(directory) -> None:
    """manifest.json as of before runs had an id."""
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["run_id"], manifest["history"]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    for name in ("10", "20", "30"):  # which were saved under another model
        runs.edit_manifest(directory / "checkpoints" / name, config=json.loads((directory / "config.json").read_text()))


@pytest.mark.parametrize("in_place", [False], indirect=True, ids=[""])
@pytest.mark.parametrize("fault", FAULTS)
def test_verify_names_what_is_wrong_with_a_step(directory, trained, capsys, fault):
    for name in FILES:
        copy = shutil.copytree if (trained / name).is_dir() else shutil.copy
        copy(trained / name, directory / name)
    forget_the_run(directory)  # the steps are of none
    damage, state, reason = FAULTS[fault]
    damage(directory / "checkpoints" / "20")
    code, states, found = verify(capsys, directory)
    assert code == 1 and states == FILES | {
        "10": "valid",
        "30": "valid",
        "20": "damaged" if state == "valid" else state,
    }
    [bad] = [each for each in found if each["name"] == "20"]
    assert reason.replace("checksums differ for params/embed", "params/embed[0:97, 0:32] has another checksum") in str(
        bad
    )
    assert verify(capsys, directory, "--step=30")[0] == 0 and verify(capsys, directory, "--step=20")[0] == 1


def test_verify_knows_unverified_and_set_aside_steps_and_files_that_are_gone_or_damaged(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    directory = tmp_path / "run"
    save_schema_1(directory, (20,))
    assert verify(capsys, directory) == (0, FILES | {"10": "valid", "20": "unverified"}, verify(capsys, directory)[2])
    validity.set_aside(epath.Path(directory / "checkpoints/20"), "cosmic rays", rename=True)
    (directory / "config.json").write_text("{")
    (directory / "manifest.json").unlink()
    for file in (directory / "tokenizer").iterdir():
        os.truncate(file, file.stat().st_size // 2)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write("{")
    code, states, found = verify(capsys, directory)
    bad = {"config.json": "unreadable", "manifest.json": "missing", "tokenizer": "unreadable"}
    assert code == 1 and states == FILES | bad | {"10": "valid", "20.damaged-1": "set aside"}
    assert "1 of its lines are torn" in str(found)


@pytest.mark.parametrize(
    "flags,message",
    [(["--step=4"], "has no such step; there are: 10"), (["--step=x"], "--step=x is not a step; give a number")],
)
def test_verify_refuses_a_step_that_is_none_in_one_line(trained, capsys, flags, message):
    assert cli.main(["verify", f"--workdir={trained}", *flags]) == errors.USER_ERROR
    [line] = capsys.readouterr().err.splitlines()
    assert message in line


def test_verify_beside_a_run_does_not_take_a_step_that_was_deleted_for_a_damaged_one(directory):
    standing = validity.standing_of(epath.Path(directory / "checkpoints" / "20"))
    manifest = validity.read_manifest(standing.path)
    validity.remove(standing.path)
    outcome = verification.outcome_of_arrays(standing, manifest)
    assert outcome.good and outcome.state == "deleted"
