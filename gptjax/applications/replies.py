"""What a model says to a recipe, whichever way it is asked."""

from typing import NamedTuple, Protocol

from gptjax.applications.tools import Call, Tool


class Reply(NamedTuple):
    text: str
    calls: tuple[Call, ...] = ()  # of tools
    finish_reason: str | None = None  # as generation or the server has it
    tokens: tuple[int, ...] | None = None  # as they were drawn, where they are known


class Model(Protocol):
    """What answering.py asks of a model: local.Local and remote.Remote. on_text(piece) is called with text as it comes, by those
    that stream."""

    title: str  # which model it is

    def reply(self, messages, settings: dict, offered: dict[str, Tool], schema: dict | None, on_text=None) -> Reply: ...

    def complete(self, prompt: str, settings: dict, on_text=None) -> Reply: ...

    def infill(self, prefix: str, suffix: str, settings: dict, on_text=None) -> Reply: ...

    def choose(self, messages, labels: tuple[str, ...]) -> dict[str, float]:
        """The log-probability of each label, or of a server that constrains answers 0 of the one that it chose and -inf of others."""
