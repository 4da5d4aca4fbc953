"""The tasks by name (data.task): which fields of a record become which sequences, and what its label is.

To add one, write a Task and name it in TASKS.
"""

import dataclasses

import numpy as np

from gptjax.data.examples.task import Encoder, Example, Task, class_of, field, text_of
from gptjax.errors import UserError, make_chosen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classify(Task):
    """One text and its class, or a number."""

    text: str = "text"

    def texts(self, record, where):
        return [[text_of(record, self.text, where, "text")]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair(Task):
    """Two texts in order, such as a premise and a hypothesis, and their class."""

    first: str = "text_a"
    second: str = "text_b"

    def texts(self, record, where):
        return [[text_of(record, self.first, where, "first"), text_of(record, self.second, where, "second")]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Similarity(Pair):
    """Two texts whose order means nothing: both orders are read, and their activations added."""

    def texts(self, record, where):
        [[first, second]] = super().texts(record, where)
        return [[first, second], [second, first]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(Task):
    """A context and a list of texts that may follow it; the label is the number of the right one, from 0."""

    context: str = "context"
    choices: str = "choices"
    losses = ("choice",)

    def texts(self, record, where):
        choices, context = (
            field(record, self.choices, where, "choices"),
            text_of(record, self.context, where, "context"),
        )
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(one, str) for one in choices):
            raise UserError(f"{where}: field {self.choices!r} is no list of two texts or more.")
        return [[context, choice] for choice in choices]

    def label_of(self, record, where, head):
        count = len(record[self.choices])
        return np.int32(class_of(field(record, self.label, where, "label"), where, [], count))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tag(Task):
    """A list of words and a list with the class of each, which is read at the word's last token: the one that has seen it
    whole."""

    tokens: str = "tokens"
    label: str = "tags"
    losses = ("tag",)

    def texts(self, record, where):
        words = field(record, self.tokens, where, "tokens")
        if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
            raise UserError(f"{where}: field {self.tokens!r} is no list of words.")
        return [words]

    def example(self, record, where, encoder: Encoder, head, labelled=True) -> Example:
        [words] = self.texts(record, where)
        parts = [encoder.tokenizer.encode(" " * (i > 0) + word) for i, word in enumerate(words)]
        place_W = np.cumsum([len(part) for part in parts])  # behind the start token
        kept = int(np.searchsorted(place_W, encoder.room(1), side="right"))
        sequence = np.concatenate([encoder.start, *parts[:kept], encoder.classify])
        label_W = self.label_of(record, where, head)[:kept] if labelled else None
        return Example((sequence,), label_W, int(kept < len(words)), place_W[:kept])

    def label_of(self, record, where, head):
        tags, words = field(record, self.label, where, "label"), record[self.tokens]
        if not isinstance(tags, list) or len(tags) != len(words):
            raise UserError(f"{where}: field {self.label!r} is no list of {len(words)} labels, one for each word.")
        return np.array([class_of(tag, where, self.names, head.outputs) for tag in tags], np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer(Task):
    """A question and a context that holds its answer. label: the field of the answer, a text of the context, a list of such, or
    SQuAD's {"text": [...], "answer_start": [...]}; the first of them is learnt."""

    question: str = "question"
    context: str = "context"
    label: str = "answer"
    losses = ("span",)

    def texts(self, record, where):
        question = text_of(record, self.question, where, "question")
        return [[question, text_of(record, self.context, where, "context")]]

    def example(self, record, where, encoder: Encoder, head, labelled=True) -> Example:
        [[question, context]] = self.texts(record, where)
        sequence, cut = encoder.sequence([question, context])
        whole = encoder.tokenizer.encode(context)
        kept = encoder.cut(whole, 2)
        first = len(sequence) - 1 - len(kept)  # of the context's tokens
        place_2 = np.array([first, len(sequence) - 2])
        if not labelled:
            return Example((sequence,), None, cut, place_2)
        answers = self._answers(record, context, where)
        dropped = encoder.dropped(len(whole), 2)
        label_2 = _tokens_of(encoder.tokenizer.token_bytes[whole], context, *answers[0]) - dropped
        if label_2[0] < 0 or label_2[1] >= len(kept):
            raise UserError(f"{where}: the answer is in what was cut off: the context has room for {len(kept)} tokens.")
        return Example(
            (sequence,), (first + label_2).astype(np.int32), cut, place_2, tuple(text for text, _ in answers)
        )

    def _answers(self, record, context: str, where: str) -> list[tuple[str, int]]:
        """(text, first character in the context) of each. Raises UserError: the context does not have it."""
        value = field(record, self.label, where, "label")
        if isinstance(value, dict):
            texts, starts = value.get("text", []), value.get("answer_start", [])
        else:
            texts = [value] if isinstance(value, str) else value
            starts = [context.find(text) if isinstance(text, str) else -1 for text in texts]
        if not texts or len(texts) != len(starts):
            raise UserError(f"{where}: field {self.label!r} holds no answer.")
        for text, start in zip(texts, starts):
            if not text or start < 0 or context[start : start + len(text)] != text:
                raise UserError(f"{where}: the answer {text!r} is not where it should be in {self.context!r}.")
        return list(zip(texts, starts))


def _tokens_of(bytes_L: np.ndarray, context: str, text: str, start: int) -> np.ndarray:
    """int64 [2]: the first and the last token of a text that begins at a character of the context. bytes_L: of its tokens."""
    begin = len(context[:start].encode())
    last = begin + len(text.encode()) - 1
    return np.searchsorted(np.cumsum(bytes_L), [begin, last], side="right")


TASKS = {
    "classify": Classify,
    "pair": Pair,
    "similarity": Similarity,
    "choice": Choice,
    "tag": Tag,
    "answer": Answer,
}


def of(data, head) -> Task:
    """The task that a DataConfig names. Raises UserError: there is no such task, or the head cannot learn it."""
    task = make_chosen(data.task, TASKS, "data.task")
    if head.loss not in task.losses:
        fitting = {
            "classify": "classes",
            "regress": "regression",
            "choice": "choice",
            "tag": "token_classes",
            "span": "span",
        }
        raise UserError(
            f"data.task={data.task!r} is not learnt by this model.task_head; use"
            f" {' or '.join(fitting[loss] for loss in task.losses)}."
        )
    if task.names and len(task.names) != head.outputs:
        raise UserError(
            f"data.task={data.task!r} names {len(task.names)} labels, but model.task_head has {head.outputs} classes."
        )
    return task
