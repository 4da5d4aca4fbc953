"""The forms of records that hold preferences, each known by its fields, and what is read from all of them: a Comparison.

A prompt and an answer are a text, which is one message of the user or of the assistant, or a list of {"role", "content"}.
A form is a function (record, where) -> Comparison and one line of FORMS.
"""

from typing import NamedTuple

import numpy as np

from gptjax.data.chat.conversation import Message, parse_messages
from gptjax.data.pairs import transcripts
from gptjax.errors import UserError, shorten


class Comparison(NamedTuple):
    """Answers to a prompt, the best first. Axis: K answers."""

    prompt: tuple[Message, ...]
    answers: tuple[tuple[Message, ...], ...]
    scores: tuple[float, ...]  # [K], higher is better, equal is a tie
    margin: float = 0.0  # by which the scores of a reward model are to differ, at least
    label: int | None = None  # of a single answer: 1 good, 0 not


def from_record(record, where: str, kind: str) -> Comparison:
    """kind: of data.preferences. Raises UserError that begins with where: another form, messages that are none, nothing to
    learn."""
    if not isinstance(record, dict):
        raise UserError(f"{where} holds a {type(record).__name__}; expected an object with a prompt and answers.")
    for fields, form in FORMS[kind].items():
        if all(record.get(field) is not None for field in fields):
            return form(record, where)
    names = (f"{name!r} (null)" if value is None else repr(name) for name, value in record.items())
    expected = "; ".join(" and ".join(fields) for fields in FORMS[kind])
    raise UserError(
        f"{where} holds no preference: it has the fields {shorten(', '.join(names), 300) or 'none'}; expected one of:"
        f" {expected}."
    )


def pair(record: dict, where: str) -> Comparison:
    """{"prompt", "chosen", "rejected"}, TRL's form; the answers may repeat the prompt before them, as UltraFeedback's do."""
    prompt = _prompt(record["prompt"], where)
    answers = [_without(prompt, record[side], where, side) for side in ("chosen", "rejected")]
    return _compared(prompt, answers, (1.0, 0.0), record, where)


def whole(record: dict, where: str) -> Comparison:
    """{"chosen", "rejected"}: two conversations with one beginning, which is the prompt, as lists of messages or as texts of
    Anthropic's hh-rlhf."""
    prompt, *answers = transcripts.parted(record["chosen"], record["rejected"], where)
    return _compared(prompt, answers, (1.0, 0.0), record, where)


def ranking(record: dict, where: str) -> Comparison:
    """{"prompt", "answers", "ranking"}: the rank of each answer, 1 for the best, equal for a tie. Scores are K - 1 for the
    best, less one for each answer that is better."""
    rank_K, answers = record["ranking"], _list(record, "answers", where)
    if not _as_many(rank_K, answers) or not all(type(rank) is int for rank in rank_K):
        raise UserError(
            f"{where}: ranking is no list of {len(answers)} whole numbers, the rank of each of the answers."
        )
    score_K = tuple(float(len(answers) - 1 - sum(other < rank for other in rank_K)) for rank in rank_K)
    return _of_several(record, answers, score_K, where)


def scored(record: dict, where: str) -> Comparison:
    """{"prompt", "completions", "scores"}: a number for each completion, higher is better; equal in float32 is a tie."""
    score_K, answers = record["scores"], _list(record, "completions", where)
    if not _as_many(score_K, answers) or not all(map(_is_number, score_K)):
        raise UserError(
            f"{where}: scores is no list of {len(answers)} finite numbers (float32), one for each of the completions."
        )
    return _of_several(record, answers, tuple(np.array(score_K, np.float32).tolist()), where)


def thumb(record: dict, where: str) -> Comparison:
    """{"prompt", "completion", "label"}: TRL's unpaired form; label is true or 1 of a good answer, false or 0 of another."""
    prompt, label = _prompt(record["prompt"], where), record["label"]
    if label not in (0, 1) or not isinstance(label, int):
        raise UserError(f"{where}: label={shorten(repr(label), 80)}; expected true or false, or 1 or 0.")
    answer = _without(prompt, record["completion"], where, "completion")
    return Comparison(prompt, (answer,), (float(label),), label=int(label))


FORMS = {
    "compared": {
        ("prompt", "chosen", "rejected"): pair,
        ("chosen", "rejected"): whole,
        ("prompt", "answers", "ranking"): ranking,
        ("prompt", "completions", "scores"): scored,
    },
    "judged": {("prompt", "completion", "label"): thumb},
}


# ---- parts of records


def _prompt(value, where: str) -> tuple[Message, ...]:
    values = [Message("user", value)] if isinstance(value, str) else value
    return parse_messages(values, f"{where}: prompt")


def _without(prompt: tuple[Message, ...], value, where: str, name: str) -> tuple[Message, ...]:
    """The messages of an answer, less a prompt that is repeated before them. Raises UserError: it is no answer to it."""
    values = [Message("assistant", value)] if isinstance(value, str) else value
    if not isinstance(values, list | tuple) or not values:
        raise UserError(f"{where}: {name} is a {type(value).__name__}; expected a text or a list of messages.")
    spoken = [(message.role, message.content) for message in prompt]
    repeats = len(values) > len(prompt) and [_spoken(each) for each in values[: len(prompt)]] == spoken
    whole = parse_messages([*prompt, *values[len(prompt) * repeats :]], f"{where}: {name}, with the prompt before it")
    answer = whole[len(prompt) :]
    transcripts.check_answer(answer, f"{where}: {name}")
    return answer


def _spoken(value) -> tuple:
    """Role and content of a message as a record has it."""
    if isinstance(value, Message):
        return value.role, value.content
    return (value.get("role"), value.get("content")) if isinstance(value, dict) else (None, None)


def _list(record: dict, name: str, where: str) -> list:
    if not isinstance(record[name], list | tuple) or len(record[name]) < 2:
        raise UserError(f"{where}: {name} is no list of two answers or more.")
    return list(record[name])


def _as_many(values, answers: list) -> bool:
    return isinstance(values, list | tuple) and len(values) == len(answers)


def _is_number(value) -> bool:
    """Whether it is a finite number in float32, in which batches have it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= float(np.finfo(np.float32).max)


def _of_several(record: dict, answers: list, score_K: tuple[float, ...], where: str) -> Comparison:
    prompt = _prompt(record["prompt"], where)
    read = [_without(prompt, answer, where, f"answer {k}") for k, answer in enumerate(answers, start=1)]
    return _compared(prompt, read, score_K, record, where)


def _compared(prompt, answers, score_K: tuple[float, ...], record: dict, where: str) -> Comparison:
    """Raises UserError: no answer is better than another, or one is better than the same one."""
    margin = record.get("margin", 0.0)
    margin = 0.0 if margin is None else margin
    if not _is_number(margin):
        raise UserError(f"{where}: margin={shorten(repr(margin), 80)}; expected a finite number (float32).")
    if len(set(score_K)) == 1:
        raise UserError(
            f"{where}: all answers are as good as each other, so that nothing is learnt of it; leave it out."
        )
    by_text = {}
    for answer, score in zip(answers, score_K):
        spoken = tuple((message.role, message.content) for message in answer)
        if by_text.setdefault(spoken, score) != score:
            raise UserError(f"{where}: the same answer is better than itself; leave it out.")
    order = sorted(range(len(answers)), key=lambda k: -score_K[k])
    return Comparison(prompt, tuple(answers[k] for k in order), tuple(score_K[k] for k in order), float(margin))
