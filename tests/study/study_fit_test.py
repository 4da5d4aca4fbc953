"""`gptjax study fit`: the numbers of a report, from synthetic points whose law is known."""

import json
import math

import numpy as np
import pytest

from gptjax import cli
from gptjax.commands import study_fit
from gptjax.errors import UserError
from gptjax.study.fits.laws import ParametricLaw
from gptjax.study.fits.points import Gathered, Row
from gptjax.study.methods import catalogue, checks
from gptjax.study.methods.method import Case, Options
from gptjax.study.results import csv_points, fit, learning_rates, loss_to_loss, verdict

LAW = ParametricLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # Besiroglu et al. 2024
QUICK = Options(methods=("parametric", "isoflop"), replicates=20, starts=6)
FEW = Options(methods=("parametric",), replicates=2, starts=2)


def gathered(noise: float = 0.0, seeds=(0, 1), budgets=(1e18, 1e19, 1e20, 1e21)) -> Gathered:
    """Seven sizes about the best one at each budget."""
    rng, rows = np.random.default_rng(0), []
    for flops in budgets:
        for factor in np.geomspace(1 / 4, 4, 7):
            for seed in seeds:
                params = float(LAW.optimum(flops).params * factor)
                tokens = flops / 6 / params
                loss = float(LAW.loss(params, tokens) * math.exp(noise * rng.standard_normal()))
                counts = {"total": params, "non_embedding": 0.9 * params}
                name = f"N{params:.3g}-C{flops:.0e}-seed{seed}"
                rows.append(Row(name, counts, tokens, {"exact": flops, "6n": flops}, loss, seed=seed))
    return Gathered(rows, [], [])


@pytest.fixture(scope="module")
def found():
    """Of points with a little noise."""
    return fit.results(gathered(noise=1e-3), fit.Request(QUICK))


def test_the_law_is_recovered_with_intervals_about_it(found):
    law = found["parametric"]
    for name in ("E", "alpha", "beta", "a"):
        low, high = law["interval95"][name]
        assert low < law[name] < high and law["interval80"][name][0] >= low
        assert law[name] == pytest.approx(getattr(LAW, name), rel=0.1), name
    assert law["refused"] == [] and law["points_used"] == 56 and law["points_excluded"] == []
    assert found["conventions"] == {"params": "total", "flops": "exact", "flops_per_param_token": 6.0}


def test_every_budget_has_its_best_split_in_both_methods(found):
    for name in ("parametric", "isoflop"):
        optima = found[name]["optima"]
        assert [round(math.log10(one["flops"])) for one in optima] == [18, 19, 20, 21]
        for one in optima:
            assert one["params"] == pytest.approx(LAW.optimum(one["flops"]).params, rel=0.15)
            assert one["interval95"]["params"][0] < one["interval95"]["params"][1]
    assert all(one["curvature"] > 0 and one["refused"] is None for one in found["isoflop"]["optima"])


def test_budgets_asked_for_are_split_beyond_the_points():
    points = gathered(seeds=(0,))
    options = Options(methods=("parametric",), replicates=2, starts=2, budgets=(1e20 * (1 + 1e-12), 1e24))
    *between, last = fit.results(points, fit.Request(options))["parametric"]["optima"]
    assert len(between) == 4, "one of them is a budget of the points"
    assert last["flops"] == 1e24 and last["params"] == pytest.approx(LAW.optimum(1e24).params, rel=1e-3)


def test_a_budget_in_another_convention_buys_what_it_bought_the_points():
    rows = [
        Row(r.run, r.params, r.tokens, {"exact": 7.5 * r.params["total"] * r.tokens}, r.loss)
        for r in gathered(seeds=(0,)).rows
    ]
    options = Options(methods=("parametric",), replicates=2, starts=2)
    results = fit.results(Gathered(rows, [], []), fit.Request(options))
    assert results["conventions"]["flops_per_param_token"] == pytest.approx(7.5)
    for one in results["parametric"]["optima"]:
        assert one["params"] * one["tokens"] * 7.5 == pytest.approx(one["flops"])
        assert one["params"] == pytest.approx(LAW.optimum(one["flops"] * 6 / 7.5).params, rel=1e-3)


