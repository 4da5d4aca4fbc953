"""Runs that end early, and that keep their best checkpoint, by a metric of their evaluations."""

import json
import shutil

import pytest
import runs
from judging import trained_values

from gptjax import cli
from gptjax.config.config_file import from_dict
from gptjax.errors import UserError
from gptjax.evaluation import judging
from gptjax.rundir import metrics, run_directory
from gptjax.training import main


def command(values, folder, name: str, *flags, **sections) -> tuple[int, object]:
    """(exit code, directory) of a run of 12 steps that is evaluated every 2."""
    ours = runs.changed(
        trained_values(values),
        **{
            "train": dict(steps=12) | sections.get("train", {}),
            "checkpoint": dict(every_steps=2, keep=9) | sections.get("checkpoint", {}),
            "eval": dict(every_steps=2, max_tokens=128) | sections.get("eval", {}),
            "optim": sections.get("optim", {}),
        },
    )
    config = runs.write_config(ours, folder / f"{name}.py")
    return cli.main(["train", config, f"--workdir={folder / name}", *flags]), folder / name


def patient(patience: int, **fields) -> dict:
    """No evaluation is better by 100 nats than the first: it ends after the first and so many more."""
    return dict(stop_metric="loss", stop_change=100.0, stop_patience=patience) | fields


def events(workdir, name: str) -> list[dict]:
    rows = metrics.read_metrics(run_directory.open_run(workdir).metrics, "event")
    return [row for row in rows if row["event"] == name]


def evaluations(workdir) -> dict[int, float]:
    rows = metrics.read_metrics(run_directory.open_run(workdir).metrics, "eval")
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("judged")


@pytest.fixture(scope="module")
def ended(values, folder):
    code, workdir = command(values, folder, "ended", train=patient(2))
    assert code == 0
    return workdir


def test_a_run_ends_when_its_metric_has_not_improved_for_so_many_evaluations(values, folder, ended):
    assert list(evaluations(ended)) == [2, 4, 6] and run_directory.open_run(ended).steps() == [2, 4, 6]
    (event,) = events(ended, "ended_early")
    assert event["step"] == 6 and "loss has not improved by more than 100 in 2 evaluations" in event["reason"]
    assert json.loads((ended / "manifest.json").read_text())["ended_early"] == {"step": 6, "reason": event["reason"]}
    assert [row["finished"] for row in events(ended, "rows_read")] == [True]
    code, whole = command(values, folder, "whole", train=dict(steps=12))
    assert code == 0 and evaluations(whole).items() >= evaluations(ended).items()
    runs.assert_same_state(ended, whole, 6)


def test_a_run_that_has_ended_stays_as_it_is_and_says_so_again(values, folder, ended, capsys):
    before, state = events(ended, "ended_early"), runs.saved_arrays(ended, 6)
    code, _ = command(values, folder, "ended", train=patient(2))
    assert code == 0 and "the run ends at step 6 of 12: loss has not improved" in capsys.readouterr().err
    assert events(ended, "ended_early") == before and list(evaluations(ended)) == [2, 4, 6]
    assert json.loads((ended / "manifest.json").read_text())["ended_early"]["step"] == 6
    assert all((array == state[name]).all() for name, array in runs.saved_arrays(ended, 6).items())


def test_a_resumed_run_ends_where_an_undisturbed_one_does(values, folder, ended):
    again = shutil.copytree(ended, folder / "again")
    shutil.rmtree(again / "checkpoints" / "6")  # killed after its evaluation, before its checkpoint
    code, _ = command(values, folder, "again", train=patient(2))
    assert code == 0 and len(events(again, "ended_early")) == 1 and evaluations(again) == evaluations(ended)
    runs.assert_same_state(again, ended, 6)


def test_more_patience_lets_an_ended_run_go_on_with_the_evaluations_it_has(values, folder, ended):
    code, workdir = command(values, folder, "longer", train=patient(1))
    assert code == 0 and list(evaluations(workdir)) == [2, 4]
    allowed = "--allow_change=train.stop_patience"
    assert command(values, folder, "longer", train=patient(2))[0] == 2, "unless it is allowed"
    code, _ = command(values, folder, "longer", allowed, train=patient(2))
    assert code == 0 and evaluations(workdir) == evaluations(ended)
    runs.assert_same_state(workdir, ended, 6)
    assert json.loads((workdir / "manifest.json").read_text())["ended_early"]["step"] == 6


