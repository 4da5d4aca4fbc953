"""Tools that an answer may call, in OpenAI's form: what a request asks for, and calls read from the text of an answer.

    use = of_request(tools, tool_choice, parallel_tool_calls)         # None: without tools
    messages = parse_messages(values, "messages", use.described)      # of data.chat
    constraint = use.constraint(tokenizer, stop_ids)                  # where the answer has to be a call, or calls are strict
    reader = use.reader()
    for part in reader.feed(text): ...                                # str or Call, as the text comes
    for part in reader.end(): ...

How tools and calls are written is data.chat.calls', in training as here. A call is handed on when it is whole: only then it
is known to be one. What is none, as of a tool that there is not, stays text. Spaces around calls are no text.
"""

import dataclasses
import json
import uuid
from typing import NamedTuple

from gptjax.data.chat import calls
from gptjax.data.tokenizers import Tokenizer
from gptjax.errors import UserError, did_you_mean, shorten
from gptjax.serve import constraints

CHOICES = ("none", "auto", "required")


class Call(NamedTuple):
    id: str
    name: str
    arguments: str  # a JSON object

    def as_openai(self) -> dict:
        """As a message has it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclasses.dataclass(frozen=True)
class ToolUse:
    """What a request lets an answer call."""

    described: tuple[str, ...]  # the tools as JSON, as the model is told of them
    parameters_of: dict[str, dict]  # {name: JSON schema of its arguments}
    strict: frozenset[str]  # those whose arguments are kept to their schema
    required: tuple[str, ...]  # the answer is a call of one of these; (): it may be
    parallel: bool  # whether it may be several

    def constraint(self, tokenizer: Tokenizer, eot_ids) -> constraints.Constraint | None:
        """None: the answer is free. Raises UserError: a schema that cannot be kept to."""
        if not self.required and not self.strict:
            return None
        for name in self._called:
            constraints.check_schema(self._schema(name), f"tools: {name}: parameters")
        return constraints.of_grammar(tokenizer, eot_ids, self._grammar(), "tools")

    def reader(self) -> "CallReader":
        return CallReader(self.parameters_of, self.parallel)

    def _grammar(self) -> str:
        """Calls alone where they are required; else text in which what begins a call goes on as one."""
        opened = constraints.literal(calls.OPENED)
        if self.required:
            lines = ['start: called ("\\n" called)*' if self.parallel else "start: called", f"called: {opened} rest"]
        else:
            lines = ["start: (before rest)* TEXT", "TEXT: /(.|\\n)*/", f"before[lazy]: TEXT {opened}"]
        lines.append(f"rest: {' | '.join(f'call_{i}' for i in range(len(self._called)))}")
        for i, name in enumerate(self._called):
            before, after = calls.written(name, None).removeprefix(calls.OPENED).rsplit("null", 1)
            lines.append(f"call_{i}: {constraints.literal(before)} arguments_{i} {constraints.literal(after)}")
            lines.append(f"arguments_{i}: %json {json.dumps(self._schema(name))}")
        return "\n".join(lines)

    @property
    def _called(self) -> tuple[str, ...]:
        return self.required or tuple(self.parameters_of)

    def _schema(self, name: str) -> dict:
        kept = self.required or name in self.strict
        return constraints.as_kept({"type": "object"} | (self.parameters_of[name] if kept else {}))


def of_request(tools=None, tool_choice=None, parallel_tool_calls=None) -> ToolUse | None:
    """None: no tools, or none that may be called. Raises UserError that begins with the name of the field."""
    described = calls.checked_tools(tools, "tools")
    if not described:
        if tool_choice not in (None, "none"):
            raise UserError(f"tool_choice={shorten(repr(tool_choice), 80)} without tools; give tools, or leave it out.")
        return None
    functions = [json.loads(tool)["function"] for tool in described]
    parameters_of = {each["name"]: each.get("parameters") or {"properties": {}} for each in functions}
    required = _required(tool_choice, list(parameters_of))
    if required is None:
        return None
    strict = frozenset(each["name"] for each in functions if each.get("strict") is True)
    return ToolUse(described, parameters_of, strict, required, parallel_tool_calls is not False)


def _required(tool_choice, names: list[str]) -> tuple[str, ...] | None:
    """The tools of which one has to be called; (): none has to; None: none may."""
    if tool_choice is None or tool_choice in CHOICES:
        return {"none": None, "required": tuple(names)}.get(tool_choice, ())
    function = tool_choice.get("function") if isinstance(tool_choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str):
        raise UserError(
            f"tool_choice={shorten(repr(tool_choice), 80)}; expected one of: {', '.join(CHOICES)}, or"
            ' {"type": "function", "function": {"name": NAME}}.'
        )
    if name not in names:
        near = did_you_mean(name, names)
        raise UserError(f"tool_choice names {shorten(repr(name), 80)}{near}; the tools are: {', '.join(names)}.")
    return (name,)


class CallReader:
    """Reads along with an answer. `calls`: those that were found so far."""

    def __init__(self, parameters_of: dict[str, dict], parallel: bool = True):
        self.calls: list[Call] = []
        self._parameters_of, self._parallel = parameters_of, parallel
        self._held = ""  # what may begin a call, or stand before one
        self._behind_call = False  # whether what is held follows a call

    def feed(self, text: str) -> list[str | Call]:
        """What is certain by now, in order."""
        self._held += text
        parts = []
        while (opened := self._held.find(calls.OPENED)) >= 0:
            closed = self._held.find(calls.CLOSED, opened)
            if closed < 0:
                break
            end = closed + len(calls.CLOSED)
            call = self._call(self._held[opened + len(calls.OPENED) : closed])
            parts += [self._held[:end]] if call is None else [self._held[:opened].rstrip(), call]
            self._held, self._behind_call = self._held[end:], call is not None
        certain = self._held[: _certain(self._held)]
        self._held = self._held[len(certain) :]
        self._behind_call = self._behind_call and not certain
        return [part for part in [*parts, certain] if part]

    def end(self) -> list[str | Call]:
        """What was held back, now that nothing follows."""
        left, self._held = self._held, ""
        return [left] if left.strip() or (left and not self._behind_call) else []

    def _call(self, inside: str) -> Call | None:
        if self.calls and not self._parallel:
            return None
        name, arguments = calls.parsed(inside) or (None, None)
        if name not in self._parameters_of:
            return None
        if isinstance(arguments, str):  # the short form, of a tool with one parameter
            parameter = _only_parameter(self._parameters_of[name])
            arguments = None if parameter is None else {parameter: arguments}
        if not isinstance(arguments, dict):
            return None
        call = Call(f"call_{uuid.uuid4().hex[:24]}", name, json.dumps(arguments, ensure_ascii=False))
        self.calls.append(call)
        return call


def _certain(text: str) -> int:
    """Characters before what may become a call, with the spaces before that."""
    opened = text.find(calls.OPENED)
    if opened < 0:
        sizes = (n for n in range(1, len(calls.OPENED)) if text.endswith(calls.OPENED[:n]))
        opened = len(text) - max(sizes, default=0)
    return len(text[:opened].rstrip())


def _only_parameter(schema: dict) -> str | None:
    properties = schema.get("properties")
    names = schema.get("required") or (list(properties) if isinstance(properties, dict) else [])
    return names[0] if isinstance(names, list) and len(names) == 1 else None
