import json
import os
import random
import re
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import runs

import gptjax
from gptjax import errors
from gptjax.checkpoints import validity
from gptjax.config.config_file import from_dict
from gptjax.errors import UserError
from gptjax.hosts import watchdog
from gptjax.parallel import sharding
from gptjax.rundir import metrics, run_directory
from gptjax.study import batched
from gptjax.study.lanes import grouping, together
from gptjax.study.lanes import program as lanes
from gptjax.study.running import layout
from gptjax.training import main, resume

STEPS = 12
DIVERGING = 1e20  # a learning rate


@pytest.fixture(scope="module")
def configs(values):
    """Four runs of one shape: other seeds, orders of rows, learning rates, schedules; one that will diverge."""
    changes = runs.changed(
        values,
        model={"vocab_size": 9},
        train={"steps": STEPS, "steps_per_call": 2, "log_every": 2},
        checkpoint={"every_steps": 4},
        eval={"every_steps": 6},
    )
    base = from_dict(changes)
    return {
        "first": base,
        "second": base.replace(
            train={"seed": 1}, data={"seed": 1}, optim={"peak_lr": 0.01, "schedule": "wsd", "warmup_steps": 2}
        ),
        "diverging": base.replace(train={"seed": 2}, optim={"peak_lr": DIVERGING}),
        "third": base.replace(train={"seed": 3, "log_every": 4}, optim={"peak_lr": 0.001}),
    }


def train_in(folder, configs):
    return together.train_together(layout.open_directory(str(folder)), configs, jax.devices()[:2])


@pytest.fixture(scope="module")
def study(configs, tmp_path_factory):
    """The folder of those runs, trained together and undisturbed, and their exit codes."""
    folder = tmp_path_factory.mktemp("study")
    return folder, train_in(folder, configs)


def rows(workdir, kind):
    return metrics.read_metrics(run_directory.open_run(str(workdir)).metrics, kind)


def assert_same_losses(workdir, other, kinds=("train", "eval")):
    for kind in kinds:
        here, there = rows(workdir, kind), rows(other, kind)
        assert [row["step"] for row in here] == [row["step"] for row in there] != []
        for name in {"loss", "learning_rate", "bits_per_byte", "epochs"} & here[0].keys():
            np.testing.assert_allclose([row[name] for row in here], [row[name] for row in there], rtol=1e-5)
        assert [row.get("batch_hash") for row in here] == [row.get("batch_hash") for row in there]


