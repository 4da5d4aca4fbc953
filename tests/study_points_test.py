"""Points of a CSV file and of the folder of a study: what is filled in, what is left out and why, what is refused."""

import math

import numpy as np
import pytest

from gptjax.errors import UserError
from gptjax.study import csv_points
from gptjax.study.points import Row, screened


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
        ("params,token,loss\n1,1,1\n", "unknown column 'token'; did you mean 'tokens'"),
        ("params,tokens,tokens,loss\n1,1,1,1\n", "the column 'tokens' twice"),
        ("params,tokens\n1,1\n", "has no column 'loss'"),
        ("params,loss\n1,1\n", "has neither tokens nor flops"),
        ("params,tokens,loss\n1e6,many,3\n", "line 2: tokens='many' is no number"),
        ("params,tokens,loss\n1e6,1e7,3\n1e6,1e7\n", "line 3: 2 values for 3 columns"),
        ("params,tokens,loss\n1e6,,3\n", "line 2: tokens and flops are both empty"),
        ("params,tokens,loss\n1e6,1e7,\n", "line 2: loss is empty"),
        ("params,tokens,loss,weight\n1e6,1e7,3,-1\n", "line 2: weight=-1"),
        ("params,tokens,loss,seed\n1e6,1e7,3,0.5\n", "line 2: seed=0.5"),
    ],
)
def test_what_a_csv_file_gets_wrong_is_said_with_its_line(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        read(tmp_path, text)
    with pytest.raises(UserError, match="no such file or directory"):
        csv_points.read(str(tmp_path / "none.csv"))


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


def test_points_of_one_run_on_its_way_are_no_duplicates_and_make_its_curve(tmp_path):
    gathered = read(tmp_path, "params,tokens,loss,run\n1e6,1e7,4,a\n1e6,2e7,3.8,a\n2e6,1e7,3.9,b\n")
    assert not gathered.excluded
    (curve,) = gathered.curves("given", "given")
    assert (curve["run"], curve["tokens"], curve["loss"]) == ("a", [1e7, 2e7], [4, 3.8])


def test_a_loss_above_that_of_guessing_is_out_of_range():
    row = Row("a", {"total": 1e6}, 2e7, {"6n": 1.2e14}, math.log(300))
    kept, excluded = screened([row], most_loss=math.log(256))
    assert not kept and "guessing all tokens alike" in excluded[0]["reason"]
    assert screened([row], most_loss=math.log(301)) == ([row], [])


def test_points_are_taken_by_mask_and_by_index(tmp_path):
    points = read(tmp_path, "params,tokens,loss,run\n1,1,4,a\n2,1,3,b\n3,1,2,c\n").points("given", "given")
    assert points.take(points.loss < 4).run == ("b", "c") and points.take([2, 0]).run == ("c", "a")
    assert np.array_equal(points.take([2, 0]).params, [3, 1]) and len(points.take([])) == 0
