"""The document filters of MassiveText: gopher_quality and gopher_repetition (Rae et al., 2021, app. A1.1, table A1).

A fraction equal to its threshold is kept. Where the paper leaves a choice, the docstrings say what is done here.
"""

import dataclasses
import re

import numpy as np

from gptjax.data.preparing import words
from gptjax.data.preparing.cleaning.outcome import Outcome, check_order, check_range, kept, removed

_HUGE = 1e12
_BULLET = re.compile(r"\s*(?:[•‣⁃◦▪●○■·]|[-*–]\s)")
_ELLIPSIS = re.compile(r"\.\.\.|…")
_EDGES = re.compile(r"^[\W_]+|[\W_]+$")


@dataclasses.dataclass(frozen=True)
class GopherQuality:
    """Rae et al. 2021 app. A1.1, "quality filtering": 50 to 100,000 words; mean word length 3 to 10 characters; at most
    0.1 hash signs a word, and at most 0.1 ellipses; at most 90% of lines start with a bullet and 30% end with an
    ellipsis; 80% of words have a letter; at least two different words of stop_words.

    Words are what white space parts, punctuation included. The stop words are English: for other languages give
    their own (stop_words=der+und+die) or min_stop_words=off. In texts without spaces (words.is_spaceless) words are
    counted as in words.count_words, a "word" with a letter is a character that is a letter, and mean word length and
    stop words are not judged.
    """

    min_words: int | None = 50
    max_words: int | None = 100_000
    min_word_length: float | None = 3
    max_word_length: float | None = 10
    max_symbols: float | None = 0.1
    max_bullet_lines: float | None = 0.9
    max_ellipsis_lines: float | None = 0.3
    min_alphabetic: float | None = 0.8
    min_stop_words: int | None = 2
    stop_words: str = "the+be+to+of+and+that+have+with"

    def ready(self) -> None:
        shares = ("max_bullet_lines", "max_ellipsis_lines", "min_alphabetic")
        numbers = ("min_words", "max_words", "min_word_length", "max_word_length", "max_symbols")
        check_range("gopher_quality", **{name: (getattr(self, name), 0, 1) for name in shares})
        check_range("gopher_quality", **{name: (getattr(self, name), 0, _HUGE) for name in numbers})
        most = len(self.stop_words.split("+"))
        check_range("gopher_quality", min_stop_words=(self.min_stop_words, 0, most))
        lengths = (self.min_word_length, self.max_word_length)
        check_order("gopher_quality", words=(self.min_words, self.max_words), word_length=lengths)

    def __call__(self, text: str) -> Outcome:
        reason = self._words(text) or self._symbols(text) or self._lines(text)
        return removed(reason) if reason else kept(text)

    def _words(self, text: str) -> str | None:
        count, spaceless = words.count_words(text), words.is_spaceless(text)
        if _below(count, self.min_words):
            return "too_few_words"
        if _above(count, self.max_words):
            return "too_many_words"
        unit = words.units(text) if spaceless else text.split()
        if not spaceless:
            length = sum(map(len, unit)) / max(1, len(unit))
            if _below(length, self.min_word_length) or _above(length, self.max_word_length):
                return "word_length"
            if self.min_stop_words and self._stop_words(unit) < self.min_stop_words:
                return "stop_words"
        alphabetic = sum(any(map(str.isalpha, word)) for word in unit) / max(1, len(unit))
        return "not_alphabetic" if _below(alphabetic, self.min_alphabetic) else None

    def _stop_words(self, unit: list[str]) -> int:
        return len({_EDGES.sub("", word).lower() for word in set(unit)} & set(self.stop_words.split("+")))

    def _symbols(self, text: str) -> str | None:
        count = max(1, words.count_words(text))
        if _above(text.count("#") / count, self.max_symbols):
            return "hash_signs"
        return "ellipses" if _above(len(_ELLIPSIS.findall(text)) / count, self.max_symbols) else None

    def _lines(self, text: str) -> str | None:
        lines = [line for line in text.splitlines() if line.strip()]
        if _above(sum(_BULLET.match(line) is not None for line in lines) / max(1, len(lines)), self.max_bullet_lines):
            return "bullet_lines"
        ends = sum(line.rstrip().endswith(("...", "…")) for line in lines)
        return "ellipsis_lines" if _above(ends / max(1, len(lines)), self.max_ellipsis_lines) else None


def _below(value: float, limit: float | None) -> bool:
    return limit is not None and value < limit


def _above(value: float, limit: float | None) -> bool:
    return limit is not None and value > limit


