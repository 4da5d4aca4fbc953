"""Functions that an assistant may call: what they are called with, how the model is told of them, and what they say.

A model in this process is told of them, and calls them, in the text of its turns, as data.chat.calls has it, in training as
here. A server has OpenAI's fields for both (`to_openai`). A wrong call is answered with what is wrong with it, never raised: the
assistant may do better.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gptjax.data.chat import Message, calls
from gptjax.errors import UserError, choose, first_line, imported, shorten

MOST_CALLS = 4  # rounds of calls before an answer has to come


@dataclasses.dataclass(frozen=True)
class Tool:
    """function: of the arguments, texts, by name; it returns a text, or raises UserError: what the assistant is told. Of a tool
    with `data` its first argument is the path of that file of a recipe's [data]."""

    description: str
    parameters: dict[str, str]  # {name: what it is}, each a text
    function: Callable[..., str] | str  # or its address, "module:function"
    data: str | None = None

    def schema(self, name: str) -> dict:
        """As OpenAI's requests have it."""
        properties = {key: {"type": "string", "description": text} for key, text in self.parameters.items()}
        parameters = {"type": "object", "properties": properties, "required": list(self.parameters)}
        body = {"name": name, "description": self.description, "parameters": parameters}
        return {"type": "function", "function": body}


TOOLS: dict[str, Tool] = {
    "calculator": Tool(
        "The value of an arithmetic expression.",
        {"expression": "numbers with + - * / ** and parentheses, such as 3*(4+5)"},
        "gptjax.posttrain.calculator:calculate",
    ),
    "order_status": Tool(
        "Where an order is, and when it arrives.",
        {"order": "the number of the order, such as A1001"},
        "gptjax.applications.orders:status",
        data="orders",
    ),
    "return_order": Tool(
        "Registers the return of a delivered order.",
        {"order": "the number of the order", "reason": "why it is returned"},
        "gptjax.applications.orders:send_back",
        data="orders",
    ),
}


class Call(NamedTuple):
    """arguments: JSON, as the model wrote it."""

    name: str
    arguments: str
    id: str = ""


def of_recipe(recipe) -> dict[str, Tool]:
    """Its tools by name, each with a function of the arguments alone. Raises UserError: no such tool, or a file that it needs."""
    return {name.rpartition(":")[2]: _bound(name, recipe) for name in recipe.tools}


def _bound(name: str, recipe) -> Tool:
    where = f"{recipe.path}: tools"
    tool = imported(name, where) if ":" in name else choose(TOOLS, name, where)
    if not isinstance(tool, Tool):
        raise UserError(f"{where}: {name} is a {type(tool).__name__}; expected a gptjax.applications.tools.Tool.")
    function = imported(tool.function, where) if isinstance(tool.function, str) else tool.function
    if tool.data is not None:
        if tool.data not in recipe.data:
            raise UserError(f"{where}: {name} needs a file; name it under [data], as in {tool.data} = FILE.")
        function = functools.partial(function, recipe.data[tool.data])
    return dataclasses.replace(tool, function=function)


def described(tools: dict[str, Tool]) -> tuple[str, ...]:
    """As a system message has them (data.chat.Message.tools)."""
    return calls.checked_tools([tool.schema(name) for name, tool in tools.items()], "tools")


def written(call: Call) -> str:
    """As it stands in a model's turn."""
    try:
        return calls.written(call.name, json.loads(call.arguments))
    except ValueError:
        return calls.written(call.name, call.arguments)


def calls_of(text: str) -> list[Call]:
    """The calls in a model's turn. One that is none has an empty name, and is answered so."""
    made = []
    for i, inside in enumerate(calls.CALL.findall(text)):
        parsed = calls.parsed(inside)
        name, arguments = ("", inside) if parsed is None else (parsed[0], json.dumps(parsed[1], ensure_ascii=False))
        made.append(Call(name, arguments, f"call_{i}"))
    return made


def result_of(call: Call, tools: dict[str, Tool]) -> str:
    """What a tool says, or "error: " and what is wrong with the call."""
    if call.name not in tools:
        wrong = (
            f"no function {shorten(call.name, 40)!r}" if call.name else "the call is no JSON with name and arguments"
        )
        return f"error: {wrong}; there are: {', '.join(tools)}"
    tool = tools[call.name]
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return "error: the arguments are no JSON object"
    if isinstance(arguments, str) and len(tool.parameters) == 1:  # the short form of a call, NAME(TEXT)
        arguments = dict.fromkeys(tool.parameters, arguments)
    if not isinstance(arguments, dict) or arguments.keys() != tool.parameters.keys():
        return f"error: {call.name} takes these arguments, as a JSON object: {', '.join(tool.parameters)}"
    try:
        return tool.function(*(str(arguments[name]) for name in tool.parameters))
    except UserError as error:
        return f"error: {first_line(error)}"


def to_openai(messages: Sequence[Message]) -> list[dict]:
    """Messages as a request has them: calls in the text of an answer become its tool_calls, which tools' messages refer to."""
    written_messages, waiting = [], []
    for message in messages:
        one = {"role": message.role, "content": message.content}
        if message.role == "assistant":
            waiting = [
                call._replace(id=f"call_{len(written_messages)}_{i}")
                for i, call in enumerate(calls_of(message.content))
            ]
            if waiting:
                one["content"] = calls.CALL.sub("", message.content).strip() or None
                one["tool_calls"] = [_as_openai(call) for call in waiting]
        elif message.role == "tool" and waiting:
            one["tool_call_id"] = waiting.pop(0).id
        written_messages.append(one)
    return written_messages


def _as_openai(call: Call) -> dict:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
