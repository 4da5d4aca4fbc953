"""A hook from outside: one class and one entry of hooks.HOOKS, and `gptjax train` runs it; the loop knows none by name."""

import json
import os
import shutil
import signal
import sys

import jax
import numpy as np
import pytest
import runs

from gptjax import cli
from gptjax.errors import UserError
from gptjax.rundir import metrics
from gptjax.training import hooks


class LargestWeight(hooks.Hook):
    """Every third step, the largest entry of the parameters; at the end, all that this process has seen."""

    def __init__(self, config):
        super().__init__(config)
        self.seen, self.closed = {}, False

    def check(self, session):
        if self.config.train.batch_size == 24:
            raise UserError("24 rows are too many.")

    def due(self, step):
        return step % 3 == 0

    def run(self, state, step, should_stop):
        assert not should_stop() and step == int(state.step)
        self.seen[step] = float(max(abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(state.params)))
        self.training.log.write("weights", step, largest=self.seen[step])

    def end(self, state):
        return [f"largest weights at {sorted(self.seen)}"]

    def close(self, state):
        self.closed = True


@pytest.fixture
def made(monkeypatch):
    """Hooks that runs made, in order; they are asked for by every run of the test."""
    hooks_made = []

    def make(config):
        hooks_made.append(LargestWeight(config))
        return hooks_made[-1]

    monkeypatch.setitem(hooks.HOOKS, "largest_weight", make)
    return hooks_made


@pytest.fixture
def command(values, tmp_path):
    """`gptjax train` of a run of 6 steps, evaluated every 3 and saved every 2."""
    short = runs.changed(
        values,
        train=dict(steps=6, profile_steps=None),
        checkpoint=dict(every_steps=2, keep=9),
        eval=dict(every_steps=3, max_tokens=64),
    )
    return ["train", runs.write_config(short, tmp_path / "fields.py"), f"--workdir={tmp_path / 'run'}"]


def kinds(workdir) -> list[tuple[str, int]]:
    rows = metrics.read_metrics(workdir / "metrics.jsonl")
    return [(row["kind"], row["step"]) for row in rows if row["kind"] != "event"]


def test_a_hook_from_outside_runs_where_it_is_due_and_its_rows_stand_behind_those_of_its_step(
    made, command, tmp_path, capsys
):
    assert cli.main(command) == 0
    assert kinds(tmp_path / "run") == [
        *(("train", step) for step in (1, 2, 3)), ("eval", 3), ("weights", 3),
        *(("train", step) for step in (4, 5, 6)), ("eval", 6), ("weights", 6),
    ]  # fmt: skip
    assert sorted(made[0].seen) == [3, 6] and made[0].closed
    assert "largest weights at [3, 6]" in capsys.readouterr().err


def test_a_run_that_goes_on_runs_hooks_from_there_only(made, command, tmp_path):
    assert cli.main(command) == 0
    whole = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    assert cli.main(command) == 0
    again = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    largest = [[row for row in map(json.loads, lines) if row["kind"] == "weights"] for lines in (whole, again)]
    assert [(row["step"], row["largest"]) for row in largest[0]] == [
        (row["step"], row["largest"]) for row in largest[1]
    ]
    assert sorted(made[0].seen) == [3, 6] and sorted(made[1].seen) == [6]


def test_a_hook_may_refuse_a_run_before_its_first_step(made, command, tmp_path, capsys):
    assert cli.main([*command, "--config.train.batch_size=24"]) == 2
    assert "gptjax: 24 rows are too many." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


class Unwilling(hooks.Hook):
    """Finds out too late that it cannot begin."""

    def begin(self, training, step):
        raise UserError("the probe is not plugged in.")

    def close(self, state):
        raise AssertionError("it never began")


def test_a_hook_that_cannot_begin_ends_the_run_with_its_line_and_nothing_stays_open(made, command, capsys, monkeypatch):
    monkeypatch.setitem(hooks.HOOKS, "unwilling", Unwilling)
    before = sys.excepthook  # a Checkpointer has one of its own until it is closed
    assert cli.main(command) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "gptjax: the probe is not plugged in."
    assert made[0].closed and sys.excepthook is before


class Steps(hooks.Hook):
    """Which checkpoints there are when it is run at the end."""

    def due(self, step):
        return step == 6

    def run(self, state, step, should_stop):
        self.training.log.write("steps", step, saved=self.training.directory.steps())


def test_the_last_step_is_on_disk_before_hooks_run_at_it(command, tmp_path, monkeypatch):
    monkeypatch.setitem(hooks.HOOKS, "steps", Steps)
    assert cli.main(command) == 0
    [row] = metrics.read_metrics(tmp_path / "run" / "metrics.jsonl", "steps")
    assert row["saved"] == [2, 4, 6]


class Stopping(hooks.Hook):
    """After the second step, asks the run to stop, which it does after the call that follows."""

    def due(self, step):
        return step == 2

    def run(self, state, step, should_stop):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_told_to_stop_at_a_step_of_an_evaluation_makes_it_up_when_it_goes_on(command, tmp_path, monkeypatch):
    whole = [*command[:-1], f"--workdir={tmp_path / 'whole'}"]
    assert cli.main(whole) == 0
    monkeypatch.setitem(hooks.HOOKS, "stopping", Stopping)
    assert cli.main(command) == 75
    assert ("eval", 3) not in kinds(tmp_path / "run")
    assert cli.main(command) == 0
    assert kinds(tmp_path / "run") == kinds(tmp_path / "whole")
    losses = [
        [row["loss"] for row in metrics.read_metrics(tmp_path / name / "metrics.jsonl", "eval")]
        for name in ("run", "whole")
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_finished_run_that_is_started_again_logs_no_second_sample_unless_the_prompt_is_new(command, tmp_path, capsys):
    def samples(prompt: str) -> list[tuple[int, str]]:
        again = [*command, "--config.eval.sample_tokens=3", f"--config.eval.sample_prompt={prompt}"]
        assert cli.main(again) == 0
        rows = metrics.read_metrics(tmp_path / "run" / "metrics.jsonl", "event")
        return [(row["step"], row["prompt"]) for row in rows if row["event"] == "sample"]

    assert samples("a") == [(6, "a")]
    capsys.readouterr()
    assert samples("a") == [(6, "a")]
    assert "a sample:\na" in capsys.readouterr().err, "it is shown again"
    assert samples("b") == [(6, "a"), (6, "b")]
