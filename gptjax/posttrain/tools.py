"""Tools that an assistant calls in the middle of its answer, for posttrain.rollouts: tokens in, tokens out.

A call stands in the assistant's turn, as ChatML models (Hermes, Qwen) write it, or shorter:

    <tool_call>{"name": "calculator", "arguments": {"expression": "12*3"}}</tool_call>
    <tool_call>calculator(12*3)</tool_call>

The turn ends as every turn does. A tool's turn with the result, and the beginning of the assistant's next one, are then
appended as the chat format writes them; what stood before is never encoded again. A wrong call is answered with what is
wrong with it.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Sequence

import numpy as np

from gptjax.data.chat import calls
from gptjax.data.chat.base import Format, Piece, control_id, encode
from gptjax.data.chat.conversation import Conversation, Message
from gptjax.data.tokenizers.base import Tokenizer
from gptjax.errors import UserError, choose, first_line, imported, shorten

TOOLS: dict[str, Callable[[str], str] | str] = {  # an expression or other text in, a text out
    "calculator": "gptjax.posttrain.calculator:calculate",
}


@dataclasses.dataclass(frozen=True)
class Responder:
    """Answers the calls at the end of a row: responder(token_L) is what follows them, or None where there are none."""

    form: Format
    tokenizer: Tokenizer
    tools: dict[str, Callable[[str], str]]

    def __call__(self, token_L) -> list[int] | None:
        """token_L: the prompt and the answer up to the end token of the assistant's turn."""
        text = self._turn(np.asarray(token_L))
        called = calls.CALL.findall(text)
        if not called:
            return None
        results = tuple(Message("tool", result_of(call, self.tools)) for call in called)
        return encode(self._behind_call(results), self.tokenizer, self.form.name).token_L.tolist()

    def _turn(self, token_L: np.ndarray) -> str:
        """The text between the last two control tokens, so that no call of a user's is taken for the assistant's; nothing
        where the row has not ended its turn."""
        if len(token_L) == 0 or token_L[-1] != self._end_id:
            return ""
        controls = np.flatnonzero(np.isin(token_L[:-1], list(self.tokenizer.special.values())))
        return self.tokenizer.decode(token_L[controls[-1] + 1 if len(controls) else 0 : -1])

    def _behind_call(self, results: tuple[Message, ...]) -> list[Piece]:
        """What the format writes behind the end token of a turn that results follow."""
        pieces = _merged(self.form.prompt_pieces((*_EXCHANGE, *results), self.tokenizer))
        n = len(self._until_end)
        if pieces[:n] != self._until_end:
            raise UserError(
                f"the chat format {self.form.name!r} writes a turn otherwise when a tool's follows; use one that does not,"
                " such as chatml."
            )
        return pieces[n:]

    @functools.cached_property
    def _until_end(self) -> list[Piece]:
        """The pieces of an exchange up to the token that ends the assistant's turn."""
        pieces = _merged(self.form.pieces(Conversation(_EXCHANGE, "a tool call"), self.tokenizer))
        stops = self.form.stop_ids(self.tokenizer)
        ends = [i for i, piece in enumerate(pieces) if piece.is_control and self._id(piece) in stops]
        if not ends:
            raise UserError(f"the chat format {self.form.name!r} ends no turn with a control token, as tools need.")
        return pieces[: ends[-1] + 1]

    @property
    def _end_id(self) -> int:
        return self._id(self._until_end[-1])

    def _id(self, piece: Piece) -> int:
        return control_id(piece.text, self.tokenizer, self.form.name)


_EXCHANGE = (Message("user", "?"), Message("assistant", "!"))


def _merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces without weights, neighbouring texts as one: what two renderings are compared by."""
    merged: list[Piece] = []
    for piece in pieces:
        if piece.is_control or not merged or merged[-1].is_control:
            if piece.is_control or piece.text:
                merged.append(Piece(piece.text, piece.is_control))
        else:
            merged[-1] = Piece(merged[-1].text + piece.text)
    return merged


def responder(names: Sequence[str], form: Format, tokenizer: Tokenizer) -> Responder:
    """Of tools by name, or "module:function" of your own. Raises UserError: no such tool, a format without tools' turns."""
    made = Responder(form, tokenizer, {name.rpartition(":")[2]: function(name) for name in names})
    made._behind_call((Message("tool", "0"),))  # the format can write it
    return made


def function(name: str, key: str = "rl.tools") -> Callable[[str], str]:
    """A tool by its name, or "module:function". key: what named it. Raises UserError: there is none."""
    tool = name if ":" in name else choose(TOOLS, name, key)
    tool = imported(tool, f"{key}={name!r}") if isinstance(tool, str) else tool
    if not callable(tool):
        raise UserError(f"{key}={name!r} is a {type(tool).__name__}; expected a function from text to text.")
    return tool


def schema(name: str, tool: Callable[[str], str]) -> dict:
    """A tool as OpenAI's `tools` describe it: by the first paragraph of its docstring and the name of its parameter."""
    parameter = next(iter(inspect.signature(tool).parameters), "text")
    described = " ".join((inspect.getdoc(tool) or "").partition("\n\n")[0].split())
    properties = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
    return {"type": "function", "function": {"name": name, "description": described, "parameters": properties}}


def result_of(call: str, tools: dict[str, Callable[[str], str]]) -> str:
    """What a tool says to the inside of a <tool_call>, or what is wrong with the call, as a text."""
    parsed = parsed_call(call)
    if parsed is None:
        return "error: the call is neither JSON with name and arguments nor NAME(ARGUMENT)"
    name, argument = parsed
    if name not in tools:
        return f"error: no tool {shorten(name, 40)}; there are: {', '.join(tools)}"
    try:
        result = tools[name](argument)
    except UserError as error:
        return f"error: {first_line(error)}"
    except Exception as error:  # of a tool of the user's own: the assistant is told, as of any other wrong call
        return f"error: {type(error).__name__}: {first_line(error)}"
    if not isinstance(result, str):
        raise UserError(f"the tool {name!r} gave {shorten(repr(result), 40)}, no text; have it give a str.")
    return result


def parsed_call(call: str) -> tuple[str, str] | None:
    """(name, argument) of a call; None: it is not one. Of several arguments in JSON the first is taken."""
    name, arguments = calls.parsed(call) or (None, {})
    if isinstance(arguments, dict):
        if not arguments:
            return None
        arguments = next(iter(arguments.values()))
    return None if name is None else (name, str(arguments))
