"""What cleaning, deduplication and decontamination take for a word, in scripts with and without spaces.

A word is a run of characters between white space. Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan are written
without spaces: there each character is a unit of half a word (Chinese words are about two characters long), so that
"at least 50 words" or "5 words in a row" mean about as much text as in English. A mixed text has units of both kinds.

`windows` and `WindowHasher` make all runs of n words of a text at once: L units, weights 1 or 0.5.
"""

import re

import numpy as np

from gptjax.data.rows.hashing import mix

# Kana, CJK ideographs, Thai to Tibetan, Burmese, Khmer. Hangul has spaces, so it is not here.
_SPACELESS = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u0f40-\u0fbc\u1000-\u103f\u1780-\u17d3\u3005\u3006\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# A character with the punctuation and the marks (Thai vowels) at it, as "word," is one word.
_CHARACTER = re.compile(f"[^\\w\\s]*[{_SPACELESS}][^\\w\\s]*")
_UNIT = re.compile(f"{_CHARACTER.pattern}|[^\\s{_SPACELESS}]+")
_LETTER = re.compile(r"[^\W\d_]")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15 | 1)  # odd: it has an inverse modulo 2 ** 64
_INVERSE = np.uint64(pow(int(_MULTIPLIER), -1, 1 << 64))


def is_spaceless(text: str) -> bool:
    """Whether most letters of the text belong to scripts that are written without spaces."""
    if text.isascii():
        return False
    return 2 * len(_CHARACTER.findall(text)) > len(_LETTER.findall(text))


def count_words(text: str) -> float:
    """Runs between white space; each character of a script without spaces counts half."""
    if text.isascii():
        return len(text.split())
    characters = len(_CHARACTER.findall(text))
    return len(_CHARACTER.sub(" ", text).split()) + characters / 2


def units(text: str) -> list[str]:
    """The words of the text, and in scripts without spaces its characters, in order."""
    return text.split() if text.isascii() else _UNIT.findall(text)


def unit_spans(text: str) -> list[tuple[int, int]]:
    """Where each of units(text) begins and ends."""
    return [match.span() for match in _UNIT.finditer(text)]


def unit_weights(unit: list[str]) -> np.ndarray | None:
    """float64 [L]: 0.5 for a character of a script without spaces, 1 for a word; None: all are 1."""
    half = {word for word in set(unit) if not word.isascii() and _CHARACTER.search(word)}
    return np.array([0.5 if word in half else 1.0 for word in unit]) if half else None


def windows(weight: np.ndarray | None, n_units: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """First unit and the unit behind the last, of every shortest run of units that weighs n words."""
    if weight is None:
        first = np.arange(max(0, n_units - n + 1))
        return first, first + n
    total = np.concatenate([[0.0], np.cumsum(weight)])
    stop = np.searchsorted(total, total[:-1] + n)
    first = np.flatnonzero(stop <= n_units)
    return first, stop[first]


class WindowHasher:
    """hasher(first, stop): uint64, equal for windows that hold the same numbers; for others with probability 2 ** -64.

    A polynomial modulo 2 ** 64 of mixed numbers, taken from its prefix sums, so that the length costs nothing.
    """

    def __init__(self, number_L: np.ndarray):
        power = _powers(_MULTIPLIER, len(number_L) + 1)
        self._inverse = _powers(_INVERSE, len(number_L) + 1)
        value_L = mix(number_L.astype(np.uint64))
        self._prefix = np.concatenate([np.zeros(1, np.uint64), np.cumsum(value_L * power[:-1], dtype=np.uint64)])

    def __call__(self, first: np.ndarray, stop: np.ndarray) -> np.ndarray:
        return mix((self._prefix[stop] - self._prefix[first]) * self._inverse[first])


def _powers(base: np.uint64, n: int) -> np.ndarray:
    return np.cumprod(np.concatenate([np.ones(1, np.uint64), np.full(n - 1, base)]), dtype=np.uint64)
