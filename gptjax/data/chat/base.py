"""What formats have in common: a conversation as pieces of text and control tokens, and these as tokens and weights.

Text between two control tokens is encoded as one, as transformers encodes it, whoever wrote the parts of it; so the same
text has the same ids in both. It is cut in one place more: where an assistant's answer begins. So a prompt is always a
prefix of the conversation with its answer, token for token. ids differ from transformers' only in answers whose first
characters would merge with the template's last before them, as blank lines after ChatML's "assistant\\n".
"""

import abc
from typing import NamedTuple

import numpy as np

from gptjax.data.chat.conversation import Conversation, Message
from gptjax.data.tokenizers.base import Tokenizer
from gptjax.errors import UserError


class Rendered(NamedTuple):
    token_L: np.ndarray  # int32
    weight_L: np.ndarray  # float32: of each token as a target of the loss; 0: it is none


class Piece(NamedTuple):
    """A control token by its name, or text, or tokens. begins_answer: no token may reach across its start."""

    text: str
    is_control: bool = False
    weight: float = 0.0
    begins_answer: bool = False
    tokens: tuple[int, ...] | None = None


class Format(abc.ABC):
    """How a conversation is written in tokens."""

    name: str  # as chat_format takes it
    symbols: tuple[str, ...]  # control tokens that a tokenizer has to have, or be given by with_special
    template: str  # its Jinja form, for transformers

    @abc.abstractmethod
    def pieces(self, conversation: Conversation, tokenizer: Tokenizer) -> list[Piece]:
        """The whole conversation. Raises UserError that begins with conversation.where: it cannot be written so."""

    @abc.abstractmethod
    def prompt_pieces(self, messages: tuple[Message, ...], tokenizer: Tokenizer) -> list[Piece]:
        """The messages, and the beginning of the assistant's turn."""

    def jinja(self, tokenizer: Tokenizer) -> str:
        """template, for the files of a tokenizer that transformers loads."""
        return self.template

    @abc.abstractmethod
    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """The tokens that end an assistant's turn, each alone."""

    def render(self, conversation: Conversation, tokenizer: Tokenizer) -> Rendered:
        """Raises UserError that begins with conversation.where: the conversation cannot be written so."""
        return encode(self.pieces(conversation, tokenizer), tokenizer, self.name)

    def prompt(self, messages: tuple[Message, ...], tokenizer: Tokenizer) -> np.ndarray:
        """int32 [L]: what generation continues, a prefix of the token_L of the same messages with an answer."""
        pieces = with_drawn_tokens(self.prompt_pieces(tuple(messages), tokenizer), messages)
        return encode(pieces, tokenizer, self.name).token_L


def with_drawn_tokens(pieces: list[Piece], messages) -> list[Piece]:
    """pieces with the tokens that a model drew in place of the texts of its answers, which encoded anew may have others.

    An answer that a template writes otherwise than it was said stays text.
    """
    answers = [message for message in messages if message.role == "assistant"]
    starts = [i for i, piece in enumerate(pieces) if piece.begins_answer and not piece.is_control]
    if len(answers) != len(starts):
        return pieces
    pieces = list(pieces)
    for start, answer in reversed(list(zip(starts, answers))):
        end = next((i for i in range(start, len(pieces)) if pieces[i].is_control), len(pieces))
        text = "".join(piece.text for piece in pieces[start:end])
        written = next((form for form in (answer.content, answer.content.strip()) if text.startswith(form)), None)
        if answer.tokens is not None and written is not None:
            pieces[start:end] = [Piece("", tokens=answer.tokens), Piece(text[len(written) :])]
    return pieces


def encode(pieces: list[Piece], tokenizer: Tokenizer, format_name: str) -> Rendered:
    """Tokens of pieces in order, each with the largest weight of the pieces it spells a part of."""
    tokens, weights, run = [np.zeros(0, np.int32)], [np.zeros(0, np.float32)], []
    for piece in _without_swallowed_spaces(pieces, tokenizer):
        if piece.is_control or piece.begins_answer or piece.tokens is not None:
            _encode_run(run, tokenizer, tokens, weights)
            run = []
        if piece.tokens is not None:
            tokens.append(piece.tokens)
            weights.append([piece.weight] * len(piece.tokens))
        elif piece.is_control:
            tokens.append([control_id(piece.text, tokenizer, format_name)])
            weights.append([piece.weight])
        elif piece.text:
            run.append(piece)
    _encode_run(run, tokenizer, tokens, weights)
    return Rendered(np.concatenate(tokens).astype(np.int32), np.concatenate(weights).astype(np.float32))


def _without_swallowed_spaces(pieces: list[Piece], tokenizer: Tokenizer) -> list[Piece]:
    """pieces without the spaces that control tokens of a tokenizer.json take in, as `tokenizers` matches them."""
    if not tokenizer.strips:
        return pieces
    pieces = list(pieces)
    for i, piece in enumerate(pieces):
        if piece.is_control:
            before, behind = tokenizer.strips.get(piece.text, (False, False))
            _strip(pieces, range(i - 1, -1, -1) if before else (), str.rstrip)
            _strip(pieces, range(i + 1, len(pieces)) if behind else (), str.lstrip)
    return pieces


def _strip(pieces: list[Piece], places, strip) -> None:
    """Takes spaces from the texts at places, as far as there is nothing but spaces."""
    for i in places:
        if pieces[i].is_control or pieces[i].tokens is not None:
            return
        pieces[i] = pieces[i]._replace(text=strip(pieces[i].text))
        if pieces[i].text:
            return


def control_id(name: str, tokenizer: Tokenizer, format_name: str) -> int:
    """Raises UserError: the tokenizer has no such symbol."""
    if name not in tokenizer.special:
        raise UserError(
            f"the tokenizer {tokenizer.kind!r} has no control token {name}, which the chat format {format_name!r} writes;"
            " use a format that fits the model, or train with this one."
        )
    return tokenizer.special[name]


def _encode_run(run: list[Piece], tokenizer: Tokenizer, tokens: list, weights: list) -> None:
    """Appends the tokens and weights of neighbouring texts, which are encoded together."""
    if not run:
        return
    token_L = tokenizer.encode("".join(piece.text for piece in run))
    tokens.append(token_L)
    if len({piece.weight for piece in run}) == 1:
        weights.append(np.full(len(token_L), run[0].weight, np.float32))
        return
    piece_end_P = np.cumsum([len(piece.text.encode()) for piece in run])
    token_end_L = np.cumsum(tokenizer.token_bytes[token_L])
    first_L = np.searchsorted(piece_end_P, token_end_L - tokenizer.token_bytes[token_L], side="right")
    last_L = np.searchsorted(piece_end_P, token_end_L, side="left")
    weight_P = [piece.weight for piece in run]
    weights.append([max(weight_P[first : last + 1]) for first, last in zip(first_L, last_L)])
