"""How well scores order answers: numbers worked by hand, weights of prompts, and errors that are those of prompts."""

import math

import numpy as np
import pytest

from gptjax.data.pairs.encoding import Example
from gptjax.evaluation import preference_metrics
from gptjax.evaluation.preferred import summarise


def example(scores, lengths, margin: float = 0.0, label=None) -> Example:
    targets = tuple(np.ones(length, bool) for length in lengths)
    sequences = tuple(np.zeros(length, np.int32) for length in lengths)
    return Example(sequences, targets, 0, np.array(scores, np.float32), margin, label)


def of(*prompts) -> preference_metrics.Pairs:
    """prompts: (ranks, lengths, scores of the model)."""
    examples = [example(ranks, lengths) for ranks, lengths, _ in prompts]
    return preference_metrics.pairs_of(examples, [np.array(scores, np.float64) for *_, scores in prompts])


def test_pairs_are_all_of_a_prompt_but_ties():
    pairs = of(([2, 1, 1], [5, 3, 9], [0.5, 1.5, -1]), ([1, 0], [2, 2], [3, 3]))
    assert pairs.prompt_P.tolist() == [0, 0, 1] and pairs.weight_P.tolist() == [0.5, 0.5, 1]
    assert pairs.difference_P.tolist() == [-1, 1.5, 0] and pairs.longer_P.tolist() == [2, -4, 0]


def test_a_prompt_counts_once_whatever_its_pairs_and_equal_scores_count_half():
    numbers = preference_metrics.of_pairs(of(([2, 1, 0], [1, 1, 1], [3, 2, 1]), ([1, 0], [1, 1], [0, 0])))
    assert numbers["accuracy"].value == pytest.approx((1 + 0.5) / 2)
    assert numbers["margin"].value == pytest.approx(((1 + 2 + 1) / 3 + 0) / 2)


def test_the_error_of_an_accuracy_is_a_share_s_of_prompts_with_one_pair_each():
    right = [([1, 0], [1, 1], [1, 0])] * 30 + [([1, 0], [1, 1], [0, 1])] * 10
    accuracy = preference_metrics.of_pairs(of(*right))["accuracy"]
    assert accuracy == pytest.approx((0.75, math.sqrt(0.75 * 0.25 / 40)))


def test_accuracy_by_length_shows_a_score_that_is_length():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, (200, 2))
    lengths[:, 1] += lengths[:, 0] == lengths[:, 1]
    numbers = preference_metrics.of_pairs(of(*(([1, 0], pair, pair) for pair in lengths)))
    assert numbers["accuracy_longer"].value == 1 and numbers["accuracy_shorter"].value == 0
    assert numbers["length_correlation"].value == pytest.approx(1)
    assert numbers["chosen_longer"].value == pytest.approx(np.mean(lengths[:, 0] > lengths[:, 1]))
    assert numbers["accuracy"].value == numbers["chosen_longer"].value


def test_what_is_not_defined_is_left_out():
    numbers = preference_metrics.of_pairs(of(([1, 0], [2, 2], [1, 0]), ([1, 0], [2, 2], [1, 0.5])))
    assert "length_correlation" not in numbers and "accuracy_longer" not in numbers
    assert all(np.isfinite(number.value) for number in numbers.values())


def test_scores_whose_probabilities_are_right_are_calibrated_and_twice_as_large_ones_are_not():
    rng = np.random.default_rng(0)
    difference_P = rng.normal(0, 2, 20000)
    is_so_P = rng.random(20000) < 1 / (1 + np.exp(-difference_P))
    signed_P = np.where(is_so_P, difference_P, -difference_P)
    weight_P = np.ones(20000)
    curve = preference_metrics.calibration(signed_P, weight_P)
    assert len(curve) == 10 and sum(each["share"] for each in curve) == pytest.approx(1)
    assert all(abs(each["accuracy"] - each["confidence"]) < 0.05 for each in curve)
    assert preference_metrics.calibration_error(curve) < 0.02
    assert preference_metrics.calibration_error(preference_metrics.calibration(3 * signed_P, weight_P)) > 0.08


def test_a_weight_of_two_is_the_same_pair_twice():
    difference_P, longer_P, weight_P = np.array([1.0, -0.5, 2.0]), np.array([3, 1, -2]), np.array([2.0, 1.0, 1.0])
    twice = [np.append(column, column[0]) for column in (difference_P, longer_P, np.ones(3))]
    assert preference_metrics._numbers(difference_P, longer_P, weight_P) == pytest.approx(
        preference_metrics._numbers(*twice)
    )


def test_thumbs_are_judged_by_how_often_a_good_answer_is_above_another_one():
    area = preference_metrics.of_thumbs([3, 1, 2, 2], [1, 0, 1, 0])["auc"].value
    assert area == pytest.approx((2 + 1.5) / 4)
    thumbs = [example([1.0], [2], label=1), example([0.0], [2], label=0)]
    made = summarise(thumbs, [np.array([2.0]), np.array([-1.0])])
    assert made.loss.value == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2)
    assert made.as_dict()["auc"] == 1 and "calibration" not in made.as_dict()


def test_the_loss_of_a_set_is_the_mean_over_prompts_of_the_mean_over_pairs():
    examples = [example([2, 1, 0], [1, 1, 1]), example([1, 0], [1, 1])]
    made = summarise(examples, [np.array([1.0, 0.0, -1.0]), np.array([0.0, 0.0])])
    nats = [math.log1p(math.exp(-d)) for d in (1, 2, 1)]
    assert made.loss.value == pytest.approx((sum(nats) / 3 + math.log(2)) / 2)
    assert (made.examples, made.pairs) == (2, 4)
