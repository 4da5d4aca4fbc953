"""Mixtures: shares as exact as rows can be, sources counted without gaps, all of it arithmetic."""

import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptjax.config.mixture_weights import PERIOD
from gptjax.data.rows.mixture import Mixture
from gptjax.errors import UserError

THREE = {"web": 0.6, "books": 0.3, "code": 0.1}
EIGHTHS = {"web": 5, "books": 2, "code": 1}  # whole numbers of places


def mixture(*stages, seed=0) -> Mixture:
    """Of stages, each weights or (first row, weights)."""
    stages = [stage if isinstance(stage, tuple) else (0, stage) for stage in stages]
    return Mixture(tuple(stages[0][1]), stages, seed)


def counted(made: Mixture, first: int, stop: int, n_sources: int) -> np.ndarray:
    return np.bincount(made.locate(first, stop)[0], minlength=n_sources)


weights_of_sources = st.lists(st.floats(0.001, 1), min_size=1, max_size=7).map(
    lambda values: {f"source{i}": value for i, value in enumerate(values)}
)


# ---- shares


def bound(share_S: np.ndarray, n_rows: int) -> np.ndarray:
    """Of how far the rows of each source, among the first n_rows, may be from their share: proved in `mixture`."""
    return 1 + share_S * max(0, len(share_S) - 2) + n_rows / PERIOD


@settings(max_examples=25, deadline=None)
@given(weights_of_sources, st.integers(0, 2**40), st.integers(0, 3 * PERIOD), st.integers(1, 3 * PERIOD))
def test_every_stretch_of_rows_has_the_shares_of_the_weights_to_the_bound(weights, seed, first, n_rows):
    made, share_S = mixture(weights, seed=seed), np.array(list(weights.values())) / sum(weights.values())
    prefix = np.eye(len(weights), dtype=int)[made.locate(0, PERIOD)[0]].cumsum(axis=0)
    n_N = np.arange(1, PERIOD + 1)
    assert (np.abs(prefix - n_N[:, None] * share_S) < bound(share_S, 1) + n_N[:, None] / PERIOD).all()
    stretch = counted(made, first, first + n_rows, len(weights))
    assert (np.abs(stretch - n_rows * share_S) < 2 * bound(share_S, 0) + n_rows / PERIOD + 1e-9).all()


@pytest.mark.parametrize("seed", range(3))
def test_after_1000_steps_shares_are_within_3_standard_errors_and_far_closer(seed):
    made, share_S = mixture(THREE, seed=seed), np.array([0.6, 0.3, 0.1])
    for rows in (1000, 1000 * 8, 1000 * 512):
        off_S = np.abs(counted(made, 0, rows, 3) - rows * share_S)
        standard_error_S = np.sqrt(rows * share_S * (1 - share_S))
        assert (off_S < 3 * standard_error_S).all() and (off_S < bound(share_S, rows)).all()


def test_neighbouring_rows_of_a_source_are_at_random_distances():
    place = np.flatnonzero(mixture(THREE).locate(0, PERIOD)[0] == 2)
    gaps = np.diff(place)
    assert gaps.min() <= 3 and gaps.max() >= 15 and abs(gaps.mean() - 10) < 0.01 and gaps.std() > 3


def test_a_mixture_has_the_order_it_always_had():
    source_B, index_B = mixture(THREE, (40, {"web": 0, "books": 1, "code": 1}), seed=7).locate(30, 50)
    assert source_B.tolist() == [1, 0, 2, 0, 0, 0, 1, 1, 0, 0, 2, 1, 2, 1, 2, 1, 2, 1, 2, 1]
    assert index_B.tolist() == [9, 18, 3, 19, 20, 21, 10, 11, 22, 23, 4, 12, 5, 13, 6, 14, 7, 15, 8, 16]


# ---- counting


STAGES = [
    {"a": 0.5, "b": 0.3, "c": 0.2},
    (PERIOD + 17, {"a": 0.0, "b": 3, "c": 1}),
    (PERIOD + 18, {"a": 1, "b": 0.0, "c": 0.0}),
    (3 * PERIOD, {"a": 2, "b": 1, "c": 1}),
]


def test_each_source_is_read_without_gaps_or_repeats_over_stages_and_periods():
    made = mixture(*STAGES)
    source_B, index_B = made.locate(0, 5 * PERIOD + 100)
    for i in range(3):
        index = index_B[source_B == i]
        assert np.array_equal(index, np.arange(len(index))) and len(index) > PERIOD // 2


def test_counts_are_those_of_the_rows():
    made = mixture(*STAGES)
    edges = [first for first, _ in STAGES[1:]]
    around = [edge + d for edge in (0, PERIOD, 2 * PERIOD, 5 * PERIOD, *edges) for d in (-1, 0, 1, 1000)]
    source_B, _ = made.locate(0, 6 * PERIOD)
    for n in (n for n in around if n >= 0):
        assert made.counts(n).tolist() == np.bincount(source_B[:n], minlength=3).tolist(), n