def test_held_out_points_are_those_of_the_largest_budget_and_are_predicted_by_the_rest(found):
    held = found["parametric"]["holdout"]
    assert len(held["points"]) == 14 and held["above_flops"] == pytest.approx(1e21)
    errors = [abs(one["predicted"] / one["loss"] - 1) for one in held["points"]]
    assert found["parametric"]["holdout_error"] == pytest.approx(np.mean(errors)) and np.mean(errors) < 0.01
    assert found["isoflop"]["holdout_error"] < 0.1, "three budgets are too few for an irreducible loss"


def test_without_noise_nothing_is_left_of_the_held_out_error_and_a_bend_shows_in_it():
    points = gathered().points("total", "exact")
    assert checks.holdout(catalogue.of("parametric"), points, QUICK)["holdout_error"] < 1e-5
    bent = np.where(points.flops > 5e20, 1.05, 1.0)  # the largest runs are worse than any law of the others says
    bent_points = points.take(slice(None))
    bent_points = type(points)(**{**vars(bent_points), "loss": points.loss * bent})
    assert checks.holdout(catalogue.of("parametric"), bent_points, QUICK)["holdout_error"] == pytest.approx(
        0.05, abs=0.005
    )
    asked = checks.holdout(catalogue.of("parametric"), points, Options(holdout=1e20, starts=6))
    assert len(asked["holdout"]["points"]) == 28
    nothing = checks.holdout(catalogue.of("parametric"), points, Options(holdout=1e25, starts=6))
    assert nothing["holdout_error"] is None and "no points" in nothing["holdout"]["refused"][0]


def held(points, asked=None) -> int:
    return int(checks.held_out(points, asked).sum())


def test_budgets_are_held_out_whole_by_their_round_number_or_by_their_part_of_the_points():
    points = gathered(seeds=(0,)).points("total", "exact")
    rng = np.random.default_rng(0)
    exact = type(points)(**{**vars(points), "flops": points.flops * rng.uniform(0.99, 1.01, len(points))})
    assert [held(exact, asked) for asked in (1e18, 1e19, 1e20, 1e21, 1.1e21)] == [28, 21, 14, 7, 0]
    assert [held(exact, part) for part in (0.1, 0.25, 0.26, 0.5, 0.9)] == [7, 7, 14, 14, 28]
    assert held(exact) == 7 and held(exact.take(exact.flops < 2e18)) == 0


def test_points_that_are_no_budgets_are_held_out_one_by_one():
    points = gathered(seeds=(0,)).points("total", "exact")
    cloud = type(points)(**{**vars(points), "flops": np.geomspace(1e18, 1e19, len(points))})
    chosen = checks.held_out(cloud, None)
    assert chosen.sum() == 6 and cloud.flops[chosen].min() > cloud.flops[~chosen].max()
    assert held(cloud, cloud.flops[10]) == 18 and held(cloud, 1.01 * cloud.flops[10]) == 17


def test_what_a_law_leaves_is_held_against_the_noise_of_seeds(found):
    law, noise = found["parametric"], found["seed_noise"]
    assert law["residual"] == pytest.approx(noise["relative"], rel=0.3) and law["residual"] == pytest.approx(
        1e-3, rel=0.3
    )
    good = {"refused": [], "a": 0.5, "interval95": {"a": [0.4, 0.6]}, "residual": 0.01}
    reasons = verdict.verdict({"parametric": good, "seed_noise": {"relative": 0.002}})["reasons"]
    assert reasons == [
        "the parametric law leaves 1.00% of the loss, 5.0 times what seeds differ by (0.20%): its form is wrong"
    ]
    assert not verdict.verdict({"parametric": good, "seed_noise": {"relative": 0.006}})["reasons"]
    assert not verdict.verdict({"parametric": good, "seed_noise": None})["reasons"]


