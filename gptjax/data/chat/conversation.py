"""Conversations: messages of the four roles, as they are read from records, with every error naming the record.

Rules of all forms: a system message stands first and there is one at most; a tool's message follows an assistant's or
another tool's; a user's and an assistant's content is not empty; one assistant's message at least has a weight above 0.
Forms may ask for more (forms.py).
"""

import math
from typing import NamedTuple

from gptjax.data.chat import calls, forms
from gptjax.errors import UserError, choose, shorten

ROLES = {name: name for name in ("system", "user", "assistant", "tool")} | {"developer": "system"}


class Message(NamedTuple):
    """One turn. weight: of an assistant's message in the loss; None is 1. Other roles' messages are no targets. tokens: of an
    answer that a model gave, as it drew them; None: those of the text are meant. tools: of a system message, the tools that
    may be called, as JSON (calls.py)."""

    role: str
    content: str
    weight: float | None = None
    tokens: tuple[int, ...] | None = None
    tools: tuple[str, ...] = ()

    @property
    def loss_weight(self) -> float:
        """0 for what is no target."""
        if self.role != "assistant":
            return 0.0
        return 1.0 if self.weight is None else self.weight


class Conversation(NamedTuple):
    messages: tuple[Message, ...]
    where: str  # "FILE:LINE", as of Document: for messages


def from_record(record: dict, where: str) -> Conversation:
    """The conversation of a record in one of forms.FORMS, known by its fields.

    Raises UserError that begins with where: another form, a message or a role that is none, a role out of place, empty
    content, no target.
    """
    if not isinstance(record, dict):
        raise UserError(f"{where} holds a {type(record).__name__}; expected an object with messages.")
    messages = parse_messages(forms.messages(record, where), where, record.get("tools"))
    if not any(message.loss_weight for message in messages):
        has = "no assistant's message" if all(m.role != "assistant" for m in messages) else "only weights of 0"
        raise UserError(f"{where} has no target: it has {has}; leave it out, or give an answer to learn.")
    return Conversation(messages, where)


def parse_messages(values, where: str, tools=None) -> tuple[Message, ...]:
    """Messages of a list of {"role", "content"}, in OpenAI's form, with or without an answer. An assistant's tool_calls
    become text behind its content.

    tools: that the assistant may call, in OpenAI's form; the system message has them, and is there for them if need be.
    Raises UserError that begins with where: as from_record, but for the target.
    """
    if not isinstance(values, list | tuple) or not values:
        raise UserError(f"{where} has no messages; expected a list of objects with role and content.")
    values = calls.in_order(values, where)
    messages = tuple(_message(value, f"{where}: message {i}") for i, value in enumerate(values, start=1))
    for i, message in enumerate(messages, start=1):
        _check_place(message, messages[: i - 1], f"{where}: message {i}")
    return with_tools(messages, calls.checked_tools(tools, where))


def with_tools(messages: tuple[Message, ...], tools: tuple[str, ...]) -> tuple[Message, ...]:
    """messages whose system message, an empty one if there is none, has tools."""
    if not tools:
        return messages
    if messages and messages[0].role == "system":
        return (messages[0]._replace(tools=tools), *messages[1:])
    return (Message("system", "", tools=tools), *messages)


def _message(value, where: str) -> Message:
    tools = value.tools if isinstance(value, Message) else ()
    if isinstance(value, Message):
        value = value._asdict()
    if not isinstance(value, dict):
        raise UserError(f"{where} is a {type(value).__name__}; expected an object with role and content.")
    name = value.get("role")
    if not isinstance(name, str):
        raise UserError(f"{where} has no role; expected one of: {', '.join(ROLES)}.")
    try:
        role = choose(ROLES, name, "role")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    content = value.get("content")
    if role == "assistant":
        content = calls.content_with(content, value.get("tool_calls"), where)
    content = _text(content, where)
    if not content.strip() and role in ("user", "assistant"):
        raise UserError(f"{where} ({role}) is empty; give it a text, or leave the record out.")
    return Message(role, content, _weight(value.get("weight"), role, where), tools=tools)


def _text(content, where: str) -> str:
    """Content that is a text, or a list of text parts: their texts, one after the other."""
    if isinstance(content, list | tuple):
        content = "".join(_part(part, where) for part in content)
    if not isinstance(content, str):
        kind = "no content" if content is None else f"content of type {type(content).__name__}"
        raise UserError(f"{where} has {kind}; expected a text.")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where} has half of a surrogate pair, no character; repair it.") from error
    return content


def _part(part, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = repr(part.get("type")) if isinstance(part, dict) else type(part).__name__
    raise UserError(f"{where} has a part of type {shorten(kind, 80)}; only text can be read.")


def _weight(weight, role: str, where: str) -> float | None:
    if weight is None:
        return None
    if role != "assistant":
        raise UserError(f"{where} ({role}) has a weight; only an assistant's message is a target: remove it.")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise UserError(f"{where}: weight={shorten(repr(weight), 80)}; expected a number of at least 0.")
    return float(weight)


def _check_place(message: Message, before: tuple[Message, ...], where: str) -> None:
    """Raises UserError: the role is out of place."""
    if message.role == "system" and before:
        raise UserError(f"{where} (system) is out of place; a system message comes first, once.")
    if message.role == "tool" and (not before or before[-1].role not in ("assistant", "tool")):
        raise UserError(f"{where} (tool) is out of place; it has to follow an assistant's message.")
