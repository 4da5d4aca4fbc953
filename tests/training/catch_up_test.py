import json
import shutil

import jax
import pytest
import runs

from gptjax import cli
from gptjax.config.config_file import from_dict
from gptjax.errors import UserError
from gptjax.rundir import metrics, run_directory, runlock
from gptjax.training import catch_up


@pytest.fixture
def run(trained, tmp_path):
    """A copy to spoil."""
    shutil.copytree(trained, tmp_path / "run")
    return run_directory.open_run(str(tmp_path / "run"))


def lines(run) -> list[dict]:
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def forget(run, forgotten) -> list[dict]:
    """Takes rows out of metrics.jsonl, as if training had been stopped before it wrote them; what was there."""
    before = lines(run)
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in before if not forgotten(row)))
    return before


def numbers(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in ("time", "made_up")} for row in rows]


def test_a_missed_evaluation_is_made_up_where_it_was_with_the_numbers_it_would_have_had(run):
    before = forget(run, lambda row: row["kind"] == "eval" and row["step"] >= 4)
    assert catch_up.find(run).left == [(4, ""), (4, "ema_"), (6, ""), (6, "ema_")]
    found = catch_up.catch_up(run)
    assert found.made == [(4, ""), (4, "ema_"), (6, ""), (6, "ema_")] and not found.left and found.differs is None
    after = lines(run)
    assert numbers([row for row in after if row["step"] < 6]) == numbers([row for row in before if row["step"] < 6])
    assert sorted(map(str, numbers(after))) == sorted(map(str, numbers(before)))
    assert [row["step"] for row in after if row.get("made_up")] == [4, 4, 6, 6]


def test_catching_up_again_does_nothing(run):
    forget(run, lambda row: row["kind"] == "eval" and row["step"] == 4)
    catch_up.catch_up(run)
    text = run.metrics.read_text()
    assert catch_up.catch_up(run) == catch_up.Missing([], [], [])
    assert run.metrics.read_text() == text
    assert catch_up.said(catch_up.find(run)) == ["metrics.jsonl has every evaluation that was due"]


def test_half_an_evaluation_is_completed_and_one_without_a_checkpoint_is_lost(run):
    forget(run, lambda row: "ema_loss" in row and row["step"] in (2, 6))
    found = catch_up.find(run)
    assert (found.left, found.lost) == ([(6, "ema_")], [(2, "ema_")])
    said = catch_up.said(found)
    assert said == ["still missing: step 6 (ema)", "cannot be computed, because the checkpoint is gone: step 2 (ema)"]


def test_who_is_stopped_in_the_middle_has_what_was_made_and_goes_on(run):
    before = forget(run, lambda row: row["kind"] == "eval" and row["step"] >= 4)
    told = []
    found = catch_up.catch_up(run, lambda step, prefix, results: told.append((step, prefix)), lambda: len(told) == 1)
    assert found.made == told == [(4, "")] and found.left == [(4, "ema_"), (6, ""), (6, "ema_")]
    assert catch_up.catch_up(run).made == found.left
    assert sorted(map(str, numbers(lines(run)))) == sorted(map(str, numbers(before)))


def test_evaluations_are_due_up_to_the_newest_checkpoint_and_at_the_end():
    config = from_dict({"train": {"steps": 100}, "eval": {"every_steps": 30}})
    assert catch_up.due_steps(config, [10, 65]) == [30, 60]
    assert catch_up.due_steps(config, [100]) == [30, 60, 90, 100]
    assert catch_up.due_steps(config.replace(eval={"every_steps": None}), [100]) == [100]
    assert catch_up.due_steps(config, []) == []


def test_a_run_that_is_being_trained_is_left_alone(run):
    forget(run, lambda row: row["kind"] == "eval" and row["step"] == 6)
    text = run.metrics.read_text()
    with runlock.hold(run.path), pytest.raises(UserError, match="is being written to by process"):
        catch_up.catch_up(run)
    assert run.metrics.read_text() == text


def test_a_row_is_put_behind_those_of_its_step_and_torn_lines_stay(tmp_path):
    rundir_file = run_directory.open_run(str(tmp_path)).metrics
    rows = ['{"kind": "train", "step": 1}', "{torn", '{"kind": "train", "step": 2}', '{"kind": "train", "step": 3}']
    rundir_file.write_text("\n".join(rows) + "\n")
    metrics.insert(rundir_file, "eval", 2, loss=1.5)
    after = rundir_file.read_text().splitlines()
    assert after[:3] + after[4:] == rows and json.loads(after[3])["loss"] == 1.5


def test_the_command_says_what_it_made_up(run, capsys):
    forget(run, lambda row: row["kind"] == "eval" and row["step"] in (2, 6))
    assert cli.main(["eval", f"--workdir={run.path}", "--catch_up"]) == 0
    output = capsys.readouterr().out
    assert "computed and added to metrics.jsonl: step 6, step 6 (ema)" in output
    assert "cannot be computed, because the checkpoint is gone: step 2, step 2 (ema)" in output
    assert cli.main(["eval", f"--workdir={run.path}", "--catch_up", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lost"] == [[2, ""], [2, "ema_"]]
    assert cli.main(["eval", f"--workdir={run.path}", "--catch_up", "--stride=4"]) == 2
    assert "leave out --stride" in capsys.readouterr().err


def test_a_mesh_that_is_not_here_is_said(run):
    before = forget(run, lambda row: row["kind"] == "eval" and row["step"] == 6)
    runs.change_config(run.path, mesh={"fsdp": 3, "replica": 1})
    assert len(jax.devices()) == 8
    found = catch_up.catch_up(run)
    assert "the run's mesh does not fit the 8 devices here" in found.differs
    old, new = ([row for row in rows if row["step"] == 6 and "loss" in row] for rows in (before, lines(run)))
    assert [row["loss"] for row in old] == pytest.approx([row["loss"] for row in new], rel=1e-5)
