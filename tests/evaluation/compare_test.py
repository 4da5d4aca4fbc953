import dataclasses
import math

import judging
import numpy as np
import pytest

from gptjax.errors import UserError
from gptjax.evaluation import compare, differences, held_out
from gptjax.evaluation.compare import Predicted


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    file = tmp_path_factory.mktemp("book") / "book.txt"
    file.write_text(judging.random_text(0, 400))
    return str(file)


def test_difference_and_error_of_hand_worked_pairs():
    """Of sizes 1 and 3: A has 2 and 6 nats, B 3 and 5. The difference is 0, its residuals 1 and -1."""
    found = differences.difference([2.0, 6.0], [3.0, 5.0], [1.0, 3.0], "nats/token")
    assert (found.a, found.b, found.difference, found.pairs) == (2.0, 2.0, 0.0, 2)
    assert found.standard_error == pytest.approx(math.sqrt((1 + 1) * 2 / 1) / 4)
    assert found.p_value == 1.0
    assert found.unpaired_error == pytest.approx(math.sqrt((1 + 1) * 2) / 4)  # A's is 0: its pairs have one mean


def test_p_is_that_of_students_t():
    """With one degree of freedom t is Cauchy's, and P(|t| > 1) is 1/2; with many it is normal."""
    assert differences.p_value(1.0, 1.0, 2) == pytest.approx(0.5)
    assert differences.p_value(-1.959964, 1.0, 10**7) == pytest.approx(0.05, rel=1e-4)
    assert math.isnan(differences.p_value(1.0, math.nan, 1))
    assert (differences.p_value(0.0, 0.0, 9), differences.p_value(0.1, 0.0, 9)) == (1.0, 0.0)