def assert_bit_equal(folder, other, keys=("first", "second", "third")):
    for key in keys:
        a, b = folder / "runs" / key, other / "runs" / key
        assert runs.losses(a) == runs.losses(b)
        assert [row["loss"] for row in rows(a, "eval")] == [row["loss"] for row in rows(b, "eval")]
        runs.assert_same_state(a, b, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("key", runs.default_or_slow(["first", "second", "third"], default=["second"]))
def test_runs_together_have_the_losses_that_each_has_alone(study, configs, tmp_path, key):
    """Alone on eight devices, of which each has two rows of the batch; with dropout."""
    folder, codes = study
    assert codes[key] == 0
    assert main.train(configs[key], str(tmp_path / "alone")) == 0
    assert_same_losses(folder / "runs" / key, tmp_path / "alone")


@pytest.mark.slow
def test_a_run_that_diverges_ends_as_alone_and_the_others_go_on(study):
    folder, codes = study
    assert codes == {"first": 0, "second": 0, "diverging": errors.DIVERGED, "third": 0}
    [event] = [row for row in rows(folder / "runs" / "diverging", "event") if row["event"] == "diverged"]
    assert event["step"] <= 2 and "param_norm" in event["reason"]
    said = (folder / "logs" / "diverging.log").read_text()
    assert "stopped; no checkpoint yet" in said
    assert run_directory.open_run(str(folder / "runs" / "third")).steps() == [4, 8, 12]
    assert [row["step"] for row in rows(folder / "runs" / "third", "train")] == [1, 4, 8, 12]


@pytest.mark.slow
def test_a_run_directory_holds_what_a_lone_run_leaves_and_can_be_loaded(study, configs):
    folder, _ = study
    workdir = folder / "runs" / "second"
    held = {path.name for path in workdir.iterdir()}
    assert held == {"config.json", "manifest.json", "metrics.jsonl", "tokenizer", "checkpoints", "writer.lock"}
    assert run_directory.open_run(str(workdir)).config() == configs["second"]
    run = gptjax.load(str(workdir))
    assert run.step == STEPS
    for step in (4, 8, 12):
        assert (
            validity.standing_of(run_directory.open_run(str(workdir)).checkpoints / str(step)).state == validity.VALID
        )
    assert (workdir / "writer.lock").read_text() == "", "nobody holds it any more"


@pytest.mark.slow
def test_a_lone_train_goes_on_from_a_checkpoint_that_was_made_together(study, configs, tmp_path):
    folder, _ = study
    shutil.copytree(folder / "runs" / "second", tmp_path / "alone")
    validity.remove(run_directory.open_run(str(tmp_path / "alone")).checkpoints / str(STEPS))
    assert main.train(configs["second"], str(tmp_path / "alone")) == 0
    [resumed] = [row for row in rows(tmp_path / "alone", "event") if row["event"] == "resumed"]
    assert resumed["step"] == 8
    assert_same_losses(tmp_path / "alone", folder / "runs" / "second")


@pytest.mark.slow
def test_runs_that_were_killed_at_different_checkpoints_go_on_from_the_newest_that_all_have(study, configs, tmp_path):
    """As a kill leaves them between two saves; the run that diverged is not begun again, its lane idles."""
    folder, _ = study
    shutil.copytree(folder, tmp_path / "killed")
    for key, steps in {"first": [8, 12], "second": [12], "third": []}.items():
        for step in steps:
            validity.remove(run_directory.open_run(str(tmp_path / "killed" / "runs" / key)).checkpoints / str(step))
    log = run_directory.open_run(str(tmp_path / "killed" / "runs" / "third")).metrics
    lines = log.read_text().splitlines()
    log.write_text("\n".join(line for line in lines if '"eval", "step": 12' not in line) + "\n")  # else it is over
    before = (tmp_path / "killed" / "runs" / "diverging" / "metrics.jsonl").read_text()
    codes = train_in(tmp_path / "killed", configs)
    assert codes == {"first": 0, "second": 0, "diverging": errors.DIVERGED, "third": 0}
    for key in ("first", "second", "third"):
        events = [row for row in rows(tmp_path / "killed" / "runs" / key, "event") if row["event"] == "resumed"]
        assert [row["step"] for row in events] == [4], key
    assert (tmp_path / "killed" / "runs" / "diverging" / "metrics.jsonl").read_text() == before
    assert_bit_equal(folder, tmp_path / "killed")


class After:
    """A wish to stop that comes when a run has logged a step."""

    name = "SIGTERM"

    def __init__(self, workdir, step: int):
        self._file, self._step = workdir / "metrics.jsonl", step

    def __bool__(self) -> bool:
        known = self._file.exists() and rows(self._file.parent, "train")
        return bool(known) and known[-1]["step"] >= self._step


def steps_in_common(folder, monkeypatch) -> list[set[int]]:
    """Grows with every save by the steps that the first two runs of the folder have in common just then."""
    seen, saved = [], resume.Keeper._tidy

    def look_when_saved(keeping):
        saved(keeping)
        steps = {key: run_directory.open_run(str(folder / "runs" / key)).steps() for key in ("first", "second")}
        seen.append(set.intersection(*map(set, steps.values())))

    monkeypatch.setattr(resume.Keeper, "_tidy", look_when_saved)
    return seen


@pytest.mark.slow
def test_runs_that_are_asked_to_stop_save_the_same_step_and_go_on_bit_equal(study, configs, tmp_path, monkeypatch):
    """Saving by the clock, which says so at every call, and keeping one step, as alone: the first run's save is on disk
    before the second's is begun, and a kill in between finds a step in common."""
    folder, _ = study
    seen = steps_in_common(tmp_path / "stopped", monkeypatch)
    by_clock = {"every_steps": None, "every_minutes": 1e-9, "keep": 1}
    configs = {key: config.replace(checkpoint=by_clock) for key, config in configs.items()}
    here = layout.open_directory(str(tmp_path / "stopped"))
    with watchdog.Watchdog(here.path, 0, configs["first"]) as dog:
        stop = After(tmp_path / "stopped" / "runs" / "first", 4)
        codes = together.Together(here, configs, jax.devices()[:2], stop, dog).run()
    stopped = errors.SAVED_AND_STOPPED
    assert codes == {"first": stopped, "second": stopped, "diverging": errors.DIVERGED, "third": stopped}
    [step] = run_directory.open_run(str(here.run("first"))).steps()
    assert 4 <= step < STEPS
    assert all(run_directory.open_run(str(here.run(key))).steps() == [step] for key in ("second", "third"))
    assert train_in(tmp_path / "stopped", configs)["first"] == 0
    assert_bit_equal(folder, tmp_path / "stopped")
    assert all(run_directory.open_run(str(here.run(key))).steps() == [STEPS] for key in ("first", "second", "third"))
    assert len(seen) >= 12 and all(seen[3:]), seen


@pytest.mark.slow  # of runs of which one diverges: above
def test_no_step_is_deleted_before_all_have_the_next(study, configs, tmp_path, monkeypatch):
    seen = steps_in_common(tmp_path, monkeypatch)
    configs = {key: configs[key].replace(checkpoint={"keep": 1}) for key in ("first", "second", "third")}
    configs["idle"] = configs["third"]
    assert set(train_in(tmp_path, configs).values()) == {0}
    assert len(seen) == 4 * 3 and all(seen[4:]), seen


@pytest.mark.slow
def test_runs_that_are_over_are_left_alone(study, configs):
    folder, codes = study
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert train_in(folder, configs) == codes
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before


def test_devices_send_nothing_to_each_other(configs):
    program = lanes.build(configs["first"], jax.devices()[:2], 4)
    everywhere = sharding.replicated(program.mesh)

    def lane(shape, dtype):
        return jax.ShapeDtypeStruct((4, *shape), dtype, sharding=program.lane_sharding)

    def row(size, dtype):
        return jax.ShapeDtypeStruct((2, 16, size), dtype, sharding=everywhere)

    state_R = jax.tree.map(lambda leaf: lane(leaf.shape, leaf.dtype), program.alone.abstract_state)
    batch = {"token_BT": row(17, np.int32), "weight_BL": row(16, np.float32)}
    numbers = lane((2,), np.float32), lane((), np.int32), lane((), np.int32)
    text = program.train.lower(state_R, [batch, batch], *numbers).compile().as_text()
    assert "num_partitions=2" in text and " while(" in text
    assert not re.findall(r" (all-\w+|reduce-scatter|collective-\w+|send|recv)(?:-start)?\(", text)


def test_groups_hold_runs_that_one_compiled_step_can_train(configs):
    base = configs["first"]
    same = [
        base.replace(train={"seed": 7}), base.replace(data={"seed": 7}), base.replace(optim={"peak_lr": 0.5}),
        base.replace(optim={"schedule": "linear", "warmup_steps": 1, "final_lr_fraction": 0.0}),
        base.replace(train={"log_every": 6}), base.replace(train={"steps": None, "tokens": STEPS * 16 * 16}),
    ]  # fmt: skip
    apart = [
        base.replace(model={"n_layers": 1}), base.replace(train={"batch_size": 8}), base.replace(train={"steps": 14}),
        base.replace(optim={"weight_decay": 0.2}), base.replace(data={"val_fraction": 0.2}),
        base.replace(eval={"every_steps": 4}), base.replace(checkpoint={"every_steps": 6}),
        base.replace(optim={"beta2": 0.99}), base.replace(train={"steps_per_call": 1}),
    ]  # fmt: skip
    named = {f"same-{i}": c for i, c in enumerate(same)} | {f"apart-{i}": c for i, c in enumerate(apart)}
    found = grouping.groups({"base": base} | named)
    assert found == [["base", *(name for name in named if "same" in name)], *([n] for n in named if "apart" in n)]
    assert grouping.groups({str(i): base.replace(train={"seed": i}) for i in range(5)}, most_runs=2) == [
        ["0"], ["1", "2"], ["3", "4"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"optim": {"skip": "nonfinite"}}, "optim.skip"),
        ({"train": {"max_rollbacks": 1}}, "max_rollbacks"),
        ({"train": {"stop_metric": "loss"}}, "stop_metric"),
        ({"checkpoint": {"keep_best": "loss"}}, "keep_best"),
        ({"mesh": {"tensor": 2}}, "several devices"),
        ({"model": {"vocab_size": None}}, "vocab_size"),
        ({"model": {"d_model": 2048, "n_layers": 24}}, "FLOPs"),
        (
            {"train": {"batch_ramp_start": 8, "batch_ramp_increment": 8, "batch_ramp_tokens": 10, "steps_per_call": 1}},
            "batch ramp",
        ),
    ],
)
def test_runs_that_cannot_share_a_process_are_alone_and_refused_together(configs, tmp_path, changes, why):
    config = configs["first"].replace(**changes)
    assert grouping.groups({"a": config, "b": config.replace(train={"seed": 1})}) == [["a"], ["b"]]
    with pytest.raises(UserError, match=why):
        train_in(tmp_path, {"a": config, "b": config})


