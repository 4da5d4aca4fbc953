"""Numbers of an answer, each with the bins that it is counted in."""

import dataclasses
import re

import numpy as np

MOST_PERIOD = 64  # tokens of what repeats
MOST_TOKENS = 4096  # of an answer that are looked at for repetition: its end, where loops are
BEGINNING = 300  # characters in which a refusal is looked for

REFUSALS = re.compile(
    r"\bI(?:'m| am) (?:sorry|afraid|unable|not able|not allowed)\b"
    r"|\bI (?:can(?:'t|not| not)|won't|will not|could not|couldn't|am unable to|must decline|have to decline)\b"
    r"|\bas an? (?:AI|artificial intelligence|language model)\b|\bI do(?:n't| not) feel comfortable\b",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Measure:
    """A value v is in the first bin whose edge is at least v, as Prometheus counts; the last bin has no edge."""

    words: str
    edges: tuple[float, ...]
    per_cent: bool = False  # of answers, where the value is 0 or 1

    @property
    def bins(self) -> int:
        return len(self.edges) + 1

    def bin(self, value: float) -> int:
        return int(np.searchsorted(self.edges, value))


MEASURES = {
    "tokens": Measure("tokens of an answer", tuple(float(2**i) for i in range(14))),
    "cut": Measure("share of answers that ended at the most tokens", (0.0,), per_cent=True),
    "refused": Measure("share of answers that refuse, by patterns of English", (0.0,), per_cent=True),
    "distinct_2": Measure("different pairs of neighbouring tokens, of all (distinct-2)", (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.995)),
    "repeated": Measure("share of the tokens in the longest repetition", (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75)),
    "surprise": Measure("nats a token under the model", (0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 6.0)),
}  # fmt: skip


def measured(answered) -> dict[str, float]:
    """measure -> its value for a quality.Answered; a measure that is not defined for it is left out."""
    token_L = np.asarray(answered.tokens, np.int64)
    values = {
        "tokens": float(len(token_L)),
        "cut": float(answered.reason == "length"),
        "refused": float(is_refusal(answered.text)),
    }
    if len(token_L) > 1:
        values |= {"distinct_2": distinct(token_L, 2), "repeated": repeated(token_L)}
    if answered.logprobs:
        values["surprise"] = -float(np.mean(answered.logprobs))
    return values


def is_refusal(text: str) -> bool:
    """Whether a text begins as refusals do. It knows no language but English, and takes quotations for the real thing."""
    return bool(REFUSALS.search(text[:BEGINNING].replace("\u2019", "'")))


def distinct(token_L: np.ndarray, n: int) -> float:
    """Different n-grams, of all: distinct-n of Li et al. 2016 ("A diversity-promoting objective function", section 5.2)."""
    gram_NL = np.lib.stride_tricks.sliding_window_view(token_L, n)
    return len(np.unique(gram_NL, axis=0)) / len(gram_NL)


def repeated(token_L: np.ndarray) -> float:
    """The share of the tokens that the longest repetition has: a piece of at most MOST_PERIOD tokens, said again and again
    without a break. 0 where nothing follows itself."""
    token_L = token_L[-MOST_TOKENS:]
    longest = 0
    for period in range(1, min(MOST_PERIOD, len(token_L) // 2) + 1):
        run = _longest_run(token_L[period:] == token_L[:-period])
        if run >= period:  # the piece is there twice, whole
            longest = max(longest, run + period)
    return longest / len(token_L)


def _longest_run(same_L: np.ndarray) -> int:
    breaks = np.flatnonzero(~np.concatenate([[False], same_L, [False]]))
    return int(np.diff(breaks).max()) - 1
