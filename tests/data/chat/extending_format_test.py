"""A chat format from outside: one class and one entry of text_kinds.FORMATS."""

import numpy as np

from gptjax.config import text_kinds
from gptjax.data import tokenizers
from gptjax.data.chat import Conversation, Format, Message, chat_format
from gptjax.data.chat.base import Piece


class Lines(Format):
    """A line for each message; an answer begins with > and ends with end-of-text."""

    name, symbols, template = "lines", (), ""

    def pieces(self, conversation, tokenizer):
        for message in conversation.messages:
            if message.role != "assistant":
                yield Piece(f"{message.content}\n")
                continue
            yield from (Piece(">"), Piece(message.content, weight=message.loss_weight, begins_answer=True))
            yield Piece("<|endoftext|>", is_control=True, weight=message.loss_weight)

    def prompt_pieces(self, messages, tokenizer):
        return [*self.pieces(Conversation(messages, "prompt"), tokenizer), Piece(">")]

    def stop_ids(self, tokenizer):
        return (tokenizer.eot_id,)


def test_a_format_from_outside_is_chosen_by_name(monkeypatch):
    monkeypatch.setitem(text_kinds.FORMATS, "lines", Lines())
    tokenizer, messages = tokenizers.from_spec("bytes"), (Message("user", "q"), Message("assistant", "a"))
    token_L, weight_L = chat_format("lines").render(Conversation(messages, "here"), tokenizer)
    assert token_L.tolist() == [*b"q\n>a", 256] and np.flatnonzero(weight_L).tolist() == [3, 4]
    assert chat_format("lines").prompt(messages[:1], tokenizer).tolist() == [*b"q\n>"]