def test_isoflops_list_the_points_of_budgets_without_a_vertex():
    rows = gathered(seeds=(0,)).rows
    some = Gathered(rows[:-4], [{"run": "x", "reason": "diverged: the loss is nan"}], [])  # three sizes at the last
    law = fit.results(some, fit.Request(Options(("isoflop",), replicates=2)))["isoflop"]
    assert law["points_used"] + len(law["points_excluded"]) == len(some.rows) + len(some.excluded)
    assert law["window"] < 3, "losses without noise show every misfit"
    outside = [rows[7 * budget + end].run for budget in range(3) for end in (0, 6)]
    assert [one["run"] for one in law["points_excluded"]] == ["x", *outside, *(row.run for row in rows[-7:-4])]
    assert law["points_excluded"][1]["reason"].startswith("outside the window at 1e+18 FLOPs, N from ")
    assert law["points_excluded"][-1]["reason"].startswith("no vertex at 1e+21 FLOPs: 3 sizes")


def test_a_convention_in_which_sizes_pay_differently_for_a_token_is_said(found):
    assert found["notes"] == []
    rows = [
        Row(r.run, r.params, r.tokens, {"exact": (6 + i / 20) * r.params["total"] * r.tokens}, r.loss)
        for i, r in enumerate(gathered(seeds=(0,)).rows)
    ]
    options = Options(("isoflop",), replicates=2)
    assert (
        "C / (N D) is 6 to 7.35 over these points"
        in fit.results(Gathered(rows, [], []), fit.Request(options))["notes"][0]
    )


def test_the_law_is_refitted_under_every_other_choice(found):
    changes = [one["change"] for one in found["parametric"]["sensitivity"]]
    assert [change.split(" ")[-1] for change in changes if change.startswith("Huber")] == ["0.01", "0.0001"]
    assert {"runs of D/N >= 2 only", "runs of D/N >= 5 only", "runs of D/N >= 10 only", "N non_embedding"} <= set(
        changes
    )
    assert any("outliers" in change for change in changes)
    cut = {one["change"]: one["points_used"] for one in found["parametric"]["sensitivity"]}
    assert cut["runs of D/N >= 10 only"] < cut["runs of D/N >= 2 only"] <= 56
    assert "C 6n" in [one["change"] for one in found["isoflop"]["sensitivity"]]


@pytest.mark.slow
def test_an_outlier_is_found_and_dropped():
    rows = gathered(noise=1e-4, seeds=(0,)).rows
    spoilt = [Row(**{**vars(row), "loss": row.loss * (1.2 if i == 5 else 1.0)}) for i, row in enumerate(rows)]
    found = checks.sensitivity(catalogue.of("parametric"), Case(Gathered(spoilt, [], []), "total", "exact", FEW))
    dropped = next(one for one in found if "outliers" in one["change"])
    assert dropped["points_used"] <= 27 and int(dropped["change"].split(" ")[0]) >= 1
    assert dropped["alpha"] == pytest.approx(LAW.alpha, rel=0.02)


def test_noise_between_seeds_is_the_pooled_standard_deviation():
    rows = [Row(f"{n}{s}", {"given": n}, 1e6, {"given": 6e6 * n}, loss, seed=s)
            for n, losses in ((1e3, (3.0, 3.2)), (2e3, (2.0, 2.1, 2.2)), (4e3, (1.5,))) for s, loss in enumerate(losses)]  # fmt: skip
    noise = checks.seed_noise(rows)
    assert noise["standard_deviation"] == pytest.approx(math.sqrt((0.02 + 0.02) / 3))
    assert (noise["groups"], noise["runs"]) == (2, 5)
    assert checks.seed_noise(gathered(seeds=(0,)).rows) is None


def test_runs_that_differ_in_more_than_their_seed_are_no_noise_between_seeds():
    rates = {0: (1e-3, 3.0), 1: (2e-3, 2.5)}
    for name in ("learning_rate", "optim.weight_decay"):
        rows = [
            Row(f"{s}-{rate}", {"given": 1e3}, 1e6, {"given": 6e9}, loss + 0.01 * s, seed=s, facts={name: rate})
            for s in (0, 1) for rate, loss in rates.values()
        ]  # fmt: skip
        noise = checks.seed_noise(rows)
        assert noise["groups"] == 2 and noise["standard_deviation"] == pytest.approx(0.01 / math.sqrt(2)), name
        assert checks.seed_noise(rows[:2]) is None


