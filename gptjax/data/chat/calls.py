"""Tools that an assistant may call, and its calls, as text: one convention for training and serving.

    <tool_call>
    {"name": "weather", "arguments": {"city": "Bern"}}
    </tool_call>

stands in the assistant's turn behind what it says, a call after the other: so Hermes' and Qwen's models write it. The tools
are described in the system message, by a template of theirs in its own words, in every other format as `described` has it.
Both come in OpenAI's form: `tools` beside the messages, `tool_calls` in an assistant's message.
"""

import json
import re

from gptjax.errors import UserError, shorten

OPENED, CLOSED = "<tool_call>", "</tool_call>"
CALL = re.compile(f"{OPENED}(.*?){CLOSED}", re.DOTALL)
_SHORT = re.compile(r"\s*(\w+)\((.*)\)\s*", re.DOTALL)
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")  # of a function, as OpenAI has it


def described(system: str, tools: tuple[str, ...]) -> str:
    """A system message with tools. tools: a JSON object each; without any, the message as it is."""
    if not tools:
        return system
    text = "\n".join(
        [
            "You can call these tools, one JSON object a line:",
            "<tools>",
            *tools,
            "</tools>",
            "Call one by writing:",
            written("NAME", {"PARAMETER": "VALUE"}),
        ]
    )
    return f"{system}\n\n{text}" if system else text


def written(name: str, arguments) -> str:
    """A call as text."""
    return f"{OPENED}\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n{CLOSED}"


def checked_tools(tools, where: str) -> tuple[str, ...]:
    """Each tool of OpenAI's list as JSON, with what it has. Raises UserError that begins with where: it is no such list."""
    if tools is None:
        return ()
    if isinstance(tools, str):  # as columns of Parquet have it
        try:
            tools = json.loads(tools or "[]")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: tools is no JSON ({error}); expected a list.") from None
    if not isinstance(tools, list | tuple):
        raise UserError(f"{where}: tools is a {type(tools).__name__}; expected a list.")
    names = [_function_name(tool, f"{where}: tool {i}") for i, tool in enumerate(tools, start=1)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: two tools have the name {name!r}; give each its own.")
    return tuple(json.dumps(tool, ensure_ascii=False) for tool in tools)


def _function_name(tool, where: str) -> str:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type", "function") != "function":
        raise UserError(
            f'{where} is {shorten(repr(tool), 80)}; expected {{"type": "function", "function": {{"name": ...}}}}.'
        )
    name = function.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{where} has the name {shorten(repr(name), 80)}; expected 1 to 64 letters, digits, _ and -.")
    parameters = function.get("parameters") or {}
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        raise UserError(
            f'{where} ({name}): parameters is no JSON schema of an object; expected {{"type": "object", ...}}.'
        )
    return name


def content_with(content, tool_calls, where: str):
    """The content of an assistant's message with its calls behind it, in OpenAI's form. Raises UserError that begins with
    where: what is no list of calls."""
    if not tool_calls:
        return content
    if not isinstance(tool_calls, list | tuple):
        raise UserError(f"{where}: tool_calls is a {type(tool_calls).__name__}; expected a list.")
    calls = [_call(call, f"{where}: tool call {i}") for i, call in enumerate(tool_calls, start=1)]
    return "\n".join([*([content] if content else []), *calls])


def _call(call, where: str) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f'{where} has no function; expected {{"function": {{"name": ..., "arguments": ...}}}}.')
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: arguments is no JSON ({error}); expected the text of an object.") from None
    if not isinstance(arguments, dict):
        raise UserError(f"{where}: arguments is {shorten(repr(arguments), 80)}; expected an object.")
    return written(function["name"], arguments)


def parsed(call: str) -> tuple[str, object] | None:
    """(name, arguments) of the inside of a call, in JSON or as NAME(TEXT); None: it is neither. Arguments are what JSON has,
    an object as a rule, or the text."""
    if match := _SHORT.fullmatch(call):
        return match[1], match[2]
    try:
        value = json.loads(call)
        return str(value["name"]), value["arguments"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def in_order(values, where: str) -> list:
    """Messages in OpenAI's form, with the results of tools in the order of their calls, as they are shown without ids.

    Raises UserError that begins with where: a result of a call that was not made."""
    ordered, ids, results = [], [], []
    for i, value in enumerate(values, start=1):
        role, answered = (value.get("role"), value.get("tool_call_id")) if isinstance(value, dict) else (None, None)
        if role == "tool" and answered is not None and ids:
            if answered not in ids:
                raise UserError(
                    f"{where}: message {i} (tool) has the tool_call_id {shorten(repr(answered), 80)}; the calls before it are:"
                    f" {', '.join(map(str, ids))}."
                )
            results.append(value)
            continue
        ordered, results = [*ordered, *_by_call(results, ids), value], []
        if role == "assistant":
            made = value.get("tool_calls")
            ids = [call.get("id") for call in made if isinstance(call, dict)] if isinstance(made, list | tuple) else []
    return [*ordered, *_by_call(results, ids)]


def _by_call(results: list[dict], ids: list) -> list[dict]:
    return sorted(results, key=lambda result: ids.index(result["tool_call_id"]))