def test_weights_change_at_the_exact_row():
    made = mixture({"a": 1, "b": 0}, (1000, {"a": 0, "b": 1}), (1003, {"a": 1, "b": 0}))
    source_B, index_B = made.locate(998, 1006)
    assert source_B.tolist() == [0, 0, 1, 1, 1, 0, 0, 0]
    assert index_B.tolist() == [998, 999, 0, 1, 2, 1000, 1001, 1002]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 4 * PERIOD), max_size=6))
def test_rows_are_located_the_same_however_they_are_split_and_by_whom(cuts):
    made, again = (mixture(*STAGES, seed=3) for _ in range(2))
    edges = [0, *sorted(cuts), 4 * PERIOD]
    parts = [again.locate(a, b) for a, b in zip(edges, edges[1:])]
    for whole, part in zip(made.locate(0, 4 * PERIOD), zip(*parts)):
        np.testing.assert_array_equal(whole, np.concatenate(part))


def test_an_empty_stretch_is_empty_and_far_rows_cost_the_same():
    made = mixture(THREE)
    assert [array.tolist() for array in made.locate(5, 5)] == [[], []]
    source_B, index_B = made.locate(10**15, 10**15 + 1000)
    assert abs(index_B[source_B == 0][0] - 0.6e15) < 1e11  # within rounding of the weights to places
    assert made.counts(10**15).sum() == 10**15


# ---- what the order depends on


def test_another_seed_gives_another_order_and_scaled_weights_the_same():
    one = mixture(EIGHTHS).locate(0, 1000)[0]
    assert not np.array_equal(one, mixture(EIGHTHS, seed=1).locate(0, 1000)[0])
    assert np.array_equal(one, mixture({name: 50 * weight for name, weight in EIGHTHS.items()}).locate(0, 1000)[0])


@pytest.mark.parametrize(
    "weights", [EIGHTHS, dict.fromkeys(EIGHTHS, 1), {"web": 0.6, "books": 0.3, "code": 0.1}], ids=str
)
def test_the_order_in_which_sources_are_named_changes_no_sources_places(weights):
    names = tuple(weights)
    for turned in itertools.permutations(names):
        one, other = mixture(weights), mixture({name: weights[name] for name in turned})
        (source_B, index_B), (source, index) = (
            one.locate(PERIOD - 99, PERIOD + 99),
            other.locate(PERIOD - 99, PERIOD + 99),
        )
        assert [names[i] for i in source_B] == [turned[i] for i in source]
        np.testing.assert_array_equal(index_B, index)
        counts = (dict(zip(order, made.counts(PERIOD + 7))) for order, made in ((names, one), (turned, other)))
        assert next(counts) == next(counts)


def test_a_source_alone_is_in_order_and_one_with_tiny_weight_comes_at_least_once_a_period():
    assert [array.tolist() for array in mixture({"a": 3.5}).locate(7, 10)] == [[0, 0, 0], [7, 8, 9]]
    assert counted(mixture({"a": PERIOD - 1, "b": 1}), 0, 2 * PERIOD, 2).tolist() == [2 * PERIOD - 2, 2]


# ---- weights that cannot be

THERE_ARE = "the sources of data.mixture are a, b"
BAD_WEIGHTS = {
    "too many": ([{"a": 1, "b": 1, "books": 1}], "data.weights has 'books'"),
    "misspelt": ([{"a": 1, "B": 1}], "data.weights has 'B'"),
    "missing": ([{"a": 1}], f"data.weights has none for 'b'; {THERE_ARE}, and each needs one (0 is allowed)"),
    "negative": ([{"a": 1, "b": -0.5}], "data.weights={'a': 1, 'b': -0.5}: expected weights of at least 0"),
    "all zero": (
        [{"a": 0, "b": 0}],
        "data.weights={'a': 0, 'b': 0}: expected weights of at least 0, one of them larger",
    ),
    "not a number": ([{"a": 1, "b": math.nan}], "data.weights={'a': 1, 'b': nan}: expected"),
    "infinite": ([{"a": 1, "b": math.inf}], "data.weights={'a': 1, 'b': inf}: expected"),
    "too small": ([{"a": 1, "b": 1e-6}], "data.weights gives 'b' 1e-06 of the rows, less than one in 65536; raise its"),
    "never": ([{"a": 1, "b": 0}, {"a": 2, "b": 0}], "data.weights gives 'b' 0 in all stages: it would never be read"),
    "stage": ([{"a": 1, "b": 1}, {"a": 1}], "data.weights has none for 'b'"),
    "zero stage": ([{"a": 1, "b": 1}, {"a": 0, "b": 0}], "expected weights of at least 0, one of them larger"),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_weights_that_cannot_be_are_one_line(case):
    stages, message = BAD_WEIGHTS[case]
    with pytest.raises(UserError, match=re.escape(message)) as error:
        Mixture(("a", "b"), [(i * 10, weights) for i, weights in enumerate(stages)], 0)
    assert "\n" not in str(error.value)
