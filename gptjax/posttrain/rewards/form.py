"""Rewards for how an answer is written, whatever it says: 1 or 0."""

import dataclasses
import json
import re

from gptjax.errors import UserError
from gptjax.posttrain.rewards.reward import Answer


@dataclasses.dataclass(frozen=True)
class Regex:
    """1 where the pattern matches the whole answer, spaces at the ends aside; with part=True somewhere in it. "." matches
    line breaks too."""

    pattern: str
    part: bool = False

    def __post_init__(self):
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(
                f"pattern={self.pattern!r} is no regular expression: {error}; correct it (Python's re)."
            ) from error

    def __call__(self, answer: Answer) -> float:
        match = re.search if self.part else re.fullmatch
        return float(match(self.pattern, answer.text.strip(), re.DOTALL) is not None)


@dataclasses.dataclass(frozen=True)
class JSONObject:
    """1 where the answer is JSON, inside a fence of ```json or alone; with keys: an object that has them all."""

    keys: tuple[str, ...] = ()

    def __call__(self, answer: Answer) -> float:
        value, is_json = parsed_json(answer.text)
        return float(is_json and (not self.keys or (isinstance(value, dict) and set(self.keys) <= value.keys())))


_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.DOTALL | re.IGNORECASE)


def parsed_json(text: str) -> tuple[object, bool]:
    """(value, whether the text is JSON), with or without a fence around it."""
    bare = text.strip()
    match = _FENCE.fullmatch(bare)
    try:
        return json.loads(match[1] if match else bare, parse_constant=_no_constant), True
    except (ValueError, RecursionError):
        return None, False


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON")


@dataclasses.dataclass(frozen=True)
class Tags:
    """1 where the answer is <a>...</a><b>...</b> of these names in this order, each once, with nothing but spaces between
    and around them (DeepSeek-R1's format reward has think and answer)."""

    names: tuple[str, ...] = ("think", "answer")

    def __post_init__(self):
        if not self.names or not all(re.fullmatch(r"[\w-]+", name) for name in self.names):
            raise UserError(f"names={self.names!r}: expected names of letters, such as ('think', 'answer').")

    def __call__(self, answer: Answer) -> float:
        text = answer.text.strip()
        once = all(text.count(f"<{name}>") == 1 == text.count(f"</{name}>") for name in self.names)
        inside = r"\s*".join(rf"<{re.escape(name)}>.*</{re.escape(name)}>" for name in self.names)
        return float(once and re.fullmatch(inside, text, re.DOTALL) is not None)


@dataclasses.dataclass(frozen=True)
class Ended:
    """1 where the answer ended by itself, 0 where it was cut at the limit of tokens."""

    def __call__(self, answer: Answer) -> float:
        return float(answer.ended)