def null_p_values(repetitions: int, shift: float = 0.0) -> np.ndarray:
    """Of two runs that differ by chance only: pairs of many sizes, hard or easy for both, tokens of a pair correlated."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(repetitions):
        size_P = rng.integers(50, 100, size=40)
        hard_P = 3 + rng.standard_normal(40)
        a_P, b_P = (size_P * (hard_P + 0.1 * rng.standard_normal(40)) for _ in range(2))
        found.append(differences.difference(a_P, b_P + shift * size_P, size_P, "nats/token"))
    return found


def test_p_values_of_equal_runs_are_uniform():
    p_K = np.sort([one.p_value for one in null_p_values(2000)])
    distance = np.abs(p_K - (np.arange(2000) + 0.5) / 2000).max()
    assert distance < 1.63 / math.sqrt(2000)  # Kolmogorov and Smirnov's, which chance exceeds once in 100
    assert 0.03 < (p_K < 0.05).mean() < 0.07


def test_a_known_shift_is_found_that_an_unpaired_comparison_would_miss():
    for one in null_p_values(20, shift=-0.15):
        assert one.difference == pytest.approx(-0.15, abs=5 * one.standard_error) and one.p_value < 0.01
        assert one.standard_error < 0.04 and one.shrinkage > 5
        assert abs(one.difference) < 1.96 * one.unpaired_error


def test_a_run_against_itself_is_no_different(book):
    one = judging.made_run()
    found = compare.compare(one, one, book)
    for difference in (found.loss["book.txt"], found.bits_per_byte["book.txt"]):
        assert (difference.difference, difference.standard_error, difference.p_value) == (0.0, 0.0, 1.0)


def test_each_side_has_the_loss_and_error_of_its_evaluation(book):
    one = judging.made_run()
    other = judging.other(one, 1, 0.3)
    found = compare.compare(one, other, book)
    alone = [next(iter(run.evaluate(book).values())) for run in (one, other)]
    [loss], [bits] = found.loss.values(), found.bits_per_byte.values()
    for side, result in zip("ab", alone):
        assert getattr(loss, side) == pytest.approx(result.loss, rel=1e-6)
        assert getattr(bits, side) == pytest.approx(result.bits_per_byte, rel=1e-6)
    assert loss.unpaired_error == pytest.approx(math.hypot(*(result.standard_error for result in alone)), rel=1e-5)
    assert loss.difference == pytest.approx(alone[1].loss - alone[0].loss, rel=1e-4)
    assert loss.pairs == evaluate_rows(one, book) and 0 < loss.standard_error < loss.unpaired_error


def evaluate_rows(one, book) -> int:
    from gptjax.evaluation import run_loss

    [rows] = run_loss.reading_of(one, book).rows.values()
    return rows.num_rows


def test_runs_of_two_context_lengths_are_paired_by_the_longer_ones_windows(book):
    short, long = judging.made_run(), judging.made_run(context_length=32)
    found = compare.compare(short, long, book, stride=4)
    [loss] = found.loss.values()
    assert found.convention["pairs"] == "windows of 32 tokens"
    assert found.convention["a"] == {"window": 16, "stride": 4} and found.convention["b"]["window"] == 32
    for side, run in zip("ab", (short, long)):
        [result] = run.evaluate(book, stride=4).values()
        assert getattr(loss, side) == pytest.approx(result.loss, rel=1e-6)


def test_runs_of_two_tokenizers_are_compared_in_bits_per_byte_over_the_same_bytes(book):
    chars, bytes_ = judging.made_run(), judging.made_run("bytes")
    found = compare.compare(chars, bytes_, book)
    assert found.loss is None and found.convention["pairs"].startswith("stretches of the text of about 16 bytes")
    [bits] = found.bits_per_byte.values()
    [result] = chars.evaluate(book).values()
    assert bits.a == pytest.approx(result.bits_per_byte, rel=1e-6)
    [result] = bytes_.evaluate(book).values()
    assert bits.b == pytest.approx(result.bits_per_byte, rel=0.02)  # less the end-of-text there
    assert bits.b != pytest.approx(result.bits_per_byte, rel=1e-6)


def test_pairs_of_two_tokenizers_are_cut_where_both_have_a_boundary():
    """A: ab|c|de|f, B: a|b|cd|ef: common are 0, 2 and 6. Neither predicts its first token; the atom 0-2 is left out."""
    a = Predicted(np.array([0.0, 1, 2, 3]), np.array([False, True, True, True]), np.array([2, 1, 2, 1]))
    b = Predicted(np.array([0.0, 10, 20, 30, 99]), np.array([False, True, True, True, True]), np.array([1, 1, 2, 2, 0]))
    found = compare.pair(a, b, same_tokenizer=False, span=2)
    assert found.a_P.tolist() == [6] and found.b_P.tolist() == [50] and found.bytes_P.tolist() == [4]
    one_only = compare.pair(a._replace(predicted_N=a.bytes_N > 0), b, same_tokenizer=False, span=2)
    assert [value_P.tolist() for value_P in (one_only.a_P, one_only.b_P)] == [[6], [50]]
    whole = compare.pair(a._replace(predicted_N=a.bytes_N > 0), b._replace(predicted_N=b.bytes_N >= 0), False, span=2)
    assert whole.a_P.tolist() == [0, 6] and whole.b_P.tolist() == [10, 50] and whole.bytes_P.tolist() == [2, 4]


def test_only_what_both_runs_predict_is_compared():
    """A run that keeps documents apart does not predict their first tokens."""
    a = Predicted(np.arange(6.0), np.array([False, True, True, True, True, True]), np.ones(6))
    b = Predicted(np.arange(6.0) * 2, np.array([False, True, True, False, True, True]), np.ones(6))
    found = compare.pair(a, b, same_tokenizer=True, span=3)
    assert found.a_P.tolist() == [1 + 2, 4 + 5] and found.b_P.tolist() == [6, 18] and found.tokens_P.tolist() == [2, 2]
    with pytest.raises(UserError, match="the two runs predict no token in common"):
        compare.pair(a, b._replace(predicted_N=np.zeros(6, bool)), True, 3)


def test_texts_of_different_lengths_are_no_pair():
    a = Predicted(np.zeros(3), np.ones(3, bool), np.array([1, 1, 1]))
    with pytest.raises(UserError, match="A read 3 bytes of text and B read 4"):
        compare.pair(a, a._replace(bytes_N=np.array([1, 1, 2])), False, 2)


def test_a_difference_between_parameters_is_found_in_the_right_direction(book, tmp_path):
    """Weights towards noise make the model worse at a text it is good at: here, at being sure of a text it has written."""
    sure = judging.made_run()
    flat = dataclasses.replace(sure, params=judging.parameters(sure.program, 0, spread=0.0))
    [loss] = compare.compare(flat, sure, book).loss.values()
    assert loss.a == pytest.approx(math.log(len(judging.LETTERS)), rel=1e-5)  # all tokens are equally likely
    assert np.sign(loss.difference) == np.sign(loss.b - loss.a) and loss.p_value < 0.01


def test_the_ratio_of_means_is_the_one_of_evaluations():
    rng = np.random.default_rng(0)
    loss_R, weight_R = rng.uniform(1, 9, 20), rng.integers(1, 5, 20)
    result = held_out.summarise(held_out.Sums(loss_R, weight_R, weight_R))
    found = differences.difference(np.zeros(20), loss_R, weight_R, "nats/token")
    assert (found.difference, found.standard_error) == (result.loss, result.standard_error)