def test_a_run_that_learns_from_rewards_is_alone():
    """Lanes are fed with rows of text; answers are drawn with the parameters of each run."""
    model = dict(vocab_size=300, context_length=32, n_layers=1, d_model=16, n_heads=2)
    values = {"model": model, "data": dict(tokenizer="bytes", chat="gptjax"), "train": dict(steps=1, loss="grpo")}
    config = from_dict(values | {"rl": dict(prompts="copying", rewards="exact", max_tokens=4)})
    assert "rl.prompts" in grouping.obstacle(config)
    assert grouping.groups({"a": config, "b": config.replace(train={"seed": 1})}) == [["a"], ["b"]]


def test_runs_of_other_shapes_are_refused_by_what_differs(configs, tmp_path):
    with pytest.raises(UserError, match="model.n_layers"):
        train_in(tmp_path, {"a": configs["first"], "b": configs["first"].replace(model={"n_layers": 1})})


def test_a_mistake_is_one_line_and_an_exit_file_for_each_run(tmp_path, capsys):
    assert batched.main([f"--out={tmp_path}", "nowhere", "elsewhere"]) == errors.USER_ERROR
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("gptjax: ") and "nowhere.json" in line
    for key in ("nowhere", "elsewhere"):
        written = json.loads((tmp_path / "logs" / f"{key}.exit.json").read_text())
        assert written["code"] == errors.USER_ERROR and written["attempt"] == 1
    batched.main([f"--out={tmp_path}", "nowhere"])
    assert json.loads((tmp_path / "logs" / "nowhere.exit.json").read_text())["attempt"] == 2


