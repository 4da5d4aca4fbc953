"""A format written in Jinja: the chat_template of a tokenizer of Hugging Face, or one of your own.

The names of control tokens in the template's own text become these tokens; in the text of messages they do not, whereas
transformers has them do it unless it is asked not to (sanitize_control_tokens). For messages that spell none, ids are those
of transformers' apply_chat_template but for what base.py says of the beginning of answers.

What an assistant said is inside `{% generation %}` in the template; where the template has none, it is what stands between
the prompt of the messages before it and its last control token, and a template that does not write a conversation as its
beginning and more is refused.

A template that names `tools` and writes calls as calls.py does is given the tools, to describe in its own words.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator

from gptjax.data.chat import calls, environment, marking
from gptjax.data.chat.base import Format, Piece, control_id
from gptjax.data.chat.conversation import Conversation, Message
from gptjax.data.tokenizers.base import Tokenizer
from gptjax.data.tokenizers.symbols import NAME
from gptjax.errors import UserError

_KNOWS_TOOLS = re.compile(rf"(?s)(?=.*\btools\b).*{calls.OPENED}")
_HAS_SPANS = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
Span = tuple[int, int]  # [start, end) in characters of a marked text


@dataclasses.dataclass(frozen=True)
class TemplateFormat(Format):
    """variables: special tokens by the names that templates have for them, such as bos_token; None: the tokenizer's own."""

    name: str
    template: str
    variables: tuple[tuple[str, str], ...] | None = None

    @property
    def symbols(self) -> tuple[str, ...]:
        """The names <|NAME|> in a template that came without a tokenizer; else its tokenizer has what it needs."""
        return tuple(dict.fromkeys(NAME.findall(self.template))) if self.variables is None else ()

    def pieces(self, conversation: Conversation, tokenizer: Tokenizer) -> list[Piece]:
        try:
            text = _Text(self, conversation.messages, tokenizer)
            spans = self._spans(text)
        except UserError as error:
            raise UserError(f"{conversation.where}: {error}") from error
        weights = [message.loss_weight for message in conversation.messages if message.role == "assistant"]
        return text.pieces(list(zip(spans, weights)))

    def prompt_pieces(self, messages: tuple[Message, ...], tokenizer: Tokenizer) -> list[Piece]:
        return _Text(self, messages, tokenizer, is_prompt=True).pieces([])

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The control token that the template writes behind an answer, and the end of documents. Raises UserError: it
        writes no answer."""
        text = _Text(self, (Message("user", "?"), Message("assistant", "!")), tokenizer)
        if "!" not in text.marked:
            raise UserError(
                f"the chat template {self.name!r} does not write the text of an answer; write message.content of each of"
                " messages in it."
            )
        answer_end = text.marked.rindex("!") + 1
        after = next((p for end, p in text.parts() if p.is_control and end > answer_end), None)
        ids = [] if after is None else [control_id(after.text, tokenizer, self.name)]
        return tuple(dict.fromkeys(i for i in (*ids, tokenizer.eot_id) if i is not None))

    def special_variables(self, tokenizer: Tokenizer) -> dict[str, str]:
        if self.variables is not None:
            return dict(self.variables)
        name_of = {i: name for name, i in reversed(tokenizer.special.items())}
        ends = {"bos_token": tokenizer.bos_id, "eos_token": tokenizer.eot_id}
        return {variable: name_of[i] for variable, i in ends.items() if i is not None}

    def _spans(self, text: "_Text") -> list[Span]:
        """Of what each assistant's message is in the text. Raises UserError: the template does not say."""
        assistants = [i for i, message in enumerate(text.messages) if message.role == "assistant"]
        if not _HAS_SPANS.search(self.template):
            return [self._span_by_prefixes(text, i) for i in assistants]
        if len(text.generated) != len(assistants):
            raise UserError(
                f"the chat template {self.name!r} has {len(text.generated)} {{% generation %}} blocks for"
                f" {len(assistants)} assistant's messages; put one around each answer and its end token."
            )
        return text.generated

    def _span_by_prefixes(self, text: "_Text", i: int) -> Span:
        start, end = len(text.before(i, is_prompt=True)), len(text.before(i + 1))
        same = text.marked.startswith(text.before(i, is_prompt=True)) and text.marked.startswith(text.before(i + 1))
        if not same or end <= start:
            raise UserError(
                f"the chat template {self.name!r} writes what stands before message {i + 1} otherwise when more follow, so"
                " that it does not show what the assistant said; put {% generation %} ... {% endgeneration %} around the"
                " answer and its end token in the template."
            )
        controls = [part_end for part_end, piece in text.parts() if piece.is_control and start < part_end <= end]
        return start, max(controls, default=end)


