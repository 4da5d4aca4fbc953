"""What every task has in common: the control tokens around its texts, truncation, and labels.

    START text CLASSIFY                     of one text                (Radford et al. 2018, section 3.3 and figure 1)
    START first DELIMITER second CLASSIFY   of two

Control tokens go by id, which no text can spell. Of m texts in a sequence each has at most context / m - 2 tokens, as in
GPT-1's released fine-tuning code (n_ctx // 2 - 2 of two); what is cut off is counted.
"""

import dataclasses
import typing

import numpy as np

from gptjax.data.tokenizers.symbols import SYMBOLS
from gptjax.errors import UserError, did_you_mean, shorten

START, DELIMITER, CLASSIFY = CONTROL = SYMBOLS["task"]


class Example(typing.NamedTuple):
    """C sequences of token ids, and what is right. label: None (not known), or a number, numbers, or places of tokens."""

    sequences: tuple[np.ndarray, ...]
    label: np.ndarray | None
    cut: int  # texts that were too long
    place_W: np.ndarray | None = None  # of tokens that have labels, or at which the text of an answer begins and ends
    answers: tuple[str, ...] = ()  # to a question, any of which is right


class Encoder:
    """Texts to sequences. tokenizer: with CONTROL among its special symbols. keep: "start" or "end" of a text too long."""

    def __init__(self, tokenizer, context_length: int, keep: str):
        self.tokenizer, self.context_length, self._keep = tokenizer, context_length, keep
        self.start, self.delimiter, self.classify = (np.array([tokenizer.special[name]], np.int32) for name in CONTROL)

    def room(self, n_texts: int) -> int:
        """Tokens that each of so many texts of a sequence may have."""
        return self.context_length // n_texts - 2

    def dropped(self, n_tokens: int, n_texts: int) -> int:
        """Tokens that a text of so many loses before its first one that is kept."""
        return max(0, n_tokens - self.room(n_texts)) if self._keep == "end" else 0

    def cut(self, ids: np.ndarray, n_texts: int) -> np.ndarray:
        first = self.dropped(len(ids), n_texts)
        return ids[first : first + self.room(n_texts)]

    def sequence(self, texts: list[str]) -> tuple[np.ndarray, int]:
        """(ids of the texts between control tokens, how many of the texts were cut)."""
        whole = [self.tokenizer.encode(text) for text in texts]
        kept = [self.cut(ids, len(texts)) for ids in whole]
        parts = [self.start, *(part for ids in kept for part in (ids, self.delimiter))][:-1]
        cut = sum(len(ids) > len(short) for ids, short in zip(whole, kept))
        return np.concatenate([*parts, self.classify]), cut


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A record's fields as texts and a label. label: the field that holds it. labels: the names of the classes in order, with
    commas between; "": they are the numbers from 0 on. keep: which part of a text too long is kept, its start or its end."""

    label: str = "label"
    labels: str = ""
    keep: str = "start"
    losses: typing.ClassVar[tuple[str, ...]] = ("classify", "regress")  # of the heads that can learn it

    def __post_init__(self):
        if self.keep not in ("start", "end"):
            raise UserError(f"keep={self.keep!r} is not known; expected start or end.")

    @property
    def names(self) -> list[str]:
        return [name.strip() for name in self.labels.split(",")] if self.labels else []

    def texts(self, record: dict, where: str) -> list[list[str]]:
        """The texts of each sequence."""
        raise NotImplementedError

    def example(self, record: dict, where: str, encoder: Encoder, head, labelled: bool = True) -> Example:
        """Raises UserError that begins with where: a field is missing, or is not what the task takes."""
        made = [encoder.sequence(texts) for texts in self.texts(record, where)]
        label = self.label_of(record, where, head) if labelled else None
        return Example(tuple(ids for ids, _ in made), label, sum(cut for _, cut in made))

    def label_of(self, record: dict, where: str, head) -> np.ndarray:
        value = field(record, self.label, where, "label")
        if head.loss == "regress":
            return _numbers(value, where, head.outputs)
        return np.int32(class_of(value, where, self.names, head.outputs))

    def class_names(self, outputs: int) -> list[str]:
        return self.names or [str(number) for number in range(outputs)]


def field(record: dict, name: str, where: str, role: str):
    """A field of a record. role: the parameter of the task that names it. Raises UserError: it is not there."""
    if name not in record or record[name] is None:
        state = "is null" if name in record else f"is missing{did_you_mean(name, record)}"
        there = shorten(", ".join(map(repr, record)) or "none", 300)
        raise UserError(f"{where}: field {name!r} {state}; there are: {there}. Name it in data.task by {role}='FIELD'.")
    return record[name]


def text_of(record: dict, name: str, where: str, role: str) -> str:
    value = field(record, name, where, role)
    if not isinstance(value, str):
        raise UserError(f"{where}: field {name!r} is a {type(value).__name__}; expected a text.")
    return value


def class_of(value, where: str, names: list[str], count: int) -> int:
    """The number of a class. Raises UserError: value is none of `count` classes."""
    if names:
        if value in names:
            return names.index(value)
        raise UserError(
            f"{where}: the label {shorten(repr(value), 80)} is none of data.task's labels: {', '.join(names)}."
        )
    if type(value) is not int:
        raise UserError(
            f"{where}: the label {shorten(repr(value), 80)} is no whole number; name the classes in order by labels='A,B' in"
            " data.task."
        )
    if not 0 <= value < count:
        raise UserError(f"{where}: the label {value} is outside 0 to {count - 1}; model.task_head has {count} classes.")
    return value


def _numbers(value, where: str, count: int) -> np.ndarray:
    values = value if isinstance(value, list) else [value]
    if len(values) != count or not all(type(one) in (int, float) and np.isfinite(one) for one in values):
        raise UserError(
            f"{where}: the label {shorten(repr(value), 80)} is not {count} finite numbers, as model.task_head gives."
        )
    return np.array(values, np.float32)
