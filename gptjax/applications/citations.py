"""Whether the sources that an answer cites, as [1] or [2, 3], were shown to the model."""

import re
from typing import NamedTuple

_CITED = re.compile(r"\[(\d{1,3}(?:\s*[,;]\s*\d{1,3})*)\]")


class Cited(NamedTuple):
    sources: tuple[int, ...]  # numbers that are there, each once, in order
    unknown: tuple[int, ...]  # numbers that no source has

    @property
    def is_good(self) -> bool:
        """Whether it cites something, and nothing that is not there."""
        return bool(self.sources) and not self.unknown


def cited(text: str, count: int) -> Cited:
    """The citations of an answer that was shown sources 1 to count."""
    numbers = [int(n) for match in _CITED.finditer(text) for n in re.findall(r"\d+", match[1])]
    known = dict.fromkeys(n for n in numbers if 1 <= n <= count)
    return Cited(tuple(known), tuple(dict.fromkeys(n for n in numbers if n not in known)))