def test_what_was_left_out_of_a_family_without_a_point_stands_beside_the_largest():
    excluded = [{"run": "a", "reason": "diverged", "family": "lstm"}, {"run": "b", "reason": "failed", "family": "gpt"}]
    held = Gathered(gathered(budgets=(1e18,)).rows, excluded, [])
    assert held.of("gpt").excluded == excluded and held.of("lstm").excluded == excluded[:1]


def test_kaplans_laws_alone_say_why_there_is_no_headline():
    kaplan = {"kaplan": {"refused": [], "a": 0.5}}
    assert not verdict.verdict(kaplan)["headline"] and "irreducible" in verdict.verdict(kaplan)["reasons"][0]


def test_a_headline_by_training_curves_alone_says_what_they_hide():
    curves = verdict.verdict({"envelope": {"refused": [], "a": 0.5}})
    assert curves["headline"] and "from the middle of a schedule" in curves["reasons"][0]
    assert not verdict.verdict({"isoflop": {"refused": [], "a": 0.5}})["reasons"]


def test_a_size_of_which_every_learning_rate_diverged_is_shown():
    run = {
        "size": "s",
        "params": 10.0,
        "tokens": 1e6,
        "learning_rate": 1.0,
        "loss": None,
        "diverged": True,
        "initial_loss": 4.0,
    }
    results = fit.results(gathered(budgets=(1e18,)), fit.Request(Options(methods=(), replicates=2)))
    shown = study_fit.table(results | {"learning_rate": learning_rates.curves([run])})
    assert "learning rate of s: all diverged" in shown


def test_a_learning_rate_curve_is_of_one_length_and_the_mean_of_its_seeds():
    facts = {"size": "s", "params": 10.0, "diverged": False, "initial_loss": 4.0}
    tuned = [
        facts | {"tokens": tokens, "learning_rate": rate, "loss": loss + spread}
        for tokens, losses in ((1e6, (3.0, 2.9, 3.1)), (2e6, (2.0, 2.1, 2.2)))
        for rate, loss in zip((1e-3, 2e-3, 4e-3), losses)
        for spread in (-0.3, 0.3)
    ]
    short, long = learning_rates.curves(tuned)["sizes"]
    assert (short["best"], long["best"]) == (2e-3, 1e-3) and (short["at_edge"], long["at_edge"]) == (False, True)
    assert short["size"] == "s, 1e+06 tokens" and [len(one["points"]) for one in (short, long)] == [3, 3]
    assert short["sensitivity"] == pytest.approx(0.1) and long["sensitivity"] == pytest.approx(0.1)


def test_a_law_that_is_refused_gets_no_headline():
    good = {"refused": [], "a": 0.5, "interval95": {"a": [0.45, 0.55]}, "sensitivity": []}
    bad = {
        "refused": ["E is not below the smallest observed loss"],
        "a": 0.3,
        "E": 3.0,
        "interval95": {"a": [0.2, 0.4]},
    }
    said = verdict.verdict({"parametric": bad, "isoflop": good})
    assert said["headline"] and "C^0.500 (95%: 0.450 to 0.550) by isoFLOP parabolas" in said["text"]
    assert said["reasons"] == ["the parametric law: E is not below the smallest observed loss"]
    none = verdict.verdict({"parametric": bad})
    assert not none["headline"] and "no exponent" in none["text"]


def test_methods_that_disagree_and_choices_that_matter_are_said():
    one = {"refused": [], "a": 0.5, "interval95": {"a": [0.45, 0.55]}}
    moved = {"change": "runs of D/N >= 5 only", "a": 0.6, "refused": []}
    other = {"refused": [], "a": 0.7, "interval95": {"a": [0.65, 0.75]}, "sensitivity": []}
    said = verdict.verdict({"parametric": one | {"sensitivity": [moved]}, "isoflop": other})
    reasons = said["reasons"]
    assert (
        said["standing"] == ["parametric"]
        and "do not meet" in reasons[0]
        and "runs of D/N >= 5 only (0.600)" in reasons[1]
    )


