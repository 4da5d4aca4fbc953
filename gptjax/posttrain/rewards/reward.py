"""An answer, the rewards that there are, and answers scored by several of them.

A reward is a function of an Answer that returns a float; a frozen dataclass whose instances are called is one with
parameters. What scores many answers faster than one by one has a method `many(answers) -> floats`, which is called instead.
A reward of your own is "module:function", "module:Class" or "module:Class(PARAMETER=VALUE)".
"""

import collections
import dataclasses
import math
import typing
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gptjax.data.chat.conversation import Message
from gptjax.errors import UserError, did_you_mean, first_line, imported, make_chosen, shorten

_HERE = "gptjax.posttrain.rewards"
REWARDS: dict[str, Callable | str] = {
    "exact": f"{_HERE}.matching:Exact",
    "numeric": f"{_HERE}.matching:Numeric",
    "choice": f"{_HERE}.matching:Choice",
    "contains": f"{_HERE}.matching:Contains",
    "regex": f"{_HERE}.form:Regex",
    "json": f"{_HERE}.form:JSONObject",
    "tags": f"{_HERE}.form:Tags",
    "ended": f"{_HERE}.form:Ended",
    "instructions": f"{_HERE}.instructions:Instructions",
    "length": f"{_HERE}.length:Length",
    "overlong": f"{_HERE}.length:Overlong",
    "repetition": f"{_HERE}.length:Repetition",
    "classifier": f"{_HERE}.classifier:Classifier",
    "score": f"{_HERE}.model:Score",
    "code": f"{_HERE}.code:Code",
    "reasoning_gym": "gptjax.posttrain.problems.reasoning:Score",
}
ON_ERROR = ("stop", "zero")
LARGEST = float(np.finfo(np.float32).max)  # of a reward, and of their sum


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer of a model to a prompt.

    text: without the token that ended it. token_L: int32, as they were drawn, the end token among them. ended: by an end
    token, not by the limit of tokens. fields: what else the prompt's record says, such as "answer". where: the record's
    name, "FILE:LINE", for messages.
    """

    prompt: tuple[Message, ...]
    text: str
    token_L: np.ndarray
    ended: bool = True
    fields: Mapping[str, typing.Any] = dataclasses.field(default_factory=dict)
    where: str = "an answer"

    def field(self, name: str):
        """Of its record. Raises UserError: it has no such field."""
        if self.fields.get(name) is None:
            has = ", ".join(self.fields) or "none"
            near = did_you_mean(name, self.fields)
            raise UserError(f"the record has no field {name!r}{near}; its fields beside the prompt are: {has}.")
        return self.fields[name]


class Weighted(typing.NamedTuple):
    """name: what it is logged as."""

    name: str
    weight: float
    reward: Callable[[Answer], float]
    text: str  # as it was chosen


class Scores(typing.NamedTuple):
    """by_name: {name of a reward: float32 [B]}, before weights. total_B: float32, their weighted sum. failed: {name: the
    answers that the reward raised an error of}, only with on_error="zero"."""

    by_name: dict[str, np.ndarray]
    total_B: np.ndarray
    failed: dict[str, int]


def chosen(rewards: Mapping[str, float] | Sequence[str], key: str = "rl.rewards") -> tuple[Weighted, ...]:
    """The rewards that a config names, {"numeric(tolerance=0.01)": 1.0, "overlong(limit=200)": 0.1}; without weights each
    has 1. Two of one kind are logged as NAME and NAME_2.

    Raises UserError: no reward, a weight that is no number, a name that there is not, parameters it does not take.
    """
    weight_of = dict(rewards) if isinstance(rewards, Mapping) else dict.fromkeys(rewards, 1.0)
    if not weight_of:
        raise UserError(f"{key} is empty; name at least one of: {', '.join(REWARDS)}, or module:function.")
    counts, weighted = collections.Counter(), []
    for text, weight in weight_of.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise UserError(f"{key} gives {text!r} the weight {weight!r}; expected a number.")
        reward = reward_of(text, key)
        name = text.partition("(")[0].strip().rpartition(":")[2]
        counts[name] += 1
        weighted.append(Weighted(name if counts[name] == 1 else f"{name}_{counts[name]}", float(weight), reward, text))
    return tuple(weighted)


def reward_of(text: str, key: str = "rl.rewards") -> Callable[[Answer], float]:
    """The function of NAME, NAME(PARAMETER=VALUE), or the same with module:name of your own. Raises UserError."""
    address, parenthesis, rest = text.strip().partition("(")
    table, written = REWARDS, text
    if ":" in address:
        name = address.rpartition(":")[2]
        target = imported(address, f"{key}={text!r}")
        if not parenthesis and not isinstance(target, type):
            return _callable(target, text, key)
        table, written = {name: target}, name + parenthesis + rest
    return _callable(make_chosen(written, table, key), text, key)


def _callable(reward, text: str, key: str):
    if not callable(reward):
        raise UserError(f"{key}={text!r} is a {type(reward).__name__}; expected a function of an Answer.")
    return reward


def scored(answers: Sequence[Answer], rewards: Sequence[Weighted], on_error: str = "stop") -> Scores:
    """What each answer is worth.

    A reward that raises, or that gives no finite number, stops the scoring with an error that names the reward and the
    record; with on_error="zero" that one reward is 0 and counted in `failed`.

    Raises UserError: that.
    """
    if on_error not in ON_ERROR:
        raise UserError(f"on_error={on_error!r} is not known; expected one of: {', '.join(ON_ERROR)}.")
    by_name, failed = {}, {}
    for each in rewards:
        values, count = _values(each, answers, on_error)
        by_name[each.name] = np.array(values, np.float32)
        if on_error == "zero":
            failed[each.name] = count
    total_B = np.zeros(len(answers), np.float64)
    for each in rewards:
        total_B += each.weight * by_name[each.name].astype(np.float64)
    if len(total_B) and not np.abs(total_B).max() <= LARGEST:
        raise UserError(
            f"the weighted sum of rewards is {np.abs(total_B).max():g}, more than {LARGEST:g}; use smaller weights."
        )
    return Scores(by_name, total_B.astype(np.float32), failed)


def _values(each: Weighted, answers: Sequence[Answer], on_error: str) -> tuple[list[float], int]:
    """(the reward of each answer, how many raised)."""
    if hasattr(each.reward, "many"):
        try:
            values = list(each.reward.many(answers))
            assert len(values) == len(answers), f"{each.text}: {len(values)} values for {len(answers)} answers"
            return [_number(value, each, answer) for value, answer in zip(values, answers)], 0
        except (Exception, SystemExit) as error:
            if on_error == "stop":
                raise _named(error, each, "these answers") from error
    values, failures = [], 0  # one by one, so that one that raises is found
    for answer in answers:
        try:
            values.append(_number(each.reward(answer), each, answer))
        except (Exception, SystemExit) as error:
            if on_error == "stop":
                raise _named(error, each, answer.where) from error
            values.append(0.0)
            failures += 1
    return values, failures


def _number(value, each: Weighted, answer: Answer) -> float:
    if isinstance(value, str) or np.ndim(value) or not hasattr(value, "__float__"):
        shown = shorten(repr(value), 40)
        raise UserError(f"{answer.where}: the reward {each.text!r} gave {shown}; expected a number.")
    number = float(value)
    if not abs(number) <= LARGEST:
        raise UserError(
            f"{answer.where}: the reward {each.text!r} is {number}; expected a finite number, at most {LARGEST:g}."
        )
    return number


def _named(error: BaseException, each: Weighted, where: str) -> UserError:
    """The error with the record and the reward it came from."""
    said = first_line(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, UserError) and repr(each.text) in said:
        return error
    cure = "" if isinstance(error, UserError) else "; correct the reward"
    return UserError(f"{where}: the reward {shorten(repr(each.text), 120)} failed: {said}{cure}.".replace("..", "."))
