"""What a cleaning step is, and what it says about a document."""

from typing import NamedTuple, Protocol

from gptjax.errors import UserError


class Outcome(NamedTuple):
    """texts: [] the document goes, [text] it stays, several: it is split. reasons: why it goes, or what was changed
    in it, and how often ({"email": 2}); empty where nothing happened."""

    texts: list[str]
    reasons: dict[str, int]


class Step(Protocol):
    """A frozen dataclass whose fields are the parameters of its spec; picklable, what it loads is loaded on use.

    Its answer is a pure function of the text, and it leaves its own answers as they are (idempotent).
    """

    def ready(self) -> None:
        """Loads what the step needs. Raises UserError: a library or file is missing, a parameter makes no sense."""

    def __call__(self, text: str) -> Outcome: ...


def kept(text: str, **reasons: int) -> Outcome:
    return Outcome([text], reasons)


def removed(reason: str) -> Outcome:
    return Outcome([], {reason: 1})


def check_range(step: str, **limits: tuple[float | None, float, float]) -> None:
    """Raises UserError: a parameter (value, least, greatest) lies outside; off (None) is always allowed."""
    for name, (value, least, greatest) in limits.items():
        if value is not None and not least <= value <= greatest:
            raise UserError(f"{step}({name}={value:g}): expected a number from {least:g} to {greatest:g}.")


def check_order(step: str, **pairs: tuple[float | None, float | None]) -> None:
    """Raises UserError: the smallest allowed value of a pair lies above the largest."""
    for name, (least, most) in pairs.items():
        if least is not None and most is not None and least > most:
            raise UserError(f"{step}: min_{name}={least:g} is more than max_{name}={most:g}; nothing would be left.")
