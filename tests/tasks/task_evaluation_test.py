"""Tasks while a run trains, and of its checkpoints afterwards by `gptjax eval --tasks`."""

import json
import os
import signal

import asked
import pytest
import runs

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from gptjax import cli, errors  # noqa: E402
from gptjax.config.config_file import from_dict  # noqa: E402
from gptjax.errors import UserError  # noqa: E402
from gptjax.rundir import metrics  # noqa: E402
from gptjax.tasks import task_evaluation  # noqa: E402
from gptjax.training import hooks, main  # noqa: E402

TASKS = str(asked.TASKS / "last_word.yaml")


def with_tasks(values, **fields):
    """The tiny run for 12 steps, with tasks every 8."""
    return runs.changed(
        values,
        model=dict(context_length=64, residual_dropout=0.0),
        data=dict(tokenizer="bytes"),
        train=dict(steps=12, batch_size=8),
        checkpoint=dict(every_steps=4, keep=3),
        eval=dict(every_steps=None, tasks=TASKS, tasks_every_steps=8, tasks_limit=6, tasks_num_fewshot=1) | fields,
    )


@pytest.fixture(scope="module")
def trained(values, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("tasks") / "run"
    assert main.train(from_dict(with_tasks(values)), str(workdir)) == 0
    return workdir


def numbers(workdir) -> dict[int, dict]:
    """{step: {TASK/METRIC: value}} of metrics.jsonl, less what differs between two runs."""
    dropped = ("kind", "step", "time", "seconds")
    rows = metrics.read_metrics(workdir / "metrics.jsonl", "tasks")
    return {row["step"]: {k: v for k, v in row.items() if k not in dropped} for row in rows}


def test_tasks_are_evaluated_when_due_and_at_the_end_with_errors_and_seconds(trained):
    assert list(numbers(trained)) == [8, 12]
    rows = metrics.read_metrics(trained / "metrics.jsonl", "tasks")
    names = {f"shakespeare_last_word/{name}" for name in ("acc", "acc_stderr", "perplexity", "perplexity_stderr")}
    assert names | {"seconds"} < rows[0].keys() and rows[0]["seconds"] > 0
    assert numbers(trained)[8] != numbers(trained)[12]


def test_tasks_of_a_checkpoint_are_those_that_training_logged_at_its_step(trained, capsys):
    flags = [f"--workdir={trained}", f"--tasks={TASKS}", "--limit=6", "--num_fewshot=1", "--json"]
    assert cli.main(["eval", "--step=all", *flags]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [step["step"] for step in facts["steps"]] == [4, 8, 12]
    for step in facts["steps"][1:]:
        logged = numbers(trained)[step["step"]]
        for row in step["tasks"]:
            assert row["shots"] == 1 and row["samples"] == 6
            name = f"{row['task']}/{row['metric']}"
            assert row["value"] == pytest.approx(logged[name], rel=1e-5)
            assert row["standard_error"] == pytest.approx(logged[f"{name}_stderr"], rel=1e-5)


def test_the_table_has_a_column_for_each_number_of_shots(trained, capsys):
    code = cli.main(["eval", f"--workdir={trained}", f"--tasks={TASKS}", "--limit=2", "--num_fewshot=0,1"])
    said = capsys.readouterr().out.splitlines()
    assert code == 0 and said[0] == f"step 12 of {trained} (the newest)"
    assert said[1].split()[3:] == ["0", "shots", "1", "shot"] and "+-" in said[2]


@pytest.mark.slow
def test_a_run_that_goes_on_evaluates_tasks_where_they_are_due_only(values, trained, tmp_path):
    longer = with_tasks(values)
    longer["train"] = longer["train"] | {"steps": 16}
    assert main.train(from_dict(longer), str(trained), ("train.steps",)) == 0
    assert list(numbers(trained)) == [8, 12, 16]


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--limit=3"], "--limit is for tasks; give --tasks too"),
        ([f"--tasks={TASKS}", "--stride=3"], "--stride is for text, but --tasks have text of their own"),
        ([f"--tasks={TASKS}", "--num_fewshot=1,x"], "--num_fewshot=1,x: expected numbers of examples"),
        ([f"--tasks={TASKS}", "--num_fewshot=500"], "has 40 examples to draw 500 shots from"),
    ],
)
def test_flags_that_make_no_sense_are_refused_in_a_line(trained, capsys, flags, message):
    assert cli.main(["eval", f"--workdir={trained}", *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "fields,message",
    [
        (dict(tasks=None), "eval.tasks_every_steps=8 is of tasks, but there are none"),
        (dict(tasks_limit=0), "eval.tasks_limit=0"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(values, fields, message):
    with pytest.raises(UserError, match=message):
        from_dict(with_tasks(values, **fields))


def test_what_cannot_be_asked_is_found_before_the_first_step(values, tmp_path):
    letters = runs.changed(with_tasks(values), data=dict(tokenizer="chars"))  # nine of them
    with pytest.raises(UserError, match="'chars'"):
        main.train(from_dict(letters), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_evaluation_that_is_cut_short_logs_nothing_and_is_made_later(values):
    """The log and the progress line are lists here."""
    import jax

    from gptjax.hosts.coordination import Alone
    from gptjax.rundir.run_directory import open_run
    from gptjax.training import session
    from gptjax.training.loop import Training

    class Lines(list):
        def write(self, *row, **numbers):
            self.append((*row, numbers))

        message = list.append

    made, lines = session.prepare(from_dict(with_tasks(values))), Lines()
    evaluation = task_evaluation.TaskEvaluation(made.config)
    others = dict(agreed=None, watchdog=None, check_lock=None, started=0.0)
    evaluation.begin(Training(made, open_run("/nowhere"), lines, lines, Alone(), **others), 0)
    with jax.set_mesh(made.program.mesh):
        state = made.program.init()
        evaluation.run(state, 8, should_stop=lambda: True)
        assert lines == []
        evaluation.run(state, 8, should_stop=lambda: False)
        assert [line[:2] for line in lines if isinstance(line, tuple)] == [("tasks", 8)]
        said = len(lines)
        evaluation.run(state, 8, should_stop=lambda: False)
        assert len(lines) == said


def test_a_run_that_went_back_evaluates_tasks_at_the_same_step_again(values, tmp_path):
    """Nearly every update is left out from the fifth on, and no checkpoint is there: it goes back to the beginning."""
    going_back = dict(optim=dict(skip="outliers", skip_window=8, skip_sigma=1e-6, peak_lr=0.2, warmup_steps=None))
    going_back |= dict(train=dict(steps=12, max_skips=1, max_rollbacks=1), checkpoint=dict(every_steps=12))
    config = from_dict(runs.changed(with_tasks(values, tasks_every_steps=4, tasks_limit=1), **going_back))
    assert main.train(config, str(tmp_path)) == errors.DIVERGED
    [before] = metrics.read_metrics(tmp_path / "metrics.abandoned-1.jsonl", "tasks")
    assert before["step"] == 4 and list(numbers(tmp_path)) == [4]


def stop_after_held_out(monkeypatch, at: int) -> None:
    """SIGTERM to this process at a step, when held-out text is evaluated and tasks are about to be."""

    class Stop(hooks.Hook):
        def due(self, step):
            return step == at

        def run(self, state, step, should_stop):
            os.kill(os.getpid(), signal.SIGTERM)

    order = {"held_out": hooks.HOOKS["held_out"], "stop": Stop}
    monkeypatch.setattr(hooks, "HOOKS", order | {k: make for k, make in hooks.HOOKS.items() if k not in order})


@pytest.mark.parametrize("stops", [(8,), pytest.param((8, 12), marks=pytest.mark.slow)], ids=["once", "twice"])
def test_tasks_that_sigterm_cut_short_are_made_up_by_the_same_command(values, trained, tmp_path, monkeypatch, stops):
    config = from_dict(with_tasks(values, every_steps=4, max_tokens=64))
    for step in stops:
        with monkeypatch.context() as patch:
            stop_after_held_out(patch, step)
            assert main.train(config, str(tmp_path)) == errors.SAVED_AND_STOPPED
        assert step not in numbers(tmp_path)
        assert metrics.read_metrics(tmp_path / "metrics.jsonl", "eval")[-1]["step"] == step
    assert main.train(config, str(tmp_path)) == 0
    assert numbers(tmp_path) == numbers(trained)
    assert main.train(config, str(tmp_path)) == 0
    assert len(metrics.read_metrics(tmp_path / "metrics.jsonl", "tasks")) == 2, "once is enough"


def test_only_tasks_that_are_logged_are_done(tmp_path):
    """As of a run that was killed between the tasks of its parameters and those of their average."""
    rows = [{"kind": "eval", "step": 4, "seconds": 1}, {"kind": "tasks", "step": 4, "seconds": 1, "a/acc": 0.5}]
    rows += [{"kind": "tasks", "step": 2, "ema_seconds": 1}]
    file = tmp_path / "metrics.jsonl"
    assert task_evaluation.logged(file, 4) == []
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert task_evaluation.logged(file, 4) == [(4, "")] and task_evaluation.logged(file, 2) == [(2, "ema_")]


def test_tasks_that_failed_of_the_average_alone_are_not_forgotten(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert task_evaluation.failed(file) == {}
    event = {"kind": "event", "event": "tasks_failed", "reason": "math range error"}
    rows = [event | {"step": 2, "parameters": ""}, {"kind": "tasks", "step": 2, "seconds": 1}]  # made up since
    rows += [event | {"step": 4, "parameters": "ema_"}, {"kind": "tasks", "step": 4, "seconds": 1}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert task_evaluation.failed(file) == {(4, "ema_"): "math range error"}


def test_training_outlives_tasks_whose_numbers_are_beyond_all_measure(values, tmp_path, capsys):
    wild = dict(optim=dict(peak_lr=30.0, warmup_steps=None, schedule="constant"), train=dict(steps=4))
    config = from_dict(runs.changed(with_tasks(values, tasks_every_steps=4, tasks_limit=1), **wild))
    assert main.train(config, str(tmp_path)) == 0
    [failed] = [
        row for row in metrics.read_metrics(tmp_path / "metrics.jsonl", "event") if row["event"] == "tasks_failed"
    ]
    assert failed["step"] == 4 and "math range error" in failed["reason"] and numbers(tmp_path) == {}
    assert "'perplexity'" in failed["reason"]
    assert "gptjax: tasks are not evaluated at step 4 (see gptjax eval --tasks); at 4: " in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_and_another_mesh_log_the_same_numbers(values, trained, tmp_path):
    both = f"{TASKS},{asked.TASKS}/unscramble.yaml"  # a generation too
    sharded = runs.changed(with_tasks(values, tasks=both), mesh=dict(fsdp=2, tensor=2))
    with runs.processes(sharded, tmp_path / "run", tmp_path, 2, devices=2) as started:
        for process in started:
            process.ends_with(0)
    for step in (8, 12):
        one, two = numbers(trained)[step], numbers(tmp_path / "run")[step]
        assert two.keys() == one.keys() | {"unscramble_cycled/exact_match", "unscramble_cycled/exact_match_stderr"}
        for name, value in one.items():
            assert two[name] == pytest.approx(value, rel=2e-3), name  # after as many steps of training
