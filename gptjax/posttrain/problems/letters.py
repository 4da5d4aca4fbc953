"""Letters copied, reversed, sorted and counted."""

import abc
import dataclasses
import random

from gptjax.errors import UserError
from gptjax.posttrain.problems.problem import Drawn, Generator


@dataclasses.dataclass(frozen=True)
class _Letters(Generator):
    """shortest to longest letters of the alphabet, each length as likely."""

    shortest: int = 3
    longest: int = 6
    alphabet: str = "abcdefghijklmnopqrstuvwxyz"

    def __post_init__(self):
        if not 1 <= self.shortest <= self.longest:
            raise UserError(f"shortest={self.shortest}, longest={self.longest}; expected 1 or more, in this order.")
        if len(set(self.alphabet)) < 2:
            raise UserError(f"alphabet={self.alphabet!r}; expected at least two letters.")

    def _word(self, random: random.Random) -> str:
        return "".join(random.choices(self.alphabet, k=random.randint(self.shortest, self.longest)))


class _Transforming(_Letters):
    verb: str

    @abc.abstractmethod
    def transformed(self, word: str) -> str: ...

    def draw(self, random: random.Random) -> Drawn:
        word = self._word(random)
        return Drawn(f"{self.verb} {word}:", self.transformed(word))


class Copying(_Transforming):
    """The letters as they are."""

    verb = "copy"

    def transformed(self, word: str) -> str:
        return word


class Reversing(_Transforming):
    """The letters from last to first."""

    verb = "reverse"

    def transformed(self, word: str) -> str:
        return word[::-1]


class Sorting(_Transforming):
    """The letters in the alphabet's order."""

    verb = "sort"

    def transformed(self, word: str) -> str:
        return "".join(sorted(word, key=self.alphabet.index))


class Counting(_Letters):
    """How often a letter, one of the word's in half of the problems, is in it."""

    reward = "numeric"

    def draw(self, random: random.Random) -> Drawn:
        word = self._word(random)
        letter = random.choice(word if random.random() < 0.5 else self.alphabet)
        return Drawn(f"count {letter} in {word}:", str(word.count(letter)))
