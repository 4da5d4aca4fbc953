"""A fit method that gptjax does not have, added as anyone may add one: one class, one entry in one table."""

import dataclasses
import json

import numpy as np
import pytest

from gptjax import cli
from gptjax.study.fits import isoflop
from gptjax.study.fits.fit import BudgetLaws
from gptjax.study.fits.laws import ParametricLaw, PowerLaw
from gptjax.study.methods import catalogue
from gptjax.study.methods.method import Method

LAW = ParametricLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # Besiroglu et al. 2024


@dataclasses.dataclass(frozen=True)
class BestRunsFit(BudgetLaws):
    best: tuple[int, ...]  # the run of each budget whose loss is lowest
    params_law: PowerLaw
    tokens_law: PowerLaw
    loss_law: PowerLaw
    points_used: int
    refused: list[str]
    loss_E: float = 0.0

    def refits(self, points, weight_RP):
        return [through(points, self.best, weight[list(self.best)]) for weight in weight_RP]


def through(points, best, weight=None) -> BestRunsFit:
    some = points.take(list(best))
    laws = (PowerLaw.through(some.flops, column, weight) for column in (some.params, some.tokens, some.loss))
    refused = [] if len(best) > 2 else [f"{len(best)} budgets lie on a power law whatever they are"]
    return BestRunsFit(best, *laws, points_used=len(best), refused=refused)


class BestRuns(Method):
    """A power law through the best run of each budget, and no parabola."""

    title = "Best run of each budget"
    called = "the best runs"
    plural = True
    form = "N* = N_scale C^a and D* = D_scale C^b through the run of the lowest loss at each C."
    constants = ("a", "b", "N_scale", "D_scale")
    label = "best runs"
    colour = "#123456"
    sees_flops = True

    def fit(self, points, options):
        number = isoflop.budgets(points)
        rows = [np.flatnonzero(number == one) for one in np.unique(number)]
        return through(points, tuple(int(row[np.argmin(points.loss[row])]) for row in rows))

    def predict(self, fit, points):
        return np.array([fit.optimum(flops).loss for flops in points.flops])

    def residual(self, fit, points):
        return None  # it says nothing of runs that are not the best


@pytest.fixture
def csv(tmp_path):
    """Five sizes about the best one at each of six budgets."""
    lines = ["params,tokens,flops,loss,run"]
    for flops in np.geomspace(1e18, 1e21, 6).tolist():
        for factor in np.geomspace(1 / 4, 4, 5).tolist():
            params = LAW.optimum(flops).params * factor
            tokens = flops / 6 / params
            lines.append(
                f"{params!r},{tokens!r},{flops!r},{float(LAW.loss(params, tokens))!r},C{flops:.1e}x{factor:.2g}"
            )
    file = tmp_path / "points.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_fit_method_of_ones_own_is_fitted_judged_reported_and_drawn(csv, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(catalogue.METHODS, "best_runs", BestRuns)
    command = ["study", "fit", str(csv), "--method=best_runs", "--bootstrap=20", "--json", f"--report={tmp_path / 'r'}"]
    assert cli.main(command) == 0
    results = json.loads(capsys.readouterr().out)
    law = results["best_runs"]
    assert law["a"] == pytest.approx(LAW.a, abs=0.02) and law["a"] + law["b"] == pytest.approx(1)
    assert law["interval95"]["a"][0] <= law["a"] <= law["interval95"]["a"][1] and law["refused"] == []
    assert law["holdout_error"] < 0.1 and len(law["sensitivity"]) > 3 and len(law["optima"]) == 6
    assert results["verdict"]["standing"] == ["best_runs"] and "by the best runs." in results["verdict"]["text"]

    report = (tmp_path / "r" / "report.md").read_text()
    assert f"## {BestRuns.title}" in report and "the run of the lowest loss at each C" in report
    constants = report.split("| constant |")[1].split("\n\n")[0]
    assert all(f"| {name} |" in constants.replace("\\", "") for name in BestRuns.constants)
    drawn = (tmp_path / "r" / "pictures" / "split.svg").read_text()
    assert 'id="best_runs"' in drawn and BestRuns.colour in drawn


def test_an_entry_that_leads_nowhere_is_one_line(csv, capsys, monkeypatch):
    monkeypatch.setitem(catalogue.METHODS, "lost", "nowhere.laws:Lost")
    assert cli.main(["study", "fit", str(csv), "--method=lost"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("gptjax: fit method lost is nowhere.laws:Lost, but Python finds no module nowhere")
    assert said.count("\n") == 1


def test_it_is_among_all_methods_unless_its_class_says_otherwise(monkeypatch, capsys):
    monkeypatch.setitem(catalogue.METHODS, "best_runs", BestRuns)
    assert "best_runs" in catalogue.by_default()
    with pytest.raises(SystemExit):
        cli.main(["study", "fit", "--help"])
    assert "envelope | best_runs | all" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr(BestRuns, "by_default", False)
    assert "best_runs" not in catalogue.by_default()
