"""Points of a CSV file and of the folder of a study: what is filled in, what is left out and why, what is refused."""

import math

import numpy as np
import pytest
import runs
import studying

from gptjax import flops
from gptjax.config import config_file
from gptjax.errors import UserError
from gptjax.rundir import metrics, run_directory
from gptjax.study import PlannedRun
from gptjax.study.fits.points import Row, screened
from gptjax.study.results import columns, csv_points, study_points
from gptjax.study.running import identity, layout, ledger


def read(tmp_path, text: str):
    file = tmp_path / "points.csv"
    file.write_text(text)
    return csv_points.read(str(file))


def test_a_csv_file_is_points_in_the_convention_of_its_author(tmp_path):
    gathered = read(
        tmp_path, "params,tokens,flops,loss,weight,run,seed\n1e6,2e7,1.2e14,3.5,2,a,1\n\n2e6,2e7,2.4e14,3.25,1,b,0\n"
    )
    points = gathered.points("given", "given")
    assert points.params.tolist() == [1e6, 2e6] and points.loss.tolist() == [3.5, 3.25]
    assert points.run == ("a", "b") and points.seed.tolist() == [1, 0] and points.weight.tolist() == [2, 1]
    assert not gathered.excluded and not gathered.notes
    with pytest.raises(UserError, match="--params='total' is not known"):
        gathered.points("total", "given")


