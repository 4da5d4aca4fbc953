"""Metrics of predictions: numbers worked by hand, scikit-learn's where it is installed, and standard errors."""

import math

import numpy as np
import pytest

from gptjax.evaluation import metrics

TRUE = [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
SAID = [0, 0, 1, 1, 1, 1, 1, 0, 0, 1]  # 2 right of 3; 5 right of 7


def rng(seed: int = 0):
    return np.random.default_rng(seed)


def test_numbers_of_two_classes_are_those_of_the_second():
    count = metrics.confusion(TRUE, SAID, 2)
    assert count.tolist() == [[2, 1], [2, 5]]
    found = metrics.of_confusion(count)
    assert found["accuracy"] == pytest.approx(7 / 10)
    assert (found["precision"], found["recall"]) == (pytest.approx(5 / 6), pytest.approx(5 / 7))
    assert found["f1"] == pytest.approx(10 / 13)
    assert found["f1_macro"] == pytest.approx((4 / 7 + 10 / 13) / 2)
    assert found["matthews"] == pytest.approx((5 * 2 - 1 * 2) / math.sqrt(6 * 7 * 3 * 4))


def test_means_over_classes_leave_out_those_that_never_occur():
    found = metrics.of_confusion(metrics.confusion([0, 0, 1, 1], [0, 1, 1, 1], 3))
    assert found["recall"] == pytest.approx((1 / 2 + 1) / 2) and found["precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["f1"] == found["f1_macro"] == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_matthews_of_one_class_alone_is_none():
    assert metrics.of_confusion(metrics.confusion([0, 1], [1, 1], 2))["matthews"] == 0


def test_correlations_by_hand():
    assert metrics.pearson([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert metrics.pearson([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert metrics.ranks([10, 20, 20, 30]).tolist() == [1, 2.5, 2.5, 4]
    assert metrics.spearman([1, 2, 3, 4], [1, 4, 9, 16]) == pytest.approx(1)
    assert math.isnan(metrics.pearson([1, 1], [1, 2]))


def test_answers_are_compared_without_case_articles_and_punctuation():
    assert metrics.exact_match("The cat!", ["cat", "dog"]) == 1 and metrics.exact_match("a cat", ["black cat"]) == 0
    assert metrics.answer_f1("the black cat", ["a cat", "dog"]) == pytest.approx(2 * 1 / (2 + 1))
    assert metrics.answer_f1("", ["cat"]) == 0 and metrics.answer_f1("the", ["a"]) == 1


def test_scikit_learn_has_the_same_numbers():
    sklearn = pytest.importorskip("sklearn.metrics")
    true, said = rng().integers(0, 4, 200), rng(1).integers(0, 4, 200)
    said = np.where(rng(2).random(200) < 0.5, true, said)
    found = metrics.of_confusion(metrics.confusion(true, said, 4))
    precision, recall, f1, _ = sklearn.precision_recall_fscore_support(true, said, average="macro")
    expected = {
        "accuracy": sklearn.accuracy_score(true, said),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "f1_macro": f1,
        "matthews": sklearn.matthews_corrcoef(true, said),
    }
    assert found == {name: pytest.approx(value) for name, value in expected.items()}


# ---- standard errors


def test_the_error_of_an_accuracy_is_that_of_a_share():
    estimate = metrics.of_classes(TRUE, SAID, 2)["accuracy"]
    assert estimate.error == pytest.approx(math.sqrt(0.7 * 0.3 / 10))


def test_a_bootstrapped_error_of_a_mean_is_that_of_the_formula():
    value = rng().standard_normal(400)
    found = metrics.bootstrapped(lambda index: {"mean": float(value[index].mean())}, 400)["mean"]
    assert found.value == value.mean()
    assert found.error == pytest.approx(metrics.mean(value).error, rel=0.1)  # of 1000 samples: within 2.2%


def test_a_bootstrapped_error_is_the_spread_of_sets_drawn_anew():
    def f1(seed):
        true = rng(seed).integers(0, 2, 300)
        said = np.where(rng(seed + 1000).random(300) < 0.8, true, 1 - true)
        return (
            metrics.of_classes(true, said, 2)["f1"]
            if seed < 2
            else metrics.of_confusion(metrics.confusion(true, said, 2))["f1"]
        )

    spread = np.std([f1(seed) for seed in range(2, 600)])
    assert f1(0).error == pytest.approx(spread, rel=0.25)


def test_errors_of_tags_are_of_sequences_and_not_of_their_tokens():
    """Sequences whose tokens are all right or all wrong: as many independent outcomes as there are sequences."""
    right = rng().random(100) < 0.5
    count = np.stack([np.diag([20, 20]) if one else 20 * (1 - np.eye(2, dtype=int)) for one in right])
    found = metrics.of_sequences(count)["accuracy"]
    assert found.value == right.mean() and found.error == pytest.approx(math.sqrt(0.25 / 100), rel=0.1)
