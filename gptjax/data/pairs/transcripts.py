"""Prompts that stand in front of both of a pair's conversations: the messages in which they begin alike."""

import re

from gptjax.data.chat.conversation import Message, parse_messages
from gptjax.errors import UserError

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def parted(chosen, rejected, where: str) -> tuple[tuple[Message, ...], tuple[Message, ...], tuple[Message, ...]]:
    """(prompt, chosen answer, rejected answer). Raises UserError that begins with where: they begin differently, or do not
    part at an answer of the assistant."""
    sides = [_messages(value, f"{where}: {name}") for value, name in ((chosen, "chosen"), (rejected, "rejected"))]
    shortest = min(map(len, sides))
    alike = next((i for i in range(shortest) if sides[0][i][:2] != sides[1][i][:2]), shortest)
    if alike == 0:
        raise UserError(f"{where}: chosen and rejected have no message in common; give their prompt as 'prompt'.")
    if alike == shortest:
        raise UserError(f"{where}: chosen and rejected differ in no answer; leave it out.")
    for side, name in zip(sides, ("chosen", "rejected")):
        check_answer(side[alike:], f"{where}: {name}")
    return sides[0][:alike], sides[0][alike:], sides[1][alike:]


def check_answer(answer: tuple[Message, ...], where: str) -> None:
    """Raises UserError: it does not begin and end with a message of the assistant."""
    for message, verb in ((answer[0], "begins"), (answer[-1], "ends")):
        if message.role != "assistant":
            raise UserError(f"{where} {verb} with a message of the {message.role}; expected one of the assistant.")


def _messages(value, where: str) -> tuple[Message, ...]:
    return parse_messages(_turns(value, where) if isinstance(value, str) else value, where)


def _turns(text: str, where: str) -> list[Message]:
    """Of a text "\\n\\nHuman: ...\\n\\nAssistant: ...", hh-rlhf's form."""
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        raise UserError(
            f"{where} is a text without a prompt; give the prompt as 'prompt', or write turns as '\\n\\nHuman: ...' and"
            " '\\n\\nAssistant: ...'."
        )
    return [Message(_ROLES[name], content.strip()) for name, content in zip(parts[::2], parts[1::2])]
