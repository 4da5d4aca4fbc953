"""Rollback past the text of a spike: a mixture of regular text, with noise in between, spikes by itself."""

import json
import shutil
import signal

import numpy as np
import pytest
import runs
from runs import assert_same_state, losses, train_rows

from gptjax import cli, errors, schedule
from gptjax.config.config_file import from_dict
from gptjax.config.fields import Config, TrainConfig
from gptjax.data.rows.pipeline import TrainRows, open_text
from gptjax.errors import Diverged, UserError
from gptjax.rundir import metrics, run_directory
from gptjax.schedule import NO_REWINDS, Rewinds
from gptjax.training import main
from gptjax.training.recovery import rewound

L, B, STEPS = 16, 8, 32
NOISE = range(17, 24)  # steps, if no text is left out


@pytest.fixture(scope="module")
def spiky(tmp_path_factory):
    """The values of a run that reads noise in NOISE, and leaves such updates out: three of them turn it back."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "clean.txt").write_text("abcdefgh" * 2000)
    (folder / "noise.txt").write_text("".join(np.random.default_rng(0).choice(list("abcdefgh"), size=16_000)))
    stages = [
        (step * B * L, {"clean": clean, "noise": 1 - clean}) for step, clean in ((NOISE[0], 0), (NOISE[-1] + 1, 1))
    ]
    return {
        "model": dict(context_length=L, n_layers=2, d_model=32, n_heads=4, dtype="float32"),
        "data": dict(
            mixture={name: f"text:{folder / name}.txt" for name in ("clean", "noise")},
            weights={"clean": 1, "noise": 0},
            weight_stages=stages,
            tokenizer="bytes",
            cache_dir=str(folder / "cache"),
        ),
        "optim": dict(peak_lr=3e-3, warmup_steps=5, skip="outliers", skip_sigma=5.0, skip_window=8),
        "train": dict(steps=STEPS, batch_size=B, log_every=1, tensorboard=False, max_skips=3, max_rollbacks=2),
        "checkpoint": dict(every_steps=6, keep=3),
        "eval": dict(every_steps=None, max_tokens=256),
    }


@pytest.fixture(scope="module")
def recovered(spiky, tmp_path_factory):
    """The run directory of a run that went back twice and came to its end."""
    workdir = tmp_path_factory.mktemp("runs") / "recovered"
    assert main.train(from_dict(spiky), str(workdir)) == 0
    return workdir


def events(workdir, *names):
    """Of some kinds, without their times."""
    rows = metrics.read_metrics(workdir / "metrics.jsonl", "event")
    return [{k: v for k, v in row.items() if k != "time"} for row in rows if row["event"] in names]


def test_a_run_goes_back_past_the_text_of_a_spike_and_its_log_says_so(recovered):
    first, second = events(recovered, "rolled_back")
    assert (first["step"], first["failed_step"], first["skipped_rows"]) == (12, 20, [[12, 8 * B]]), (
        "18 is in the middle"
    )
    # What is left of the noise makes three updates more: the window grows by them.
    assert (second["step"], second["failed_step"], second["skipped_rows"]) == (12, 15, [[12, 11 * B]])
    [skipped] = events(recovered, "update_skipped")
    assert skipped["step"] == 13 and skipped["grad_norm_z"] > 5 and "gradient norm is an outlier" in skipped["reason"]
    rows = train_rows(recovered)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["skipped_updates"] for row in rows] == [0] * 12 + [1] * 20
    assert [row["skipped_in_a_row"] for row in rows] == [0] * 12 + [1] + [0] * 19
    gone = [metrics.read_metrics(recovered / f"metrics.abandoned-{i}.jsonl", "train") for i in (1, 2)]
    assert [[row["step"] for row in rows] for rows in gone] == [[13, 14, 15, 16, 17, 18, 19], [13, 14]], (
        "the last one is not logged"
    )


def test_later_steps_read_the_text_that_an_undisturbed_run_reads_eleven_steps_later(recovered, spiky, capsys):
    straight = from_dict(spiky)
    store, objective = open_text(straight.data, L)
    rows = TrainRows(store, straight.data, L, objective)
    total = 0
    logged = {row["step"]: row["batch_hash"] for row in train_rows(recovered)}
    for step in range(STEPS):
        shift = 0 if step < 12 else 11
        first = schedule.rows_before(straight, step + shift)
        total = (total + sum(rows.hashes(first, first + B).tolist())) % 2**64
        assert logged[step + 1] == f"{total:016x}", step
        if step in (3, 12, 20):
            capsys.readouterr()
            assert cli.main(["data", f"--workdir={recovered}", f"--step={step + 1}", "--json"]) == 0
            facts = json.loads(capsys.readouterr().out)
            assert facts["batch_hash"] == logged[step + 1] and facts["rows_left_out"] == shift * B
            expected = rows.rows(first, first + B)["token_BT"].tolist()
            assert [row["tokens"] for row in facts["rows"]] == expected


@pytest.mark.slow  # three runs; one that was killed after a rollback: below
def test_a_run_that_gave_up_goes_on_as_if_it_had_been_allowed_another_rollback(recovered, spiky, tmp_path, capfd):
    """It ends between its first rollback and the next checkpoint, which knows nothing of it: all is decided once more."""
    workdir = tmp_path / "run"
    once = runs.changed(spiky, train=dict(max_rollbacks=1))
    assert main.train(from_dict(once), str(workdir)) == errors.DIVERGED
    said = capfd.readouterr().err
    assert "rollback 1 of 1, to step 12; the next 64 rows of text" in said and "Traceback" not in said
    assert (
        "the last checkpoint is of step 12 after 1 of train.max_rollbacks=1 rollbacks. Try a lower optim.peak_lr"
        in said
    )
    assert len(events(workdir, "rolled_back", "diverged")) == 2
    assert main.train(from_dict(spiky), str(workdir)) == 0
    assert losses(workdir) == losses(recovered)
    assert_same_state(workdir, recovered, STEPS)
    kinds = ("rolled_back", "update_skipped", "diverged")
    assert events(workdir, *kinds) == events(recovered, *kinds)


def test_a_run_resumed_after_a_rollback_leaves_out_the_same_text(recovered, spiky, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(recovered, workdir)
    for step in (30, STEPS):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    assert run_directory.open_run(workdir).rewinds() == Rewinds(2, ((12, 11 * B),))
    assert main.train(from_dict(spiky), str(workdir)) == 0
    assert [row["step"] for row in events(workdir, "resumed")] == [24]
    assert losses(workdir) == losses(recovered)
    assert_same_state(workdir, recovered, STEPS)


def test_without_skipping_a_run_that_diverges_has_its_rollbacks_and_then_says_what_may_help(spiky, tmp_path, capfd):
    optim = dict(skip="none", warmup_steps=None, schedule="constant", peak_lr=1e30)
    wild = runs.changed(spiky, optim=optim)
    assert main.train(from_dict(wild), str(tmp_path)) == errors.DIVERGED
    said = capfd.readouterr().err
    assert "param_norm is" in said and "no checkpoint yet after 2 of train.max_rollbacks=2 rollbacks" in said
    assert "optim.skip='nonfinite'" in said
    rollbacks = events(tmp_path, "rolled_back")
    assert [row["skipped_rows"] for row in rollbacks] == [[[0, B]], [[0, 2 * B]]]
    assert not run_directory.open_run(tmp_path).steps()


@pytest.mark.slow
def test_skipping_is_turned_on_in_the_middle_of_a_run_and_changes_nothing_by_itself(recovered, spiky, tmp_path):
    off = runs.changed(spiky, optim=dict(skip="none"), train=dict(steps=4, max_rollbacks=0))
    off["optim"]["decay_steps"] = STEPS
    assert main.train(from_dict(off), str(tmp_path)) == 0
    assert not (tmp_path / "checkpoints" / "4" / "skips").exists() and "skipped_updates" not in train_rows(tmp_path)[0]
    on = runs.changed(off, optim=dict(skip="outliers"), train=dict(steps=12))
    assert main.train(from_dict(on), str(tmp_path), ("optim", "train")) == 0
    assert [row["grad_norm_z"] != 0 for row in train_rows(tmp_path)[4:]] == [False] * 4 + [True] * 4, (
        "its window is empty"
    )
    one, other = ([row["loss"] for row in train_rows(run)[:12]] for run in (tmp_path, recovered))
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.slow
def test_a_run_killed_in_its_recovery_is_bit_equal_to_an_undisturbed_one(recovered, spiky, tmp_path):
    workdir = tmp_path / "run"
    for n_before in (1, 2):
        process = runs.start(spiky, workdir, tmp_path)
        file = workdir / "metrics.jsonl"
        runs.wait_until(lambda n=n_before: file.exists() and len(events(workdir, "rolled_back")) >= n, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert main.train(from_dict(spiky), str(workdir)) == 0
    assert losses(workdir) == losses(recovered)
    assert_same_state(workdir, recovered, STEPS)
    assert events(workdir, "rolled_back") == events(recovered, "rolled_back")


@pytest.mark.slow
def test_two_processes_go_back_together(recovered, spiky, tmp_path):
    with runs.processes(spiky, tmp_path / "run", tmp_path, 2, devices=4) as started:
        for process in started:
            process.ends_with(0)
    np.testing.assert_allclose(
        *[[row["loss"] for row in train_rows(run)] for run in (recovered, tmp_path / "run")], rtol=1e-5
    )
    facts = [[row["skipped_rows"] for row in events(run, "rolled_back")] for run in (recovered, tmp_path / "run")]
    assert facts[0] == facts[1] and len(facts[0]) == 2
    assert [row["batch_hash"] for row in train_rows(recovered)] == [
        row["batch_hash"] for row in train_rows(tmp_path / "run")
    ]


def test_rows_left_out_are_arithmetic_on_steps_and_windows_also_in_a_batch_ramp():
    ramp = dict(batch_ramp_start=2, batch_ramp_increment=2, batch_ramp_tokens=12 * 1024)
    config = Config(train=TrainConfig(steps=20, batch_size=6, **ramp))
    sizes = [schedule.batch_size(config, step) for step in range(20)]
    assert len(set(sizes)) == 3
    rewinds = NO_REWINDS
    for known, step, error in (
        (0, 4, Diverged(7, "a", first_bad=4)),
        (0, 4, Diverged(6, "b")),
        (1, 9, Diverged(12, "c")),
    ):
        known = rewinds if known else NO_REWINDS
        # The first row that step goes on with is the one that the step after the last bad one would have had.
        expected = rewinds.first_row(config, error.step)
        rewinds = rewound(config, rewinds, known, step, error)
        assert rewinds.first_row(config, step) == expected
    assert rewinds.count == 3 and [first for first, _ in rewinds.windows] == [4, 9]
    read = []
    for step, size in enumerate(sizes):
        assert rewinds.read_before(config, step)[-1][1] == (read[-1] + 1 if read else 0)
        assert [row for a, b in rewinds.read_before(config, step) for row in range(a, b)] == read
        read += range(rewinds.first_row(config, step), rewinds.first_row(config, step) + size)
    assert read == sorted(set(read)) and Rewinds.from_dict(json.loads(json.dumps(rewinds.as_dict()))) == rewinds


def test_a_rollback_that_could_find_no_checkpoint_is_refused_when_the_config_is_made(spiky):
    message = "use checkpoint.keep=4"
    with pytest.raises(UserError, match=message):
        from_dict(runs.changed(spiky, train=dict(max_skips=10), checkpoint=dict(every_steps=3, keep=3)))
    from_dict(runs.changed(spiky, train=dict(max_skips=10), checkpoint=dict(every_steps=3, keep=4)))
