"""Problems by their number: a function of (generator, seed, split, number), the same on every machine.

A generator is a frozen dataclass with `draw(random) -> Drawn` and `reward`, the name of the reward that its answers are
for. A problem is held out by a hash of its prompt, whatever the seed, so that none of training is ever held out.
"""

import abc
import dataclasses
import hashlib
import random
import typing
from collections.abc import Callable

from gptjax.data.chat.conversation import Message
from gptjax.errors import UserError, choose, make_chosen

_HERE = "gptjax.posttrain.problems"
GENERATORS: dict[str, Callable | str] = {
    "arithmetic": f"{_HERE}.arithmetic:Arithmetic",
    "comparison": f"{_HERE}.arithmetic:Comparison",
    "copying": f"{_HERE}.letters:Copying",
    "reversing": f"{_HERE}.letters:Reversing",
    "sorting": f"{_HERE}.letters:Sorting",
    "counting": f"{_HERE}.letters:Counting",
    "reasoning_gym": f"{_HERE}.reasoning:ReasoningGym",
}
SPLITS = {"train": False, "held_out": True}  # whether a problem of it is held out
HELD_OUT_SHARE = 10  # one problem of so many is held out
ATTEMPTS = 1000  # draws for one number until a problem of the split comes


class Drawn(typing.NamedTuple):
    prompt: str
    answer: str
    fields: dict = {}  # noqa: RUF012  further ones that the reward reads


class Problem(typing.NamedTuple):
    """fields: for the reward, "answer" among them. where: its name, for messages."""

    messages: tuple[Message, ...]
    fields: dict
    where: str

    @property
    def prompt(self) -> str:
        """Of its one user's message."""
        return self.messages[0].content


class Generator(abc.ABC):
    reward: typing.ClassVar[str] = "exact"

    @abc.abstractmethod
    def draw(self, random: random.Random) -> Drawn:
        """A problem, drawn from random alone."""


@dataclasses.dataclass(frozen=True)
class Problems:
    """Problem number i of a generator: problems[i]. text: how the generator was chosen."""

    generator: Generator
    text: str
    seed: int = 0
    split: str = "train"

    def __getitem__(self, number: int) -> Problem:
        """Raises UserError: the generator has hardly any problem of this split."""
        for attempt in range(ATTEMPTS):
            drawn = self.generator.draw(random.Random(f"{self.seed}/{number}/{attempt}"))
            if is_held_out(drawn.prompt) == SPLITS[self.split]:
                where = f"{self.text}, {self.split} {number}"
                return Problem((Message("user", drawn.prompt),), {"answer": drawn.answer} | drawn.fields, where)
        raise UserError(
            f"{self.text} gave no problem for {self.split} in {ATTEMPTS} draws; let it have more, such as more digits."
        )


def chosen(text: str, seed: int = 0, split: str = "train", key: str = "rl.prompts") -> Problems:
    """The problems of a generator by name, such as "arithmetic(digits=2)". Raises UserError: there is none, or no split."""
    choose(SPLITS, split, "split")
    return Problems(make_chosen(text, GENERATORS, key), text, seed, split)


def is_held_out(prompt: str) -> bool:
    return int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8]) % HELD_OUT_SHARE == 0
