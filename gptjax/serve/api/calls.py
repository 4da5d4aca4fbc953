"""Tools in a conversation: what of a body concerns them, and answers parted into text and calls, also while they come."""

from gptjax.errors import UserError
from gptjax.serve.api import answering, bodies, work
from gptjax.serve.api.faults import wrong


def of_body(served, body: bodies.ChatBody):
    """The tool_calls.ToolUse of a body; None: it has no tools. Raises ApiError: tools that are none, a choice without tools."""
    if not body.tools and body.tool_choice in (None, "none", "auto"):
        return None
    from gptjax.serve import tool_calls

    try:
        return tool_calls.of_request(body.tools, body.tool_choice, body.parallel_tool_calls)
    except UserError as error:
        raise wrong(str(error), "tool_choice" if str(error).startswith("tool_choice") else "tools") from None


def constraint_of(served, body: bodies.ChatBody, tools, stop_ids: tuple[int, ...]):
    """Makes the Constraint of one answer, None if it is free. Raises ApiError: a form that is none, or that keeps it from calling."""
    shaped = work.constraint_of(served, body, stop_ids)
    if tools is None:
        return shaped
    called = work.constrained(lambda: tools.constraint(served.run.tokenizer, work.ends(served, stop_ids)), "tools")
    if called() is None:
        return shaped
    if shaped() is not None:
        raise wrong("a call that is required, or strict, goes with no other form of the text; leave one out.", "tools")
    return called


def reason(of_text: str) -> str:
    """The finish_reason of an answer that calls, for that of its text."""
    return of_text if of_text == answering.FILTERED else "tool_calls"


class Deltas:
    """What a stream says of an answer, piece by piece. tools: a tool_calls.ToolUse; None: all of it is text."""

    def __init__(self, tools):
        self._reader, self.called = None if tools is None else tools.reader(), 0

    def feed(self, piece: str) -> list[dict]:
        if self._reader is None:
            return [{"content": piece}] if piece else []
        return [self._of(part) for part in self._reader.feed(piece)]

    def finish(self) -> list[dict]:
        """The deltas of what was held back."""
        return [] if self._reader is None else [self._of(part) for part in self._reader.end()]

    def _of(self, part) -> dict:
        if isinstance(part, str):
            return {"content": part}
        index, self.called = self.called, self.called + 1
        return {"tool_calls": [{"index": index} | part.as_openai()]}


def parsed(tools, text: str) -> tuple[str | None, list[dict]]:
    """(content, tool_calls) of a whole answer; no content where it has calls alone."""
    reader = tools.reader()
    parts = [*reader.feed(text), *reader.end()]
    content = "".join(part for part in parts if isinstance(part, str))
    made = [part.as_openai() for part in parts if not isinstance(part, str)]
    return (content or None) if made else content, made
