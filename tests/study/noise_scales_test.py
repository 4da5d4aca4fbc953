"""The noise scale of a run as its log gives it: a ratio of averages, its error, and when it says nothing."""

import json
import math

import numpy as np
import pytest

from gptjax.errors import UserError
from gptjax.optim.noise_scale import SIGNAL, TRACE
from gptjax.study.results import noise_scales


def rows_of(signal_S, trace_S, **more):
    return [
        {"kind": "train", "step": i + 1, "tokens": 64 * (i + 1), "loss": 2.0, SIGNAL: signal, TRACE: trace} | more
        for i, (signal, trace) in enumerate(zip(signal_S, trace_S))
    ]


def test_the_ratio_of_averages_and_its_error_are_those_worked_by_hand():
    """Means 2 and 40: B = 20. Residuals trace - 20 signal: 10, -20, 10; sqrt(600 / (3 * 2)) / 2 = 5."""
    found = noise_scales.average(rows_of([1.9, 2.0, 2.1], [48.0, 20.0, 52.0]))
    assert (found.signal, found.trace, found.b_simple) == pytest.approx((2.0, 40.0, 20.0))
    assert found.standard_error == pytest.approx(5.0)
    assert (found.first, found.last, found.n_steps, found.tokens_per_step, found.loss) == (1, 3, 3, 64.0, 2.0)


def test_the_standard_error_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(1)
    signal, trace, within = 1.0, 50.0, 0
    for _ in range(400):
        noise_S2 = random.multivariate_normal([signal, trace], [[1.0, -6.0], [-6.0, 100.0]], 100)
        found = noise_scales.average(rows_of(*noise_S2.T))
        within += abs(found.b_simple - 50.0) < 1.96 * found.standard_error
    assert 0.92 < within / 400 < 0.98


@pytest.mark.parametrize(
    "signal_S,reason",
    [([1.0], "1 step has no standard error"), ([1.0, -1.0, 0.5, -0.5], "cannot be distinguished from its noise"), ([-1.0, -1.1], "cannot be distinguished")],
)  # fmt: skip
def test_a_ratio_that_says_nothing_is_refused_with_its_reason(signal_S, reason):
    found = noise_scales.average(rows_of(signal_S, [1.0] * len(signal_S)))
    assert reason in found.refused and math.isnan(found.b_simple)
    assert found.as_dict()["b_simple"] is None and json.dumps(found.as_dict(), allow_nan=False)


def test_the_critical_batch_takes_twice_the_fewest_steps_and_tokens():
    assert noise_scales.cost(1000.0, 1000.0) == (2.0, 2.0)
    assert noise_scales.cost(500.0, 1000.0) == (3.0, 1.5)


def test_a_run_that_logged_it_is_read_over_any_window(tmp_path):
    rows = rows_of([2.0] * 10 + [1.0] * 10, [20.0, 22.0] * 10)
    rows[3] |= {SIGNAL: "nan"}  # of a step with one microbatch that counts
    rows += [{"kind": "eval", "step": 20, "loss": 1.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    early, late = noise_scales.windows(tmp_path, 2)
    assert (early.first, early.last, early.n_steps, late.first, late.n_steps) == (1, 10, 9, 11, 10)
    assert (early.b_simple, late.b_simple) == pytest.approx((2 * (20 * 5 + 22 * 4) / 9 / 4, 21.0))
    assert noise_scales.of_run(tmp_path, 11, 20) == late
    with pytest.raises(UserError, match="train.log_noise_scale=True and train.microbatches of at least 2"):
        noise_scales.of_run(tmp_path, 21)