@pytest.mark.slow
def test_the_best_checkpoint_stays_beside_the_newest_and_is_the_one_called_best(values, folder, capsys):
    worsening = dict(name="sgd", peak_lr=30.0, warmup_steps=6, clip_norm=1.0)
    sections = {"optim": worsening, "checkpoint": dict(every_steps=4, keep=1, keep_best="loss")}
    code, workdir = command(values, folder, "best", **sections)
    losses = evaluations(workdir)
    best = min(losses, key=losses.get)
    assert code == 0 and best not in (4, 8, 12), f"a step that would have been saved anyway: {losses}"
    assert run_directory.open_run(workdir).steps() == [best, 12]
    assert cli.main(["eval", f"--workdir={workdir}", "--step=best", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == best


def test_a_metric_that_no_evaluation_of_answers_has_is_refused_before_the_first_step(values, folder):
    rl = dict(prompts="copying", rewards="exact", max_tokens=4, group=4)
    values = {
        "model": dict(context_length=32, n_layers=1, d_model=16, n_heads=2),
        "data": dict(tokenizer="bytes", chat="gptjax"),
        "rl": rl,
    }
    values["train"] = dict(steps=2, batch_size=8, loss="grpo", stop_metric="loss", log_every=1)
    values["eval"] = dict(every_steps=1)
    with pytest.raises(
        UserError, match="train.stop_metric='loss' is not in the evaluations of this run; there are: reward,"
    ):
        main.train(from_dict(values), str(folder / "answers"))
    assert not (folder / "answers").exists()


def test_a_metric_that_no_evaluation_has_is_refused_before_the_first_step(values, folder, capsys):
    for sections, name in (({"train": patient(2, stop_metric="los")}, "train.stop_metric='los'"),
                           ({"checkpoint": dict(keep_best="losss")}, "checkpoint.keep_best='losss'")):  # fmt: skip
        code, workdir = command(values, folder, "refused", **sections)
        error = capsys.readouterr().err.splitlines()[-1]
        assert code == 2 and f"{name} is not in the evaluations of this run; did you mean 'loss'?" in error
        assert not workdir.exists()


@pytest.mark.parametrize("field, value", [("stop_patience", 5), ("stop_change", 0.1)])
def test_a_field_of_early_stopping_without_its_metric_is_refused(values, folder, capsys, field, value):
    code, workdir = command(values, folder, "refused", train={field: value})
    assert code == 2 and not workdir.exists()
    assert f"train.{field}={value} is of train.stop_metric, which is None" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_end_together_and_keep_what_one_keeps(values, tmp_path, ended):
    ours = runs.changed(
        trained_values(values), train=dict(steps=12, **patient(2)), mesh=dict(fsdp=2),
        checkpoint=dict(every_steps=4, keep=1, keep_best="loss"), eval=dict(every_steps=2, max_tokens=128),
    )  # fmt: skip
    with runs.processes(ours, tmp_path / "run", tmp_path, count=2) as (first, second):
        first.ends_with(0)
        second.ends_with(0)
    losses = evaluations(tmp_path / "run")
    assert losses == pytest.approx(evaluations(ended), rel=1e-5)
    best = judging.best_step("loss", losses)
    assert run_directory.open_run(tmp_path / "run").steps() == sorted({best, 6})


@pytest.mark.parametrize(
    "metric, values, best, waited",
    [
        ("loss", {1: 3.0, 2: 2.0, 3: 2.5}, 2, 1),
        ("accuracy", {1: 0.3, 2: 0.5, 3: 0.5}, 2, 1),
        ("ema_loss/news", {1: 3.0, 2: float("nan"), 3: 2.0}, 3, 0),
        ("loss", {1: float("nan"), 2: float("nan")}, 1, 1),
        ("mse", {5: 1.0}, 5, 0),
    ],
)
def test_better_is_lower_for_losses_and_errors_and_higher_for_scores(metric, values, best, waited):
    assert judging.best_step(metric, values) == best
    assert judging.since_improvement(metric, values, 0.0) == (waited, best)


def test_a_change_too_small_does_not_end_the_wait():
    losses = {1: 3.0, 2: 2.9375, 3: 2.875, 4: 2.8125}
    assert judging.since_improvement("loss", losses, 0.1) == (1, 3), "against the last that improved so much"
    assert judging.since_improvement("loss", losses, 0.2) == (3, 1)
