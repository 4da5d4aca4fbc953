"""A hook from outside: one class and one entry of hooks.HOOKS, and `gptjax train` runs it; the loop knows none by name."""

import json
import shutil

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