LOW = {"refused": [], "a": 0.514, "interval95": {"a": [0.5, 0.53]}}
HIGH = {"refused": [], "a": 0.7, "interval95": {"a": [0.55, 0.85]}}


def changed(name: str, a: float, refused=()) -> dict:
    return {"change": name, "a": a, "refused": list(refused)}


def test_kaplans_exponent_beside_another_is_said_to_contradict_it_and_does_not_stand():
    said = verdict.verdict({"isoflop": LOW, "kaplan": HIGH})
    assert said["headline"] and said["standing"] == ["isoflop"]
    (reason,) = said["reasons"]
    both = "isoFLOP parabolas 0.514 (0.500 to 0.530) and Kaplan's laws 0.700 (0.550 to 0.850)"
    assert (
        reason.startswith(f"{both} give exponents whose 95% intervals do not meet") and "no irreducible loss" in reason
    )
    meet = {**HIGH, "interval95": {"a": [0.5295, 0.85]}}
    assert verdict.verdict({"isoflop": LOW, "kaplan": meet})["standing"] == ["isoflop", "kaplan"]


def test_what_two_methods_agree_under_is_said_to_be_why_they_disagree():
    rows = [("N matmul", 0.6, 0.61), ("runs of D/N >= 5 only", 0.52, 0.53), ("Huber delta 0.01", 0.5, 0.5), ("N other", 0.5, 0.7)]  # fmt: skip
    low, high = ({**fit, "sensitivity": [changed(row[0], row[i]) for row in rows]} for i, fit in ((1, LOW), (2, HIGH)))
    (reason,) = [
        one for one in verdict.verdict({"parametric": low, "isoflop": high})["reasons"] if "do not meet" in one
    ]
    assert "counted as N matmul they agree: it is the convention of N" in reason and "other" not in reason
    assert "with runs of D/N >= 5 only they agree: some points are beyond the regime of one of them" in reason
    assert "Huber" not in reason and "irreducible" not in reason


def test_the_headline_goes_to_the_first_law_that_neither_is_refused_nor_misses_its_points():
    missing = {**HIGH, "residual": 0.05}
    fits = {**LOW, "residual": 0.01}
    results = {
        "parametric": missing,
        "isoflop": fits,
        "kaplan": {**LOW, "residual": 0.05},
        "seed_noise": {"relative": 0.01},
    }
    said = verdict.verdict(results)
    assert "by isoFLOP parabolas" in said["text"] and said["standing"] == ["isoflop"]
    assert "the parametric law leaves 5.00% of the loss, 5.0 times" in said["reasons"][0]
    assert "Kaplan's laws leave 5.00% of the loss" in said["reasons"][1]
    assert "by the parametric law" in verdict.verdict({**results, "parametric": fits})["text"]
    none = verdict.verdict({**results, "isoflop": missing})
    assert not none["headline"] and none["standing"] == [] and "No law stands" in none["text"]
    assert sum("miss their points" in reason for reason in none["reasons"]) == 2


def test_without_seeds_a_law_is_held_against_what_the_best_of_the_others_leaves():
    results = {"parametric": {**LOW, "residual": 2e-10}, "kaplan": {**LOW, "residual": 0.0384}}
    said = verdict.verdict(results)
    assert said["standing"] == ["parametric"]
    assert said["reasons"] == [
        "Kaplan's laws leave 3.84% of the loss, where the parametric law leaves 0.00%: they miss their points"
    ]
    near = {**results, "parametric": {**LOW, "residual": 0.02}}
    assert verdict.verdict(near)["standing"] == ["parametric", "kaplan"]
    fine = {**results, "kaplan": {**LOW, "residual": 9e-4}}
    assert verdict.verdict(fine)["standing"] == ["parametric", "kaplan"]


