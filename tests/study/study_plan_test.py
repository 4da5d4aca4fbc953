"""`gptjax study plan`: sums, the critical path, limits."""

import json

import pytest
from ml_collections import ConfigDict

from gptjax import cli, study
from gptjax.errors import UserError
from gptjax.study.declare import declaration, plan


@pytest.fixture
def declared():
    base = ConfigDict()
    base.model = dict(context_length=32, vocab_size=65, dtype="float32")
    base.optim = dict(warmup_steps=10)
    base.train = dict(batch_size=4, steps_per_call=10)
    return dict(base=base, sizes=study.by_depth([1, 2], aspect=16, head_dim=16), budgets=(1e10, 4e10))


def planned(fields, results=None, **options):
    return plan.plan(declaration.runs(study.Study(**fields), None, results), **options)


def test_sums_are_those_of_the_budgets(declared):
    totals = planned(declared | {"seeds": (0, 1)})["totals"]
    assert totals["runs"] == 8 and totals["flops"] == pytest.approx(2 * 2 * 5e10, rel=0.01)
    assert totals["critical_path"] == ["d2-C4e+10-seed0"] or totals["critical_path"][0].startswith("d1-C4e+10")
    assert totals["chip_hours"] is None


def test_a_trunk_is_counted_once_for_all_its_branches(declared):
    rows = planned(declared | {"cooldown": 0.25})["runs"]
    of_d1 = [row for row in rows if row["factors"]["size"] == "d1"]
    assert [row["stage"] for row in of_d1] == ["trunk", "grid", "grid"]
    assert sum(row["own_flops"] for row in of_d1) == pytest.approx(4e10 + 0.25 * 1e10, rel=0.01)
    assert of_d1[1]["flops"]["exact"] == pytest.approx(1e10, rel=0.01), "a branch is a whole run for a fit"


def test_a_tuning_run_that_is_in_the_grid_too_is_counted_once(declared):
    fields = declared | {"learning_rate": study.tuned([1e-3, 2e-3], budget=1e10)}
    waiting = planned(fields)["runs"]
    losses = {row["name"]: row["peak_lr"] for row in waiting if row["stage"] == "tune"}
    rows = {row["name"]: row for row in planned(fields, losses)["runs"]}
    assert rows["d1-C1e+10-seed0"]["own_flops"] == 0 and rows["d1-C4e+10-seed0"]["own_flops"] > 0
    assert rows["d1-C1e+10-seed0"]["peak_lr"] == 1e-3


def test_the_critical_path_goes_through_every_stage(declared):
    fields = declared | {
        "learning_rate": study.tuned([1e-3], budget=1e10),
        "cooldown": 0.25,
        "targets": (study.Target(study.by_depth([3], aspect=16, head_dim=16), 2e11),),
    }
    totals = planned(fields)["totals"]
    tune, trunk, grid, target = totals["critical_path"]
    assert tune.startswith("tune-") and trunk == f"trunk-{grid}" and grid.split("-")[1] == "C4e+10"
    assert target == "target-d3-C2e+11-seed0"
    assert totals["critical_path_flops"] == pytest.approx(1e10 + 4e10 + 2e11, rel=0.01)


def test_the_critical_path_has_the_tuning_runs_of_the_size_that_waits_for_them(declared):
    """Of d1 the tuning run is the longer one by a little, of d2 the longest run of the grid."""
    fields = declared | {"learning_rate": study.tuned([1e-3], budget=1e10)}
    fields["keep"] = lambda factors: factors["stage"] == "tune" or factors["size"] == "d2" or factors["budget"] < 2e10
    rows = plan.plan(declaration.runs(study.Study(**fields), None))["runs"]
    tuned = {row["factors"]["size"]: row for row in rows if row["stage"] == "tune"}
    tuned["d1"]["own_flops"] = 1.1 * tuned["d2"]["own_flops"]
    assert [row["name"] for row in plan.critical_path(rows)] == [tuned["d2"]["name"], "d2-C4e+10-seed0"]


def test_hours_and_cost_follow_the_clock(declared):
    found = planned(declared, hours_of=lambda config: (1.0, 4.0), price=2.5)["totals"]
    assert (found["chip_hours"], found["cost_usd"], found["critical_path_hours"]) == (16.0, 40.0, 1.0)


def test_limits_refuse_with_both_numbers(declared):
    totals = planned(declared, hours_of=lambda config: (1.0, 4.0), price=2.5)["totals"]
    plan.Limits(flops=2e11, cost=41).check(totals)
    with pytest.raises(UserError, match=r"FLOPs, more than --max_flops=9e\+10"):
        plan.Limits(flops=9e10).check(totals)
    with pytest.raises(UserError, match="cost 40.00 dollars, more than --max_cost=39"):
        plan.Limits(cost=39).check(totals)
    with pytest.raises(UserError, match="give --topology and --price"):
        plan.Limits(cost=39).check(planned(declared)["totals"])


STUDY = """
from ml_collections import ConfigDict
from gptjax import study

def get_study():
    base = ConfigDict(dict(model=dict(context_length=32, vocab_size=65), train=dict(batch_size=4)))
    return study.Study(base, sizes=study.by_depth([1, 2], aspect=16, head_dim=16), budgets=(1e10,))
"""


def test_the_command_prints_a_table_or_json_and_refuses_beyond_a_limit(tmp_path, capsys):
    file = tmp_path / "study.py"
    file.write_text(STUDY)
    assert cli.main(["study", "plan", str(file)]) == 0
    table = capsys.readouterr().out
    assert "d2-C1e+10-seed0" in table and "2 runs (2 grid)" in table
    assert cli.main(["study", "plan", str(file), "--flops_per_second=1e10", "--price=3600", "--json"]) == 0
    totals = json.loads(capsys.readouterr().out)["totals"]
    assert totals["chip_hours"] == pytest.approx(2 / 3600, rel=0.01) and totals["cost_usd"] == pytest.approx(
        2, rel=0.01
    )
    assert cli.main(["study", "plan", str(file), "--max_flops=1e10"]) == 2
    assert "more than --max_flops=1e+10" in capsys.readouterr().err
    run = ["study", "run", str(file), f"--out={tmp_path / 'out'}"]
    for limit, said in (("1e10", "more than --max_flops=1e+10"), ("nan", "--max_flops=nan must be finite")):
        assert cli.main([*run, f"--max_flops={limit}"]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "out").exists()
    for wrong in (
        ["--price=2"],
        ["--max_flops=-1"],
        ["--topology=v5e:2x2", "--flops_per_second=1"],
        ["--matmul_fraction=2"],
    ):
        assert cli.main(["study", "plan", str(file), *wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_base_that_ends_runs_early_is_refused(declared):
    declared["base"].train.stop_metric = "loss"
    with pytest.raises(
        UserError, match="train.stop_metric='loss' ends runs early, but those of a study have the lengths"
    ):
        planned(declared)
