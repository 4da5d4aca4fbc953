"""The named formats: turns that open and close with control tokens, and the same in Jinja, for transformers.

gptjax      <|user|>Hello<|end|><|assistant|>Hi<|end|>, after the token that documents begin after
chatml      <|im_start|>user\\nHello<|im_end|>\\n, as Qwen and others have it
smollm2     ChatML with the system message of SmolLM2-Instruct where there is none
llama3      <|start_header_id|>user<|end_header_id|>\\n\\nHello<|eot_id|>, contents without spaces at both ends
"""

import dataclasses
from collections.abc import Iterable

from gptjax.data.chat import calls
from gptjax.data.chat.base import Format, Piece, control_id
from gptjax.data.chat.conversation import Conversation, Message
from gptjax.data.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class TurnFormat(Format):
    """Each turn opens, has its content, and closes with `end`, which is a target in an assistant's turn."""

    name: str
    symbols: tuple[str, ...]
    template: str
    opening: tuple[str, ...]  # of a turn: control tokens and texts, in which ROLE stands for the role
    end: str
    after: str = ""  # text behind the end token
    begins_after_bos: bool = False
    strips: bool = False  # contents of spaces at both ends
    default_system: str | None = None  # where a conversation has no system message

    def pieces(self, conversation: Conversation, tokenizer: Tokenizer) -> list[Piece]:
        return [*self._start(tokenizer), *self._turns(conversation.messages)]

    def prompt_pieces(self, messages: tuple[Message, ...], tokenizer: Tokenizer) -> list[Piece]:
        return [*self._start(tokenizer), *self._turns(messages), *self._opening("assistant")]

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        end_of_turn = control_id(self.end, tokenizer, self.name)
        return tuple(dict.fromkeys(i for i in (end_of_turn, tokenizer.eot_id) if i is not None))

    def jinja(self, tokenizer: Tokenizer) -> str:
        """With the name of what documents begin after, which transformers may have no bos_token for."""
        name = "".join(piece.text for piece in self._start(tokenizer))
        return self.template.replace(_BOS, f"{{{{ {name!r} }}}}" if name else "")

    def _start(self, tokenizer: Tokenizer) -> list[Piece]:
        if not self.begins_after_bos or tokenizer.bos_id is None:
            return []
        return [Piece(next(name for name, i in tokenizer.special.items() if i == tokenizer.bos_id), is_control=True)]

    def _turns(self, messages: Iterable[Message]) -> Iterable[Piece]:
        for message in self._with_default_system(tuple(messages)):
            yield from self._opening(message.role)
            content = calls.described(message.content, message.tools)
            content = content.strip() if self.strips else content
            is_answer = message.role == "assistant"
            yield Piece(content, weight=message.loss_weight, begins_answer=is_answer)
            yield Piece(self.end, is_control=True, weight=message.loss_weight)
            yield Piece(self.after)

    def _with_default_system(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        """Also where a system message is there for its tools alone."""
        first = messages[0] if messages and messages[0].role == "system" else None
        if self.default_system is None or (first is not None and (first.content or not first.tools)):
            return messages
        if first is None:
            return (Message("system", self.default_system), *messages)
        return (first._replace(content=self.default_system), *messages[1:])

    def _opening(self, role: str) -> Iterable[Piece]:
        for part in self.opening:
            written = part.replace("ROLE", role)
            yield Piece(written, is_control=written in self.symbols)


_BOS = "{{ bos_token if bos_token is defined else '' }}"
GPTJAX = TurnFormat(
    "gptjax",
    symbols=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>"),
    opening=("<|ROLE|>",),
    end="<|end|>",
    begins_after_bos=True,
    template=_BOS
    + """\
{% for message in messages %}{{ '<|' + message['role'] + '|>' }}\
{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}\
{% else %}{{ message['content'] + '<|end|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}""",
)

_CHATML_TURNS = """\
{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}{% generation %}\
{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}\
{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

CHATML = TurnFormat(
    "chatml",
    symbols=("<|im_start|>", "<|im_end|>"),
    opening=("<|im_start|>", "ROLE\n"),
    end="<|im_end|>",
    after="\n",
    template="{% for message in messages %}" + _CHATML_TURNS,
)

_SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # of its chat_template
SMOLLM2 = dataclasses.replace(
    CHATML,
    name="smollm2",
    default_system=_SMOLLM2_SYSTEM,
    template="{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    f"{{{{ '<|im_start|>system\\n{_SMOLLM2_SYSTEM}<|im_end|>\\n' }}}}"
    "{% endif %}" + _CHATML_TURNS,
)

LLAMA3 = TurnFormat(
    "llama3",
    symbols=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    opening=("<|start_header_id|>", "ROLE", "<|end_header_id|>", "\n\n"),
    end="<|eot_id|>",
    begins_after_bos=True,
    strips=True,
    template=_BOS
    + """\
{% for message in messages %}\
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}{% if message['role'] == 'assistant' %}\
{% generation %}{{ message['content'] | trim + '<|eot_id|>' }}{% endgeneration %}\
{% else %}{{ message['content'] | trim + '<|eot_id|>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}""",
)
