"""Approach 1: curves of a known law, edge winners, curves that are none."""

import dataclasses

import laws
import numpy as np
import pytest

from gptjax.errors import UserError
from gptjax.study.fits import bootstrap, envelope

TOKENS = np.geomspace(1e8, 1e12, 200)


def curves(sizes, law=laws.BESIROGLU):
    return [envelope.Curve(f"n{n:.3g}", n, 6 * n * TOKENS, TOKENS, law.loss(n, TOKENS)) for n in sizes]


DENSE = curves(np.geomspace(1e7, 1e10, 25))


def test_the_envelope_of_a_known_law_has_its_exponents_and_optima():
    fit = envelope.fit(DENSE)
    assert (
        fit.refused == []
        and fit.a == pytest.approx(laws.BESIROGLU.a, abs=0.003)
        and fit.a + fit.b == pytest.approx(1, abs=1e-6)
    )
    found, true = fit.optimum(1e22), laws.BESIROGLU.optimum(1e22)
    assert found.params == pytest.approx(true.params, rel=0.02) and found.loss == pytest.approx(true.loss, rel=2e-3)


def test_each_winner_is_the_run_with_the_lowest_loss_at_its_compute():
    fit = envelope.fit(DENSE, budgets=40)
    assert len(fit.winners) > 30
    for winner in fit.winners:
        there = [c for c in DENSE if c.flops[0] <= winner.flops <= c.flops[-1]]
        losses = {c.run: laws.BESIROGLU.loss(c.params, winner.flops / 6 / c.params) for c in there}
        assert winner.loss == pytest.approx(min(losses.values()), rel=1e-4)
        assert losses[winner.run] == pytest.approx(min(losses.values()), rel=1e-4)
        assert winner.tokens == pytest.approx(winner.flops / 6 / winner.params, rel=1e-9)


def test_winners_without_a_smaller_and_a_larger_rival_are_refused_and_not_fitted():
    fit = envelope.fit(DENSE)
    edge = [w for w in fit.winners if w.refused]
    assert {w.params for w in edge} >= {DENSE[0].params, DENSE[-1].params}
    assert fit.points_used == len(fit.winners) - len(edge) and {"smaller", "larger"} == {
        w.refused.split()[1] for w in edge
    }
    inside = [w for w in fit.winners if not w.refused]
    slope = np.polyfit(np.log([w.flops for w in inside]), np.log([w.params for w in inside]), 1)[0]
    assert fit.a == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize("few", [DENSE[:1], DENSE[::12], []])
def test_too_few_winning_sizes_refuse_the_law(few):
    fit = envelope.fit(few)
    assert "sizes are the best at some compute, between smaller and larger runs; a power law needs 3" in fit.refused[0]
    assert np.isnan(fit.a)


def test_intervals_hold_the_exponent_of_runs_that_differ():
    rng = np.random.default_rng(0)
    noisy = [dataclasses.replace(c, loss=c.loss * np.exp(0.001 * rng.normal())) for c in DENSE]
    found = bootstrap.intervals(envelope.fit, noisy, replicates=200, budgets=[1e22])
    low, high = found.interval95["a"]
    assert low < found.fit.a < high and high - low < 0.05 and found.failed == 0
    assert (
        found.optima[0].interval95["params"][0]
        < found.fit.optimum(1e22).params
        < found.optima[0].interval95["params"][1]
    )


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(loss=np.r_[TOKENS[:-1] * 0 + 3, np.nan]), "run n1e\\+07: loss is nan"),
        (dict(tokens=TOKENS[:-1]), r"flops, tokens and loss have \[199, 200\] values"),
        (dict(flops=np.ones(200)), "the FLOPs of a curve must grow"),
        (dict(params=0.0), "params is 0.0"),
    ],
)
def test_a_curve_that_is_none_is_one_line_with_its_run(change, message):
    with pytest.raises(UserError, match=message):
        envelope.fit([dataclasses.replace(DENSE[0], **change), *DENSE[1:]])
