"""As many points as a chart can show: no peak is lost, and few points stay as they are."""

import json

import numpy as np

from gptjax.watch.series import STRETCHES, Series


def made(values) -> Series:
    series = Series()
    for step, value in enumerate(values, 1):
        series.add(step, value)
    return series


def test_few_points_are_drawn_as_they_are():
    values = np.random.default_rng(0).random(2 * STRETCHES).round(3).tolist()
    assert made(values).drawn() == {"x": list(range(1, 2 * STRETCHES + 1)), "y": values}


def test_of_many_points_every_peak_stays_and_means_are_those_of_their_stretch():
    values = np.random.default_rng(0).normal(2, 0.1, 100_000)
    values[[70, 44_444, 99_998]] = 9.0, 11.0, -3.0
    drawn = made(values).drawn()
    assert (max(drawn["hi"]), min(drawn["lo"]), drawn["hi"].count(9.0)) == (11.0, -3.0, 1)
    assert STRETCHES < len(drawn["x"]) <= 1.5 * STRETCHES + 1 and len(json.dumps(drawn)) < 40_000
    assert all(low <= mean <= high for low, mean, high in zip(drawn["lo"], drawn["y"], drawn["hi"]))
    peak = drawn["hi"].index(11.0)
    assert drawn["x"][peak - 1] < 44_445 < drawn["x"][peak + 1], "near where it was"
    early = [x for x in drawn["x"] if x <= 100]
    assert len(early) > 20, "a logarithmic axis shows the beginning"


def test_of_many_numbers_that_are_not_finite_each_stretch_keeps_one():
    values = np.where(np.arange(50_000) % 2, np.nan, 1.0)
    drawn = made(values).drawn()
    assert set(drawn["y"]) == {1.0} and 100 < len(drawn["bad"]) <= 1.5 * STRETCHES + 1