def test_parabolas_are_held_against_the_seeds_of_the_points_they_go_through():
    fit = {**LOW, "residual": 0.01, "window_fits": True}
    assert verdict.verdict({"isoflop": fit, "seed_noise": {"relative": 0.01}})["headline"]
    assert not verdict.verdict(
        {"isoflop": {**fit, "seed_noise": {"relative": 1e-4}}, "seed_noise": {"relative": 0.01}}
    )["headline"]
    assert verdict.verdict({"isoflop": fit})["headline"], "what noise there is, nobody knows"
    said = verdict.verdict({"isoflop": {**fit, "window_fits": False}})
    assert not said["headline"] and "and fit no window of them: they miss their points" in said["reasons"][0]
    assert verdict.verdict({"isoflop": {**fit, "window_fits": False, "residual": 1e-4}})["headline"]


def test_the_verdict_names_the_change_that_moves_the_headline_most():
    rows = [
        changed("runs of D/N >= 2 only", 0.52),
        changed("5 outliers dropped", 0.565),
        changed("N x", 0.9, ["a reason"]),
    ]
    text = verdict.verdict({"isoflop": {**LOW, "sensitivity": rows}})["text"]
    assert text.endswith(" What moves the exponent most: 5 outliers dropped, to 0.565.")
    still = [changed("runs of D/N >= 2 only", 0.5141)]
    assert "moves" not in verdict.verdict({"isoflop": {**LOW, "sensitivity": still}})["text"]


def test_exponents_that_are_the_same_in_every_digit_shown_do_not_leave_an_interval():
    """Of points without noise: 0.5140001 beside an interval of 0.5140002 to 0.5140003."""
    exact = {"refused": [], "a": 0.5140002, "interval95": {"a": [0.51400019, 0.51400021]}, "residual": 2e-10}
    rows = [changed("runs of D/N >= 5 only", 0.5140001), changed("Huber delta 0.01", 0.51399999)]
    noise = {"relative": 1e-12}
    other = {**exact, "a": 0.51400105, "interval95": {"a": [0.514001, 0.514002]}}
    said = verdict.verdict({"parametric": {**exact, "sensitivity": rows}, "isoflop": other, "seed_noise": noise})
    assert said["headline"] and said["reasons"] == [] and said["standing"] == ["parametric", "isoflop"]
    moved = [changed("runs of D/N >= 5 only", 0.513)]
    assert "leaves its 95% interval" in verdict.verdict({"parametric": {**exact, "sensitivity": moved}})["reasons"][0]


def test_noise_between_seeds_stands_beside_what_each_parabola_leaves(found):
    law = found["isoflop"]
    for one in law["optima"]:
        assert 0 < one["residual"] < 0.01 and 0 < one["seed_deviation"] < 0.01
    assert law["seed_noise"]["relative"] == pytest.approx(1e-3, rel=0.4) and law["residual"] == pytest.approx(
        1e-3, rel=0.4
    )
    changes = [one["change"] for one in law["sensitivity"]]
    assert {"a window of x/2..x2", "a window of x/4..x4", "a parabola through all points"} <= set(changes)
    assert "window: " in study_fit.table(found) and "left, nats" in study_fit.table(found)


def test_what_is_left_out_is_grouped_on_the_terminal():
    excluded = [{"run": f"line {i}", "reason": f"out of range: the FLOPs are {i}e+03 times 6 N D"} for i in range(40)]
    excluded.append({"run": "last", "reason": "diverged: the loss is nan"})
    said = study_fit._beside({"points_excluded": excluded})
    assert said == [
        "",
        "left out: 40 (line 0, line 1, line 2, …): out of range: the FLOPs are … times 6 N D",
        "left out: last: diverged: the loss is nan",
    ]