@pytest.mark.slow
def test_a_process_killed_at_random_points_comes_to_the_same_end(study, configs, tmp_path):
    """Of two CPU devices, as the undisturbed one in this process; five kills and a SIGTERM."""
    folder, codes = study
    here = layout.open_directory(str(tmp_path / "killed"))
    for key, config in configs.items():
        layout.write_json(here.config(key), config.to_dict())
    command = [sys.executable, "-m", "gptjax.study.batched", f"--out={here.path}", *configs]
    flags = re.sub(r"device_count=\d+", "device_count=2", os.environ["XLA_FLAGS"])
    rng = random.Random(0)
    for kill in range(6):
        process = subprocess.Popen(command, env=os.environ | {"XLA_FLAGS": flags}, stderr=subprocess.PIPE, text=True)
        if kill == 0:
            runs.wait_until(lambda: run_directory.open_run(str(here.run("first"))).steps(), process)
        else:
            time.sleep(rng.uniform(1, 12))
        process.terminate() if kill == 3 else process.kill()
        process.communicate()
    ended = subprocess.run(command, env=os.environ | {"XLA_FLAGS": flags}, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == errors.DIVERGED, ended.stderr
    for key, code in codes.items():
        assert json.loads(here.exit(key).read_text())["code"] == code
    assert_bit_equal(folder, tmp_path / "killed")