def test_missing_flops_and_tokens_are_filled_by_6nd_and_it_is_said(tmp_path):
    both = read(tmp_path, "params,tokens,flops,loss\n1e6,2e7,,3.5\n1e6,,1.2e14,3.4\n")
    points = both.points("given", "given")
    assert points.flops.tolist() == [1.2e14, 1.2e14] and points.tokens.tolist() == [2e7, 2e7]
    assert both.notes == ["flops of 1 points: 6 N D", "tokens of 1 points: C / (6 N)"]
    column = read(tmp_path, "params,flops,loss\n1e6,1.2e14,3.5\n")
    assert column.points("given", "given").tokens.tolist() == [2e7]


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "is empty"),
        ("params,tokens,loss\n", "has no points"),
        (
            "params,token,loss\n1,1,1\n",
            "has neither tokens nor flops, one of which a point needs; is it 'token'\\?; its columns are: 'params'",
        ),
        ("params,tokens,tokens,loss\n1,1,1,1\n", "the column 'tokens' twice"),
        ("params,tokens\n1,1\n", "has no column 'loss'"),
        ("params,loss\n1,1\n", "has neither tokens nor flops"),
        ("params,tokens,loss\n1e6,many,3\n", "line 2: tokens='many' is no number"),
        ("params,tokens,loss\n1e6,1e7,3\n1e6,1e7\n", "line 3: 2 values for 3 columns"),
        ("params,tokens,loss\n1e6,,3\n", "line 2: tokens and flops are both empty"),
        ("params,tokens,loss\n1e6,1e7,\n", "line 2: loss is empty"),
        ("params,tokens,loss,weight\n1e6,1e7,3,-1\n", "line 2: weight=-1"),
        ("params,tokens,loss,seed\n1e6,1e7,3,0.5\n", "line 2: seed=0.5"),
        ("params,tokens,loss,seed\n1e6,1e7,3,1e30\n", "line 2: seed=1e30 is no whole number of at most 18 digits"),
        ("params,tokens,loss,loss/code\n1e6,1e7,3,0\n", "line 2: loss/code=0 is no loss"),
    ],
)
def test_what_a_csv_file_gets_wrong_is_said_with_its_line(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        read(tmp_path, text)
    with pytest.raises(UserError, match="no such file or directory"):
        csv_points.read(str(tmp_path / "none.csv"))


WANDB = (  # as a table of runs is exported: quoted, a run's notes over two lines, smallest and largest values beside
    '"Name","Notes","parameter_count","throughput/total_tokens","throughput/total_gflops","eval/loss","eval/loss__MIN"\n'
    '"d512-3e18","","102,5e7","4.8","3000000000","3.5","3.4"\n'.replace("102,5e7", "1.025e8")
    + '"d768-3e18","first line\nsecond","2.05e8","2.4","3000000000","3.4","3.3"\n'
    + '"crashed","","2.05e8","0.1","2000","",""\n'
    + '"gone","","2.05e8","2.4","3000000000","NaN","3.9"\n'
)
NAMED = "run=Name,params=parameter_count,tokens=throughput/total_tokens*1e9,flops=throughput/total_gflops*1e9,loss=eval/loss"


def read_named(tmp_path, text, given):
    file = tmp_path / "export.csv"
    file.write_text(text)
    return csv_points.read(str(file), columns.parse(given))


def test_an_export_of_wandb_is_read_by_naming_its_columns_with_their_units(tmp_path):
    gathered = read_named(tmp_path, WANDB, NAMED)
    first, second = gathered.rows
    assert (first.run, first.params, first.tokens, first.flops, first.loss) == (
        "d512-3e18", {"given": 1.025e8}, pytest.approx(4.8e9), {"given": pytest.approx(3e18)}, 3.5,
    )  # fmt: skip
    assert second.run == "d768-3e18" and second.named
    reasons = {one["run"]: one["reason"] for one in gathered.excluded}
    assert reasons == {"crashed": "unfinished: loss is empty", "gone": "diverged: the loss is nan"}
    assert gathered.notes == ["columns that are not read: Notes, eval/loss__MIN"]


def test_what_is_missing_of_tokens_and_flops_is_derived_and_said(tmp_path):
    without = read_named(tmp_path, WANDB, "params=parameter_count,tokens=throughput/total_tokens*1e9,loss=eval/loss")
    assert without.rows[0].flops["given"] == pytest.approx(6 * 1.025e8 * 4.8e9) and not without.rows[0].named
    assert "flops of 3 points: 6 N D" in without.notes
    derived = read_named(tmp_path, WANDB, "params=parameter_count,flops=throughput/total_gflops*1e9,loss=eval/loss")
    assert (
        derived.rows[0].tokens == pytest.approx(3e18 / 6 / 1.025e8) and "tokens of 3 points: C / (6 N)" in derived.notes
    )


def test_a_number_stands_for_all_lines_and_a_whole_name_goes_before_a_factor(tmp_path):
    text = "Step,loss*2,loss\n10,5,3\n20,4,2.5\n"
    gathered = read_named(tmp_path, text, "params=1e6,tokens=Step*2048,loss=loss*2")
    assert [(row.params["given"], row.tokens, row.loss) for row in gathered.rows] == [(1e6, 20480, 5), (1e6, 40960, 4)]
    assert gathered.notes[-1] == "columns that are not read: loss"


@pytest.mark.parametrize(
    "text, given, said",
    [
        ("Name,parameter_count,loss\na,1,1\n", None, "has no column 'params'; is it 'parameter_count'?; its columns are: 'Name', "),
        ("model/params,D,eval/loss\n1,1,1\n", "params=model/params,tokens=D", "has no column 'loss'; is it 'eval/loss'?"),
        ("N,D,loss\n1,1,1\n", "params=M,tokens=D", "has no column 'M', which --columns=params= names; "),
        ("params,tokens_B,loss\n1,1,1\n", "tokens=token_B*1e9", "names; did you mean 'tokens_B'?; its columns are"),
        ("params,tokens_B,loss\n1,1,1\n", "tokens=tokens_B*1e", "'1e' is no factor; use a number above 0"),
        ("params,tokens_B,loss\n1,1,1\n", "tokens=tokens_B*-1", "'-1' is no factor"),
        ("N,D,loss\n1,1,1\n", "params=N,tokens=D,loss=loss,budget=C", "which --columns=loss= names; 'budget' is no name"),
        ("N,D,D,loss\n1,1,1,1\n", "params=N,tokens=D", "the column 'D' twice"),
        ("N,D,loss\n1,many,1\n", "params=N,tokens=D", "line 2: tokens='many' (column 'D') is no number"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_named_columns_lists_those_of_the_file(tmp_path, text, given, said):
    with pytest.raises(UserError) as error:
        read_named(tmp_path, text, given)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_other_conventions_and_families_are_columns_of_their_own(tmp_path):
    text = "params,params/matmul,tokens,flops,flops/6n,loss,family\n2e6,1e6,1e7,9e13,1.2e14,3,gpt\n2e6,1e6,1e7,9e13,1.2e14,4,lstm\n"
    gathered = read(tmp_path, text)
    first, second = gathered.rows
    assert first.params == {"given": 2e6, "matmul": 1e6} and first.flops == {"given": 9e13, "6n": 1.2e14}
    assert (first.family, second.family) == ("gpt", "lstm") and gathered.points("matmul", "6n").params[0] == 1e6
    with pytest.raises(UserError, match="line 2: params/matmul is empty"):
        read(tmp_path, "params,params/matmul,tokens,loss\n2e6,,1e7,3\n")


def test_every_point_that_is_left_out_is_listed_with_its_reason(tmp_path):
    gathered = read(
        tmp_path,
        "params,tokens,flops,loss,run\n1e6,2e7,1.2e14,3.5,good\n1e6,2e7,1.2e14,3.5,good\n1e6,2e7,1.2e14,nan,gone\n"
        "1e6,2e7,1.2e14,inf,away\n1e6,2e7,1.2e14,-1,below\n0,2e7,1.2e14,3,nothing\n1e6,2e7,1.2e17,3,wrong\n",
    )
    assert [row.run for row in gathered.rows] == ["good"]
    reasons = {one["run"]: one["reason"] for one in gathered.excluded}
    assert reasons["good"].startswith("duplicate") and reasons["below"].startswith("out of range")
    assert reasons["gone"] == "diverged: the loss is nan" and reasons["away"] == "diverged: the loss is inf"
    assert "params is 0" in reasons["nothing"] and "1e+03 times 6 N D" in reasons["wrong"]
    assert len(gathered.excluded) == 6


def test_lines_without_a_name_are_duplicates_by_their_numbers_and_other_seeds_are_none(tmp_path):
    lines = "params,tokens,loss,seed\n1e6,2e7,3.5,0\n1e6,2e7,3.5,0\n1e6,2e7,3.5,1\n1e6,2e7,3.25,0\n"
    gathered = read(tmp_path, lines)
    assert [row.run for row in gathered.rows] == ["line 2", "line 4", "line 5"]
    assert [(one["run"], one["reason"]) for one in gathered.excluded] == [
        ("line 3", "duplicate: the same numbers as line 2")
    ]


def test_two_losses_of_a_run_at_the_same_tokens_are_said(tmp_path):
    gathered = read(tmp_path, "params,tokens,loss,run\n1e6,2e7,3.5,a\n1e6,2e7,3.6,a\n1e6,1e7,3.9,a\n1e6,2e7,3.7,b\n")
    assert len(gathered.rows) == 4
    assert gathered.notes[-1].startswith("2 losses of run a at 2e+07 tokens") and len(gathered.notes) == 2


def test_losses_on_other_texts_are_columns_of_their_own(tmp_path):
    first, second = read(tmp_path, "params,tokens,loss,loss/code,loss/prose\n1e6,2e7,3.5,2.5,3\n1e6,3e7,3.4,,2\n").rows
    assert first.facts == {"loss/code": 2.5, "loss/prose": 3.0} and second.facts == {"loss/prose": 2.0}


def test_points_of_one_run_on_its_way_are_no_duplicates_and_make_its_curve(tmp_path):
    gathered = read(tmp_path, "params,tokens,loss,run\n1e6,1e7,4,a\n1e6,2e7,3.8,a\n2e6,1e7,3.9,b\n")
    assert not gathered.excluded
    (curve,) = gathered.curves("given", "given")
    assert (curve["run"], curve["tokens"], curve["loss"]) == ("a", [1e7, 2e7], [4, 3.8])


def test_a_loss_above_that_of_guessing_is_out_of_range():
    row = Row("a", {"total": 1e6}, 2e7, {"6n": 1.2e14}, math.log(300))
    kept, excluded = screened([row], most_loss=math.log(256))
    assert not kept and "guessing uniformly" in excluded[0]["reason"]
    assert screened([row], most_loss=math.log(301)) == ([row], [])


def test_points_are_taken_by_mask_and_by_index(tmp_path):
    points = read(tmp_path, "params,tokens,loss,run\n1,1,4,a\n2,1,3,b\n3,1,2,c\n").points("given", "given")
    assert points.take(points.loss < 4).run == ("b", "c") and points.take([2, 0]).run == ("c", "a")
    assert np.array_equal(points.take([2, 0]).params, [3, 1]) and len(points.take([])) == 0


def planned(config, name: str, stage: str, seed: int, rate: float, steps: int = 6) -> PlannedRun:
    factors = {"family": "gpt", "size": "s", "budget": 1.0, "seed": seed, "learning_rate": rate}
    changed = config.replace(train={"seed": seed, "steps": steps}, optim={"peak_lr": rate})
    return PlannedRun(name, stage, factors, changed)


def write_run(folder, config, end: dict | None) -> None:
    """What a run leaves behind: its config, the loss of its first batch, and how it ended; None: it was stopped."""
    if end and "loss" in end:
        studying.write_done_run(folder, config.train.steps, **end)
    here = run_directory.open_run(str(folder))
    here.write_config(config)
    log = metrics.MetricsLog(here.path, resume_step=100, tensorboard=False, wandb_project=None, config=None)
    log.write("train", 1, loss=4.5)
    if end and "event" in end:
        log.write("event", 3, **end)
    log.close()


def test_a_folder_gives_finished_runs_of_the_grid_under_every_convention_and_says_why_others_are_none(values, tmp_path):
    config = config_file.from_dict(runs.changed(values))
    grid = [planned(config, f"seed{seed}", "grid", seed, 1e-3) for seed in range(4)]
    grid += [PlannedRun("again", "grid", grid[0].factors, grid[0].config)]
    tune = [planned(config, f"lr{rate}", "tune", 9, rate) for rate in (1e-3, 2e-3, 4e-3)]
    entries, configs = ledger.entries([*tune, *grid], identity.Texts(), "c0de")
    directory = layout.open_directory(str(tmp_path / "out"))
    ledger.succeed(None, entries, "c0de", {}).write(directory)
    diverged = {"event": "diverged", "reason": "loss is nan"}
    ends = {"seed0": {"loss": 1.5}, "seed1": {"loss": 99.0}, "seed2": diverged, "lr0.001": {"loss": 2.0}}
    ends |= {"lr0.002": diverged, "lr0.004": None}
    key = {entry.name: entry.key for entry in entries}
    for name, end in ends.items():
        write_run(directory.run(key[name]), configs[key[name]], end)
        layout.write_json(directory.config(key[name]), configs[key[name]].to_dict())
    gathered = study_points.read(str(tmp_path / "out"))

    (row,) = gathered.rows
    model, tokens = configs[key["seed0"]].model, 6 * config.tokens_per_step
    assert (row.run, row.loss, row.seed, row.tokens) == ("seed0", 1.5, 0, tokens)
    assert row.params == flops.parameter_counts(model)
    assert row.flops == {name: count * tokens for name, count in flops.flops_per_token(model).items()}
    reasons = {one["run"]: one["reason"] for one in gathered.excluded}
    assert reasons == {
        "seed1": reasons["seed1"],
        "seed2": "diverged: loss is nan at step 3",
        "seed3": "unfinished: not started",
        "again": "duplicate: the same run as seed0",
    }
    assert reasons["seed1"].startswith("out of range: the loss 99 is above")
    rates = {
        one["learning_rate"]: (one["loss"], one["diverged"], one["initial_loss"]) for one in gathered.others["tune"]
    }
    assert rates == {1e-3: (2.0, False, 4.5), 2e-3: (None, True, 4.5)}
    assert gathered.notes == [
        "tuning run lr0.004 is not used for its learning-rate curve: unfinished: stopped at step 0 of 6"
    ]
