"""Intervals: what a replicate is, and how often they hold the truth (slow)."""

import dataclasses
import functools

import laws
import numpy as np
import pytest

from gptjax.study.fits import bootstrap, identified, isoflop, kaplan, parametric
from gptjax.study.fits.laws import PowerLaw

FIT = functools.partial(parametric.fit, starts=5)
NOISY = laws.chinchilla(laws.BESIROGLU, sigma=0.002)
LADDER = laws.ladder(laws.BESIROGLU, np.logspace(18, 21, 4), sizes=7, seeds=2, sigma=0.002)


def test_points_of_a_run_share_one_weight_whose_mean_is_one_and_whose_variance_knows_the_constants():
    run = tuple(f"r{i // 3}" for i in range(90))  # 30 runs of 3 points
    weight = bootstrap.weights(run, np.zeros(90, int), parametric.fit(NOISY, starts=1).spare, 4000, seed=0)
    assert np.array_equal(weight[:, ::3], weight[:, 1::3]) and np.array_equal(weight[:, ::3], weight[:, 2::3])
    assert weight.sum(1) == pytest.approx(90) and weight.mean() == pytest.approx(1)
    # 30 gamma variables of shape 25/30, divided by their sum: variance 29 / (25 + 1)
    assert np.var(weight[:, ::3]) == pytest.approx(29 / 26, rel=0.03)
    assert abs(np.corrcoef(weight[:, 0], weight[:, 3])[0, 1] + 1 / 29) < 0.05


def test_within_a_budget_the_weights_sum_to_its_points_so_that_none_disappears():
    fit = isoflop.fit(LADDER)
    weight = bootstrap.weights(LADDER.run, fit.strata(LADDER), fit.spare, 50, seed=1)
    for budget in range(4):
        assert weight[:, fit.strata(LADDER) == budget].sum(1) == pytest.approx(14)


def test_runs_that_span_budgets_are_weighed_in_one_urn():
    trunks = dataclasses.replace(LADDER, run=tuple(f"r{i % 14}" for i in range(len(LADDER))))
    assert set(isoflop.fit(LADDER).strata(trunks)) == {0}


@pytest.mark.parametrize(
    "function, points", [(FIT, NOISY.take(slice(60))), (isoflop.fit, LADDER), (kaplan.fit, LADDER)]
)
def test_a_replicate_is_the_fit_of_the_weighed_points(function, points):
    """Refitted from the optimum on, many at once; here each by itself from all its starts."""
    fit = function(points)
    weight = bootstrap.weights(fit.runs(points), fit.strata(points), fit.spare, 2, seed=2)
    for refit, row in zip(fit.refits(points, weight), weight):
        alone = function(dataclasses.replace(points, weight=row)).constants
        names = [
            n for n in alone if n not in ("N_c", "D_c", "C_c", "alpha_N", "alpha_D", "alpha_C")
        ]  # Kaplan's choose runs anew
        assert {n: refit.constants[n] for n in names} == pytest.approx({n: alone[n] for n in names}, rel=1e-5)


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others():
    one, again, other = (bootstrap.intervals(FIT, NOISY, replicates=50, seed=s, budgets=[1e22]) for s in (1, 1, 2))
    assert one.interval95 == again.interval95 and one.optima == again.optima and one.interval95 != other.interval95


def test_intervals_lie_around_the_fit_the_wider_one_outside_and_optima_have_theirs():
    found = bootstrap.intervals(FIT, NOISY, replicates=300, budgets=[1e21, 5.76e23])
    assert found.failed == 0 and found.refused == [] and len(found.samples["E"]) == 300
    assert set(found.interval95) == set(found.interval80) == {"E", "A", "B", "alpha", "beta", "a", "b"}
    for name, value in found.fit.constants.items():
        assert (
            found.interval95[name][0]
            < found.interval80[name][0]
            < value
            < found.interval80[name][1]
            < found.interval95[name][1]
        )
    near, far = found.optima
    for name in ("params", "tokens", "loss"):
        assert near.interval95[name][0] < getattr(near.optimum, name) < near.interval95[name][1]
    relative = [np.log(o.interval95["params"][1] / o.interval95["params"][0]) for o in (near, far)]
    assert relative[1] > relative[0] and far.optimum == found.fit.optimum(5.76e23)


def test_constants_that_move_together_are_said_to():
    found = bootstrap.intervals(FIT, NOISY, replicates=300).correlation
    assert found["A"]["alpha"] > 0.95 and found["B"]["beta"] > 0.95 and found["E"]["alpha"] > 0.5
    assert found["a"]["b"] == pytest.approx(-1) and found["E"]["E"] == pytest.approx(1)
    assert found["A"]["beta"] == pytest.approx(found["beta"]["A"])