class _Text:
    """Messages as a template writes them, with the marks of marking.py in what they spell."""

    def __init__(self, form: TemplateFormat, messages: tuple[Message, ...], tokenizer: Tokenizer, is_prompt=False):
        self.messages, tools = _shown(form.template, messages)
        self._form, self._names = form, marking.names_of(tuple(tokenizer.special))
        self._marks = environment.unused_marks([form.template, *tools, *(message.content for message in self.messages)])
        self._variables = {"tools": [self._marked(json.loads(tool)) for tool in tools] or None}
        self._variables |= form.special_variables(tokenizer)
        self._values = [
            {"role": m.role, "content": marking.marked(m.content, self._names, self._marks.parted)}
            for m in self.messages
        ]
        self._before = {}
        self.marked, self.generated = self._render(len(self.messages), is_prompt)

    def _marked(self, value):
        """A JSON value with the marks in all of its texts."""
        if isinstance(value, dict):
            return {self._marked(key): self._marked(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._marked(inner) for inner in value]
        return marking.marked(value, self._names, self._marks.parted) if isinstance(value, str) else value

    def before(self, i: int, is_prompt: bool = False) -> str:
        """The first i messages alone."""
        if (i, is_prompt) not in self._before:
            self._before[i, is_prompt] = self._render(i, is_prompt)[0]
        return self._before[i, is_prompt]

    def parts(self) -> Iterator[tuple[int, Piece]]:
        return marking.parts(self.marked, self._names, self._marks.parted)

    def pieces(self, weighted: list[tuple[Span, float]]) -> list[Piece]:
        """Cut where answers begin, each with the weight of its span."""
        cuts = {start for start, _ in self.generated} | self._prompt_ends()
        edges = sorted(cuts | {edge for span, _ in weighted for edge in span})
        pieces, start = [], 0
        for end, piece in self.parts():
            inner = [edge for edge in edges if start < edge < end and not piece.is_control]
            for first, last in itertools.pairwise([start, *inner, end]):
                text = piece.text if piece.is_control else piece.text[first - start : last - start]
                weight = _weight_of(first, last, weighted)
                pieces.append(Piece(text, piece.is_control, weight, begins_answer=first in cuts))
            start = end
        return pieces

    def _prompt_ends(self) -> set[int]:
        """Where the prompts that the text begins with end, so that what generation continues is a prefix in tokens too."""
        answers = [i for i, message in enumerate(self.messages) if i and message.role == "assistant"]
        prompts = [self.before(i, is_prompt=True) for i in answers]
        return {len(prompt) for prompt in prompts if self.marked.startswith(prompt)}

    def _render(self, count: int, is_prompt: bool) -> tuple[str, list[Span]]:
        values = {"messages": self._values[:count], "documents": None}
        values |= {"add_generation_prompt": is_prompt} | self._variables
        return environment.rendered(self._form.template, self._marks, values)


def _shown(template: str, messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """(messages as the template is given them, tools for it to describe)."""
    first = messages[0] if messages else None
    if first is None or not first.tools:
        return messages, ()
    if not _KNOWS_TOOLS.match(template):
        return (first._replace(content=calls.described(first.content, first.tools), tools=()), *messages[1:]), ()
    return (messages if first.content else messages[1:]), first.tools


def _weight_of(start: int, end: int, weighted: list[tuple[Span, float]]) -> float:
    return max((weight for (first, last), weight in weighted if first < end and start < last), default=0.0)
