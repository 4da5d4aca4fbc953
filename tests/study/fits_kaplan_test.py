"""Kaplan's laws from points made with the joint form, and refusals where the points cannot tell."""

import dataclasses

import laws
import numpy as np
import pytest

from gptjax.study.fits import kaplan

LAW = kaplan.JointLaw(6.4e13, 1.8e13, 0.076, 0.103, 0, True, 0, 0, 1e-3, [])  # Kaplan et al. 2020, table 2


def grid(params, tokens, sigma=0.0):
    return laws.grid(LAW, params, tokens, sigma)


WIDE = grid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e7, 1e13, 7))


def test_without_noise_the_joint_form_comes_back_to_five_digits():
    fit = kaplan.fit(WIDE)
    for name in ("N_c", "D_c", "alpha_N", "alpha_D"):
        assert getattr(fit.joint, name) == pytest.approx(getattr(LAW, name), rel=5e-6)
    assert fit.refused == [] and fit.joint.converged and fit.joint.starts_at_optimum > 6


def test_the_joint_form_is_equation_1_5_worked_by_hand():
    """N_c/N = 16 to the power 1/2, D_c/D = 5: (4 + 5)^2 = 81."""
    law = kaplan.JointLaw(16e6, 5e6, 1.0, 2.0, 0, True, 0, 0, 1e-3, [])
    assert law.loss(1e6, 1e6) == pytest.approx(81)


def test_single_laws_are_the_joint_forms_limits_to_what_two_percent_of_the_loss_move_them():
    fit = kaplan.fit(WIDE)
    assert fit.L_N.alpha == pytest.approx(0.076, rel=0.01) and fit.L_D.alpha == pytest.approx(0.103, rel=0.04)
    assert fit.L_N.loss(1e8) == pytest.approx(LAW.loss(1e8, np.inf), rel=0.02)
    assert fit.L_D.loss(1e9) == pytest.approx(LAW.loss(np.inf, 1e9), rel=0.02)
    for i in fit.L_N.points:
        assert WIDE.loss[i] < 1.02 * LAW.loss(WIDE.params[i], np.inf)


def test_L_of_C_runs_through_the_best_runs_alone():
    """Every 6ND once more with half the size twice as long: worse runs that no frontier holds."""
    sizes = np.geomspace(1e6, 1e9, 13)
    best = laws.points(LAW, sizes, 20 * sizes)
    fit = kaplan.fit(best)
    assert sorted(fit.L_C.points) == list(range(1, 12)) and fit.L_C.rms < 0.01
    slope = np.polyfit(np.log(best.flops[1:-1]), np.log(best.loss[1:-1]), 1)
    assert fit.L_C.alpha == pytest.approx(-slope[0], rel=1e-9)
    assert fit.L_C.loss(1.0) == pytest.approx(np.exp(slope[1]), rel=1e-6)
    worse = dataclasses.replace(best, loss=best.loss * 1.2, flops=best.flops * 1.01)
    both = dataclasses.replace(
        best,
        run=tuple(map(str, range(26))),
        **{
            n: np.r_[getattr(best, n), getattr(worse, n)]
            for n in ("params", "tokens", "flops", "loss", "weight", "seed")
        },
    )
    assert kaplan.fit(both).L_C.points == fit.L_C.points


def test_no_split_beats_the_joint_forms_optimum():
    optimum = LAW.optimum(1e20)
    nearby = optimum.params * np.array([0.98, 1.02])
    assert np.all(LAW.loss(nearby, 1e20 / 6 / nearby) > optimum.loss)
    fit = kaplan.fit(WIDE)
    ratio = np.log(fit.optimum(1e22).params / fit.optimum(1e20).params) / np.log(100)
    assert ratio == pytest.approx(fit.constants["a"]) and fit.constants["a"] == pytest.approx(0.103 / 0.179, rel=1e-5)


@pytest.mark.parametrize(
    "points, law, reason",
    [
        (grid(np.geomspace(1e6, 1e9, 6), [1e10]), "joint", "6 sizes, 1 numbers of tokens"),
        (
            grid(np.geomspace(1e6, 1e9, 6), [1e10]),
            "L(N)",
            "the joint form was refused, so the runs that are not limited by",
        ),
        (
            grid(np.geomspace(1e8, 1e9, 6), np.geomspace(1e6, 1e7, 6)),
            "L(N)",
            "sizes with a run within 2% of its loss at endless tokens",
        ),
        (
            grid(np.geomspace(1e4, 1e5, 6), np.geomspace(1e8, 1e9, 6)),
            "L(D)",
            "numbers of tokens with a run within 2% of its loss",
        ),
        (grid([1e6, 1e9], np.geomspace(1e7, 1e12, 6)), "L(C)", "0 budgets whose best run is neither"),
    ],
)
def test_a_law_the_points_cannot_tell_is_refused_with_the_reason(points, law, reason):
    fit = kaplan.fit(points)
    assert any(line.startswith(f"{law}: ") and reason in line for line in fit.refused)


def test_a_law_without_a_trace_in_the_points_is_not_identified():
    """Sizes far too large to matter: the data alone decide."""
    fit = kaplan.fit(grid(np.geomspace(1e30, 1e33, 5), np.geomspace(1e6, 1e8, 5)))
    assert fit.joint.refused


@pytest.mark.filterwarnings("error")
def test_a_joint_law_that_falls_as_models_shrink_has_no_best_split_and_says_nothing_on_the_terminal():
    law = kaplan.JointLaw(1e4, 1e9, -0.1, 0.1, 0.0, True, 1, 1, 1e-3, [])
    best = law.optimum(1e10)
    assert best.flops == 1e10 and np.isnan([best.params, best.tokens, best.loss]).all()
