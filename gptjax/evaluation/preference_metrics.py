"""How well scores order answers: accuracy, calibration, and what length has to do with it. In NumPy.

Pairs of one prompt are not independent: every number is a mean over prompts of means over their pairs, or has its standard
error from a bootstrap over prompts.

Axes: E prompts, K answers, P pairs (better, worse), N bins.
"""

from typing import NamedTuple

import numpy as np

from gptjax.evaluation import metrics

BINS = 10


class Pairs(NamedTuple):
    """The pairs of all prompts, one after the other."""

    prompt_P: np.ndarray  # which prompt each is of
    difference_P: np.ndarray  # score of the better answer less that of the worse one
    longer_P: np.ndarray  # target tokens of the better answer less those of the worse one
    margin_P: np.ndarray

    @property
    def weight_P(self) -> np.ndarray:
        """1 over the pairs of its prompt."""
        return 1 / np.bincount(self.prompt_P)[self.prompt_P]


def pairs_of(examples, scores: list[np.ndarray]) -> Pairs:
    """examples: of data.pairs.encoding; scores: of each, float [K]. Ties are no pairs."""
    parts = []
    for number, (example, score_K) in enumerate(zip(examples, scores)):
        better_P, worse_P = np.nonzero(example.score_K[:, None] > example.score_K[None, :])
        length_K = np.array([np.count_nonzero(is_target_T) for is_target_T in example.targets])
        differences = (score_K[better_P] - score_K[worse_P], length_K[better_P] - length_K[worse_P])
        parts.append((np.full(len(better_P), number), *differences, np.full(len(better_P), example.margin)))
    return Pairs(*(np.concatenate(columns) for columns in zip(*parts)))


def log_loss(difference_P) -> np.ndarray:
    """Nats: -log sigmoid of each difference."""
    return np.logaddexp(0, -np.asarray(difference_P, np.float64))


def right(difference_P) -> np.ndarray:
    """1 where the better answer has the higher score, 1/2 where both have the same."""
    return (np.sign(difference_P) + 1) / 2


def mean_by_prompt(value_P, pairs: Pairs) -> np.ndarray:
    """float64 [E]: of each prompt the mean over its pairs."""
    return np.bincount(pairs.prompt_P, weights=value_P * pairs.weight_P)


def of_pairs(pairs: Pairs) -> dict[str, metrics.Estimate]:
    """accuracy; margin, the mean difference; ece, the expected calibration error; length_correlation of difference and
    difference in length; accuracy_longer and accuracy_shorter, where the better answer is the longer and the shorter one;
    chosen_longer, the share of pairs in which it is longer. What is not defined, such as a correlation where all differences
    are the same, is left out."""
    prompts = int(pairs.prompt_P.max()) + 1

    def of_prompts(index_E) -> dict[str, float]:
        weight_P = pairs.weight_P * np.bincount(index_E, minlength=prompts)[pairs.prompt_P]
        numbers = _numbers(pairs.difference_P, pairs.longer_P, weight_P)
        return {name: value for name, value in numbers.items() if name in defined}

    whole = _numbers(pairs.difference_P, pairs.longer_P, pairs.weight_P)
    defined = {name for name, value in whole.items() if np.isfinite(value)}
    of_prompt = (mean_by_prompt(value_P, pairs) for value_P in (right(pairs.difference_P), pairs.difference_P))
    accuracy, margin = map(metrics.mean, of_prompt)
    if len(pairs.prompt_P) == prompts:  # one pair each: a share
        accuracy = metrics.binomial(accuracy.value, prompts)
    return {"accuracy": accuracy, "margin": margin} | metrics.bootstrapped(of_prompts, prompts)


def _numbers(difference_P, longer_P, weight_P) -> dict[str, float]:
    right_P = right(difference_P)
    return {
        "accuracy_longer": _mean(right_P, weight_P * (longer_P > 0)),
        "accuracy_shorter": _mean(right_P, weight_P * (longer_P < 0)),
        "chosen_longer": _mean(longer_P > 0, weight_P),
        "ece": calibration_error(calibration(difference_P, weight_P)),
        "length_correlation": _correlation(difference_P, longer_P, weight_P),
    }


def _mean(value_P, weight_P) -> float:
    """Weighted; NaN where no weight is."""
    return float(np.sum(value_P * weight_P) / np.sum(weight_P)) if np.any(weight_P) else float("nan")


def _correlation(a_P, b_P, weight_P) -> float:
    """Pearson's, weighted; NaN where one of both does not vary."""
    a_P, b_P = a_P - _mean(a_P, weight_P), b_P - _mean(b_P, weight_P)
    size = np.sqrt(np.sum(weight_P * a_P**2) * np.sum(weight_P * b_P**2))
    return float(np.sum(weight_P * a_P * b_P) / size) if size > 0 else float("nan")


def calibration(difference_P, weight_P) -> list[dict[str, float]]:
    """The calibration curve: pairs by how sure the scores are of an order, in bins of equal width from 1/2 to 1; of each that
    is not empty the mean probability of that order (`confidence`), how often it is right (`accuracy`), its share of all pairs.

    Guo et al. 2017, section 2, for an order whose probability is sigmoid(difference)."""
    sure_P = np.exp(-log_loss(np.abs(difference_P)))
    bin_P = np.minimum(((sure_P - 0.5) * 2 * BINS).astype(int), BINS - 1)
    values = (weight_P, sure_P * weight_P, right(difference_P) * weight_P)
    weight_N, sure_N, right_N = (np.bincount(bin_P, weights=value_P, minlength=BINS) for value_P in values)
    return [
        {
            "confidence": sure_N[n] / weight_N[n],
            "accuracy": right_N[n] / weight_N[n],
            "share": weight_N[n] / weight_N.sum(),
        }
        for n in np.flatnonzero(weight_N)
    ]


def calibration_error(bins: list[dict[str, float]]) -> float:
    """The mean distance of accuracy and confidence over the bins of `calibration`, by their shares."""
    return float(sum(each["share"] * abs(each["accuracy"] - each["confidence"]) for each in bins))


def of_thumbs(score_E, label_E) -> dict[str, metrics.Estimate]:
    """auc: how often a good answer has a higher score than another one, equal scores half; NaN where there is but one kind."""
    score_E, label_E = np.asarray(score_E, np.float64), np.asarray(label_E)

    def of_answers(index_E) -> dict[str, float]:
        return {"auc": _area(score_E[index_E], label_E[index_E])}

    return metrics.bootstrapped(of_answers, len(label_E))


def _area(score_E, label_E) -> float:
    """Mann and Whitney 1947: from the ranks of the good ones."""
    good = int(label_E.sum())
    other = len(label_E) - good
    if not good or not other:
        return float("nan")
    return float((metrics.ranks(score_E)[label_E == 1].sum() - good * (good + 1) / 2) / (good * other))
