"""Rewards that compare an answer with the one in its record: 1 where they agree, 0 where they do not."""

import dataclasses
import re

from gptjax.errors import UserError
from gptjax.posttrain.rewards import extraction
from gptjax.posttrain.rewards.reward import Answer


class _Extracting:
    """Checks its form when it is made."""

    def __post_init__(self):
        extraction.extracted("", self.form)


@dataclasses.dataclass(frozen=True)
class Exact(_Extracting):
    """1 where the answer is the record's text, spaces at the ends aside. A field with a list takes any of its texts."""

    field: str = "answer"
    form: str = "whole"
    ignore_case: bool = False

    def __call__(self, answer: Answer) -> float:
        text = extraction.extracted(answer.text, self.form)
        return float(text is not None and self._same(text) in map(self._same, _texts(answer.field(self.field))))

    def _same(self, text: str) -> str:
        return text.strip().casefold() if self.ignore_case else text.strip()


@dataclasses.dataclass(frozen=True)
class Numeric(_Extracting):
    """1 where the last number of the answer is the record's, exactly or up to a share of it; with alone=True only where
    the answer is a number and nothing else."""

    field: str = "answer"
    form: str = "whole"
    tolerance: float = 0.0
    alone: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.tolerance < 0:
            raise UserError(f"tolerance={self.tolerance} is negative; use 0 for equal numbers.")

    def __call__(self, answer: Answer) -> float:
        reference = extraction.reference_number(answer.field(self.field), self.field)
        text = extraction.extracted(answer.text, self.form)
        if text is None:
            return 0.0
        numbers = [extraction.only_number(text)] if self.alone else extraction.numbers(text)[-1:]
        if not numbers or numbers[0] is None:
            return 0.0
        return float(abs(numbers[0] - reference) <= abs(reference) * self.tolerance)


@dataclasses.dataclass(frozen=True)
class Choice(_Extracting):
    """1 where the last letter of `options` that stands alone in the answer, as in "(B)", is the record's."""

    field: str = "answer"
    options: str = "ABCD"
    form: str = "whole"

    def __call__(self, answer: Answer) -> float:
        right = str(answer.field(self.field)).strip()
        if len(right) != 1 or right not in self.options:
            raise UserError(f"the record's field {self.field!r} is {right!r}; expected one letter of {self.options!r}.")
        text = extraction.extracted(answer.text, self.form) or ""
        letters = re.findall(rf"(?<!\w)[{re.escape(self.options)}](?!\w)", text)
        return float(bool(letters) and letters[-1] == right)


@dataclasses.dataclass(frozen=True)
class Contains:
    """The share of `words`, or of the texts of the record's field, that are in the answer; with any_of=True 1 where one
    is."""

    words: tuple[str, ...] = ()
    field: str = "answer"
    ignore_case: bool = True
    any_of: bool = False

    def __call__(self, answer: Answer) -> float:
        words = self.words or _texts(answer.field(self.field))
        text = answer.text.casefold() if self.ignore_case else answer.text
        inside = [(word.casefold() if self.ignore_case else word) in text for word in words]
        return float(any(inside)) if self.any_of else sum(inside) / len(inside)


def _texts(value) -> list[str]:
    texts = [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]
    if not texts:
        raise UserError("the record's list of answers is empty; expected at least one text.")
    return texts
