"""How good predictions are: accuracy, precision, recall, F1, Matthews' correlation; Pearson's and Spearman's; exact match and
F1 of answers. In NumPy, from labels and predictions alone.

Standard errors: of the accuracy that of a binomial share, sqrt(p (1 - p) / n); of all else the standard deviation over
RESAMPLES bootstrap samples of the examples (Efron and Tibshirani 1993, chapter 6), always the same ones for so many examples.

Axes: E examples, K classes.
"""

import collections
import math
import re
import string
import typing

import numpy as np

RESAMPLES = 1000


class Estimate(typing.NamedTuple):
    value: float
    error: float  # standard error


def confusion(true_E, predicted_E, n_classes: int) -> np.ndarray:
    """int64 [K, K]: how often each class (row) was taken for each (column)."""
    cell_E = np.asarray(true_E, np.int64) * n_classes + np.asarray(predicted_E, np.int64)
    return np.bincount(cell_E, minlength=n_classes**2).reshape(n_classes, n_classes)


def of_confusion(count_KK: np.ndarray) -> dict[str, float]:
    """accuracy; precision, recall and f1, of class 1 of two and else the mean over the classes that occur, in truth or
    prediction ("macro"); f1_macro; matthews (Gorodkin 2004; 0 where it is 0/0, as of one class alone)."""
    count_KK = np.asarray(count_KK, np.float64)
    right_K, true_K, predicted_K = np.diag(count_KK), count_KK.sum(1), count_KK.sum(0)
    precision_K, recall_K = _share(right_K, predicted_K), _share(right_K, true_K)
    f1_K = _share(2 * right_K, true_K + predicted_K)
    occurs_K = true_K + predicted_K > 0
    counted = slice(1, 2) if len(count_KK) == 2 else occurs_K
    numbers = {"accuracy": right_K.sum() / count_KK.sum()}
    numbers |= {
        name: each_K[counted].mean()
        for name, each_K in (("precision", precision_K), ("recall", recall_K), ("f1", f1_K))
    }
    return {
        name: float(v)
        for name, v in (numbers | {"f1_macro": f1_K[occurs_K].mean(), "matthews": _matthews(count_KK)}).items()
    }


def _share(part_K, whole_K):
    """part / whole; 0 where both are 0."""
    return part_K / np.maximum(whole_K, 1)


def _matthews(count_KK) -> float:
    total, true_K, predicted_K = count_KK.sum(), count_KK.sum(1), count_KK.sum(0)
    together = total * np.trace(count_KK) - true_K @ predicted_K
    apart = (total**2 - true_K @ true_K) * (total**2 - predicted_K @ predicted_K)
    return float(together / math.sqrt(apart)) if apart else 0.0


def pearson(a_E, b_E) -> float:
    """Correlation; NaN where one of both does not vary."""
    a_E, b_E = (np.asarray(x, np.float64) - np.mean(x) for x in (a_E, b_E))
    size = math.sqrt((a_E @ a_E) * (b_E @ b_E))
    return float(a_E @ b_E / size) if size else math.nan


def spearman(a_E, b_E) -> float:
    """Pearson's correlation of the ranks, those of equal values their mean."""
    return pearson(ranks(a_E), ranks(b_E))


def ranks(x_E) -> np.ndarray:
    """float64 [E], from 1."""
    _, inverse_E, count = np.unique(x_E, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[inverse_E]


# ---- answers (Rajpurkar et al. 2016, section 6.1, and its released evaluation)


def normalised(answer: str) -> list[str]:
    """Words in lower case, without punctuation and articles."""
    bare = "".join(c for c in answer.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def exact_match(answer: str, answers: typing.Iterable[str]) -> float:
    """1 or 0: whether an answer is one of those that are right."""
    return float(any(normalised(answer) == normalised(one) for one in answers))


def answer_f1(answer: str, answers: typing.Iterable[str]) -> float:
    """The largest overlap of words with an answer that is right."""
    return max(_overlap(normalised(answer), normalised(one)) for one in answers)


def _overlap(words: list[str], right: list[str]) -> float:
    if not words or not right:
        return float(words == right)
    shared = sum((collections.Counter(words) & collections.Counter(right)).values())
    return 2 * shared / (len(words) + len(right))


# ---- standard errors


def binomial(share: float, n: int) -> Estimate:
    return Estimate(share, math.sqrt(share * (1 - share) / n))


def mean(value_E) -> Estimate:
    """With the standard error of a mean of independent examples; NaN of a single one."""
    value_E = np.asarray(value_E, np.float64)
    error = float(value_E.std(ddof=1)) / math.sqrt(len(value_E)) if len(value_E) > 1 else math.nan
    return Estimate(float(value_E.mean()), error)


def bootstrapped(statistic: typing.Callable, n: int) -> dict[str, Estimate]:
    """{name: Estimate} of statistic(indices of examples) -> {name: number}, over n examples."""
    rng = np.random.default_rng(0)
    whole = statistic(np.arange(n))
    samples = [statistic(rng.integers(0, n, n)) for _ in range(RESAMPLES)]
    spread = {name: float(np.nanstd([sample[name] for sample in samples], ddof=1)) for name in whole}
    return {name: Estimate(value, spread[name]) for name, value in whole.items()}


def of_classes(true_E, predicted_E, n_classes: int) -> dict[str, Estimate]:
    """Those of `of_confusion`."""
    true_E, predicted_E = np.asarray(true_E), np.asarray(predicted_E)
    estimates = bootstrapped(
        lambda index: of_confusion(confusion(true_E[index], predicted_E[index], n_classes)), len(true_E)
    )
    return estimates | {"accuracy": binomial(estimates["accuracy"].value, len(true_E))}


def of_sequences(count_EKK: np.ndarray) -> dict[str, Estimate]:
    """Those of `of_confusion` over the tokens of sequences, each of which has counts [K, K]; all errors are bootstrapped by
    sequence, since the tokens of one are not independent."""
    return bootstrapped(lambda index: of_confusion(count_EKK[index].sum(0)), len(count_EKK))


def of_numbers(true_E, predicted_E) -> dict[str, Estimate]:
    """pearson and spearman."""
    true_E, predicted_E = np.asarray(true_E, np.float64), np.asarray(predicted_E, np.float64)
    return bootstrapped(
        lambda index: {
            "pearson": pearson(true_E[index], predicted_E[index]),
            "spearman": spearman(true_E[index], predicted_E[index]),
        },
        len(true_E),
    )


def of_answers(answers: list[str], right: list[tuple[str, ...]]) -> dict[str, Estimate]:
    """exact_match and f1, with the errors of a share and of a mean."""
    matches = [exact_match(answer, each) for answer, each in zip(answers, right)]
    overlaps = [answer_f1(answer, each) for answer, each in zip(answers, right)]
    return {"exact_match": binomial(float(np.mean(matches)), len(matches)), "f1": mean(overlaps)}