def test_noise_of_whole_runs_widens_intervals_as_noise_of_points_does_not():
    """Twelve runs with five points each that share their run's luck: as independent points they would look far surer."""
    rng = np.random.default_rng(3)
    params = np.geomspace(1e8, 1e10, 12).repeat(5)
    tokens = np.tile(np.geomspace(2e9, 1e12, 5), 12)
    points = laws.points(laws.BESIROGLU, params, tokens, run=tuple(f"r{i // 5}" for i in range(60)))
    points = dataclasses.replace(points, loss=points.loss * np.exp(0.003 * rng.normal(size=12).repeat(5)))
    apart = dataclasses.replace(points, run=tuple(map(str, range(60))))
    widths = [
        np.subtract(*bootstrap.intervals(FIT, p, replicates=300).interval95["alpha"][::-1]) for p in (points, apart)
    ]
    assert widths[0] > 1.4 * widths[1]


def test_replicates_without_a_fit_are_counted_with_their_reason_and_too_many_refuse():
    """Per budget five sizes, the best of them last but one, and much noise: many weighings put a vertex at the edge."""
    points = laws.ladder(laws.BESIROGLU, np.logspace(18, 20, 3), off=0.4, sizes=5, sigma=0.008, seed=1)
    found = bootstrap.intervals(isoflop.fit, points, replicates=200)
    assert found.failed > 10 and all("budgets have a usable vertex" in reason for reason in found.failures)
    assert len(found.samples["a"]) == 200 - found.failed and found.fit.refused == []
    assert any(f"{found.failed} of 200 replicates gave no fit" in reason for reason in found.refused)


def test_a_fit_that_cannot_be_computed_has_no_intervals_and_says_so():
    found = bootstrap.intervals(parametric.fit, NOISY.take(slice(4)), budgets=[1e20])
    assert np.isnan(found.interval95["E"]).all() and np.isnan(found.optima[0].interval80["loss"]).all()
    assert found.refused == ["no intervals: there is no fit"] and found.fit.refused


def test_points_along_one_ratio_of_tokens_to_parameters_leave_the_exponents_open():
    """D = 20 N throughout: A/N^alpha and B/D^beta can stand for one another."""
    sizes = np.geomspace(4e7, 1e10, 60)
    points = laws.points(laws.BESIROGLU, sizes, 20 * sizes, 0.002, np.random.default_rng(0))
    found = bootstrap.intervals(FIT, points, replicates=50)
    assert found.fit.refused or found.refused
    assert any("cannot determine" in reason or "gave no fit" in reason for reason in found.fit.refused + found.refused)


def test_intervals_that_reach_nought_or_span_magnitudes_leave_their_constant_open():
    sure = {"E": (1.7, 1.9), "A": (100, 9e4), "B": (10, 20), "alpha": (0.3, 0.4), "beta": (0.05, 0.4), "a": (0, 1)}
    assert identified.of_intervals(sure) == [] and identified.of_intervals({"a": (-1, 1)}) == []
    for name, wide in {"E": (0.1, 1.9), "A": (10, 1.1e4), "beta": (0.0, 0.4), "alpha": (-0.1, 0.4)}.items():
        (reason,) = identified.of_intervals(sure | {name: wide})
        assert reason == f"these runs cannot determine {name}: its 95% interval is {wide[0]:.4g} to {wide[1]:.4g}"


def test_a_parabola_leaves_its_residuals_less_noise_than_a_law_through_all_points_does():
    assert isoflop.fit(LADDER).spare(14) == pytest.approx((11 / 14) ** 2)


def test_few_runs_are_named_whatever_their_points():
    points = dataclasses.replace(NOISY, run=tuple(f"r{i % 6}" for i in range(240)))
    found = bootstrap.intervals(FIT, points, replicates=50)
    assert "intervals from 6 runs are only a hint; use 8 runs or more" in found.refused


def test_a_power_law_through_exact_points_is_that_law():
    law = PowerLaw.through(np.geomspace(1, 1e9, 5), 3.5 * np.geomspace(1, 1e9, 5) ** -0.27)
    assert (law.scale, law.exponent) == pytest.approx((3.5, -0.27)) and law.rms < 1e-12


@pytest.mark.slow
def test_in_200_repetitions_95_percent_intervals_hold_the_truth_93_to_97_percent_of_the_time():
    """Two minutes. 95% of 200 is 190 +- 3 by chance alone."""
    held = dict.fromkeys(("E", "alpha", "beta"), 0)
    for repetition in range(200):
        points = laws.chinchilla(laws.BESIROGLU, sigma=0.002, seed=[0, repetition])
        found = bootstrap.intervals(
            functools.partial(parametric.fit, starts=10), points, replicates=1000, seed=repetition
        )
        for name in held:
            low, high = found.interval95[name]
            held[name] += low <= getattr(laws.BESIROGLU, name) <= high
    print(held)
    assert all(186 <= count <= 194 for count in held.values()), held