def test_a_fit_of_points_that_all_weigh_nothing_is_one_line(tmp_path, capsys):
    file = tmp_path / "points.csv"
    for weight, said in (("0", "the weight of all 2 points is 0"), ("-1", "weight=-1"), ("nan", "weight=nan")):
        file.write_text(f"params,tokens,loss,weight\n1e6,2e7,3,{weight}\n2e6,2e7,2.9,{weight}\n")
        assert cli.main(["study", "fit", str(file)]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1


def test_a_family_whose_points_all_weigh_nothing_is_named():
    rows = gathered(budgets=(1e18,)).rows
    nothing = [Row(**{**vars(row), "family": "lstm", "weight": 0.0}) for row in rows[:3]]
    with pytest.raises(UserError, match="the weight of all 3 points of family lstm is 0"):
        fit.results(Gathered(rows + nothing, [], []), fit.Request(QUICK))


def test_a_report_that_cannot_be_written_is_said_before_anything_is_fitted(tmp_path, capsys):
    file = tmp_path / "points.csv"
    file.write_text("params,tokens,loss\n" + "".join(f"{n}e6,2e7,{4 - n / 10}\n" for n in range(1, 9)))
    assert cli.main(["study", "fit", str(file), f"--report={file}/report"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and f"--report={file}/report cannot be written: Not a directory" in error


def test_learning_rate_sensitivity_counts_a_diverged_run_as_the_loss_at_initialisation():
    assert learning_rates.sensitivity([2.0, 2.5], 5.0) == pytest.approx(0.25)
    assert learning_rates.sensitivity([2.0, 7.0], 5.0, diverged=1) == pytest.approx((2 + 5 + 5) / 3 - 2)
    assert learning_rates.sensitivity([], 5.0, diverged=2) is None
    tuned = [
        {
            "size": "s",
            "params": 10.0,
            "tokens": 1e6,
            "learning_rate": rate,
            "loss": loss,
            "diverged": loss is None,
            "initial_loss": 4.0,
        }
        for rate, loss in ((3e-3, None), (1e-3, 2.0), (2e-3, 1.9))
    ]
    (size,) = learning_rates.curves(tuned)["sizes"]
    assert (
        size["best"] == 2e-3 and not size["at_edge"] and size["sensitivity"] == pytest.approx((2 + 1.9 + 4) / 3 - 1.9)
    )
    assert learning_rates.curves([]) is None and learning_rates.curves(tuned[1:])["sizes"][0]["at_edge"]


def test_the_losses_on_two_texts_go_together_by_a_law_that_is_recovered():
    x = np.linspace(2.5, 4.5, 12)
    law = loss_to_loss.fit(x, 1.2 + 0.8 * (x - 1.5) ** 1.1)
    assert law(3.3) == pytest.approx(1.2 + 0.8 * 1.8**1.1, rel=1e-4) and law.rms < 1e-4
    rows = [
        Row(str(v), {"total": 1.0}, 1.0, {"6n": 1.0}, v, facts={"loss/a": v, "loss/b": v**0.5})
        for v in (2.0, 3.0, 4.0, 5.0)
    ]
    pair = loss_to_loss.between_sources(rows)
    assert (pair["x"], pair["y"], pair["exponent"]) == ("a", "b", pytest.approx(0.5))
    assert loss_to_loss.between_sources(rows[:3]) is None and loss_to_loss.between_sources([]) is None


def test_the_table_says_the_critical_batch_and_how_losses_on_two_texts_go_together():
    points = [
        {"run": "w8", "noise_scale": 2048.0, "refused": None},
        {"run": "w9", "noise_scale": None, "refused": "no rows"},
    ]
    law = {"scale": 3e5, "exponent": 4.0, "standard_error": 0.5, "refused": []}
    results = {
        "points_excluded": [],
        "critical_batch": {"unit": "tokens", "points": points, "law": law},
        "loss_to_loss": {"x": "a", "y": "b", "floor_x": 1.5, "floor_y": 0.0, "scale": 0.8, "exponent": 1.1, "rms": 0.01, "points": [1] * 9},
    }  # fmt: skip
    assert study_fit._beside(results) == [
        "",
        "critical batch of w8: 2.05k tokens",
        "critical batch of w9: no rows",
        "critical batch: 3e+05 L^-(4 +- 0.5) tokens",
        "L(b) = 0.8 (L(a) - 1.5)^1.1, 9 runs, 1.00% left",
    ]
    few = {"unit": "tokens", "points": [], "law": {"refused": ["1 runs have a noise scale, a law needs 4"]}}
    assert "no law: 1 runs have" in study_fit._beside(results | {"critical_batch": few, "loss_to_loss": None})[1]


def test_families_are_fitted_apart_and_the_largest_is_shown_first():
    rows = gathered(seeds=(0,)).rows
    other = [Row(**{**vars(row), "family": "lstm", "loss": 1.1 * row.loss}) for row in rows[:21]]
    results = fit.results(Gathered(rows + other, [], []), fit.Request(FEW))
    assert results["family"] == "gpt" and list(results["families"]) == ["lstm"]
    assert results["families"]["lstm"]["parametric"]["E"] == pytest.approx(1.1 * LAW.E, rel=0.05)
    with pytest.raises(UserError, match="--family='rnn' is not known"):
        fit.results(Gathered(rows, [], []), fit.Request(QUICK, family="rnn"))


def test_the_command_prints_json_without_nan_and_the_same_twice(tmp_path, capsys):
    file = tmp_path / "points.csv"
    lines = [
        f"{row.params['total']!r},{row.tokens!r},{row.flops['6n']!r},{row.loss!r},{row.seed}"
        for row in gathered(1e-3).rows
    ]
    file.write_text("params,tokens,flops,loss,seed\n" + "\n".join([*lines, "1e8,1e9,6e17,nan,3"]) + "\n")
    command = ["study", "fit", str(file), "--method=isoflop", "--bootstrap=20"]
    assert cli.main([*command, "--json"]) == 0
    text = capsys.readouterr().out
    results = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))
    law = results["isoflop"]
    assert (
        law["a"] == pytest.approx(LAW.a, abs=0.02) and law["interval95"]["a"][0] < law["a"] < law["interval95"]["a"][1]
    )
    assert (
        law["refused"] == [] and law["points_excluded"] == [results["points_excluded"][0]] and len(law["optima"]) == 4
    )
    assert cli.main([*command, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {**again, "command": None} == {**results, "command": None}
    assert cli.main(command) == 0
    table = capsys.readouterr().out
    assert table.startswith("N* grows as C^0.5") and "left out: line 58: diverged" in table


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--method=chinchilla"], "--method='chinchilla' is not known"),
        (["--bootstrap=1"], "--bootstrap=1 is too small for an interval"),
        (["--budgets=many"], "--budgets=many is not a list"),
        (["--budgets=-1e20"], "every budget must be positive"),
        (["--delta=0"], "--delta=0 must be positive"),
        (["--seed=-1"], "--seed=-1 is below 0"),
        (["--window=wide"], "--window=wide is not a window; use auto, all, or a factor above 1"),
        (["--window=1"], "--window=1 is not a window"),
        (["--window=nan"], "--window=nan is not a window"),
        (["--columns=parms=a"], "'parms=a' is no NAME=COLUMN; did you mean 'params'?"),
        (["--columns=params"], "'params' is no NAME=COLUMN"),
        (["--columns=params=a,params=b"], "names params twice"),
    ],
)
def test_a_wrong_flag_is_one_line(tmp_path, capsys, flags, said):
    file = tmp_path / "points.csv"
    file.write_text("params,tokens,loss\n1e6,2e7,3\n")
    assert cli.main(["study", "fit", str(file), *flags]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("lines", [1, 3])
def test_few_points_are_refused_in_the_output_and_not_by_a_traceback(tmp_path, capsys, lines):
    file = tmp_path / "points.csv"
    file.write_text("params,tokens,loss\n" + "".join(f"{n}e6,2e7,{4 - n / 10}\n" for n in range(1, lines + 1)))
    assert cli.main(["study", "fit", str(file), "--bootstrap=20", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    for name in ("parametric", "isoflop", "kaplan"):
        assert results[name]["refused"], name
    assert not results["verdict"]["headline"]
    assert cli.main(["study", "fit", str(file), "--bootstrap=20"]) == 0 and "No law stands" in capsys.readouterr().out


def test_a_folder_that_is_no_study_is_said(tmp_path, capsys):
    assert cli.main(["study", "fit", str(tmp_path)]) == 2
    assert "has no study.json" in capsys.readouterr().err
    assert csv_points.GIVEN == "given"