@dataclasses.dataclass(frozen=True)
class GopherRepetition:
    """Rae et al. 2021, table A1: the largest fractions of lines and paragraphs, and of their characters, that repeat
    earlier ones; of characters in the most frequent 2-, 3- and 4-gram; of characters in repeated 5- to 10-grams.

    Lines and paragraphs (parted by empty lines) are compared without white space around them; characters are those
    of words, each counted once however many n-grams hold it. A repeat is an occurrence behind the first, and an
    n-gram that occurs once is not frequent. In scripts without spaces an n-gram has 2n characters.
    """

    max_lines: float | None = 0.30
    max_line_characters: float | None = 0.20
    max_paragraphs: float | None = 0.30
    max_paragraph_characters: float | None = 0.20
    max_top_2: float | None = 0.20
    max_top_3: float | None = 0.18
    max_top_4: float | None = 0.16
    max_repeated_5: float | None = 0.15
    max_repeated_6: float | None = 0.14
    max_repeated_7: float | None = 0.13
    max_repeated_8: float | None = 0.12
    max_repeated_9: float | None = 0.11
    max_repeated_10: float | None = 0.10

    def ready(self) -> None:
        check_range("gopher_repetition", **{name: (value, 0, 1) for name, value in dataclasses.asdict(self).items()})

    def __call__(self, text: str) -> Outcome:
        reason = self._parts(text) or self._n_grams(text)
        return removed(reason) if reason else kept(text)

    def _parts(self, text: str) -> str | None:
        lines = [line.strip() for line in text.splitlines()]
        share, characters = repeated_parts([line for line in lines if line])
        if _above(share, self.max_lines):
            return "repeated_lines"
        if _above(characters, self.max_line_characters):
            return "repeated_line_characters"
        paragraphs = [part.strip() for part in re.split(r"\n\s*\n", "\n".join(lines))]
        share, characters = repeated_parts([part for part in paragraphs if part])
        if _above(share, self.max_paragraphs):
            return "repeated_paragraphs"
        return "repeated_paragraph_characters" if _above(characters, self.max_paragraph_characters) else None

    def _n_grams(self, text: str) -> str | None:
        grams = Grams(text)
        for n in (2, 3, 4):
            limit = getattr(self, f"max_top_{n}")
            if limit is not None and grams.top(n) > limit:
                return f"top_{n}_gram"
        for n in range(5, 11):
            limit = getattr(self, f"max_repeated_{n}")
            if limit is not None and grams.repeated(n) > limit:
                return f"repeated_{n}_grams"
        return None


def repeated_parts(parts: list[str]) -> tuple[float, float]:
    """The fraction of parts that equal an earlier one, and the fraction of all characters that these hold."""
    if not parts:
        return 0.0, 0.0
    distinct = set(parts)
    total = sum(map(len, parts))
    return (len(parts) - len(distinct)) / len(parts), (total - sum(map(len, distinct))) / total


class Grams:
    """The n-grams of a text, and which fraction of the characters of its words they cover."""

    def __init__(self, text: str):
        unit = words.units(text)
        number: dict[str, int] = {}
        self._hasher = words.WindowHasher(np.array([number.setdefault(word, len(number)) for word in unit], np.int64))
        self._weight_L = words.unit_weights(unit)
        self._size_L = np.array([len(word) for word in unit], np.int64)

    def top(self, n: int) -> float:
        """The fraction in the occurrences of the most frequent n-gram (the longest of several); 0: none occurs twice."""
        first, stop, hashes = self._windows(n)
        if not len(first):
            return 0.0
        _, where, group, count = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
        if count.max() < 2:
            return 0.0
        total = np.concatenate([[0], np.cumsum(self._size_L)])
        size = total[stop[where]] - total[first[where]]
        best = np.argmax(np.where(count == count.max(), size, -1))
        return self._covered(first[group == best], stop[group == best])

    def repeated(self, n: int) -> float:
        """The fraction in n-grams that occurred before."""
        first, stop, hashes = self._windows(n)
        again = np.ones(len(first), bool)
        again[np.unique(hashes, return_index=True)[1]] = False
        return self._covered(first[again], stop[again])

    def _windows(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first, stop = words.windows(self._weight_L, len(self._size_L), n)
        return first, stop, self._hasher(first, stop)

    def _covered(self, first: np.ndarray, stop: np.ndarray) -> float:
        if not len(first):
            return 0.0
        change = np.bincount(first, minlength=len(self._size_L) + 1) - np.bincount(
            stop, minlength=len(self._size_L) + 1
        )
        return float(self._size_L[np.cumsum(change[:-1]) > 0].sum() / self._size_L.sum())
