"""A prompt with its answers in tokens: each answer behind its prompt, as the one function of data/chat writes a conversation.

    prompt <|assistant|> answer <|end|>         of each answer; the tokens of the prompt are the same in all

Targets are the tokens of the answer and the token that ends it. What a format writes behind that token, as ChatML a line
break, is left out: so a sequence ends where a rollout ends, and a score is read at the end token.
"""

from typing import NamedTuple

import numpy as np

from gptjax.data.chat import Conversation
from gptjax.data.pairs.forms import Comparison
from gptjax.errors import UserError


class Example(NamedTuple):
    """A Comparison in tokens. Axes: K answers, T tokens of one."""

    sequences: tuple[np.ndarray, ...]  # [K] of int32 [T]
    targets: tuple[np.ndarray, ...]  # [K] of bool [T]: whether a token is one
    prompt_length: int
    score_K: np.ndarray  # float32
    margin: float
    label: int | None
    cut: int = 0  # sequences that were too long
    reference_K: np.ndarray | None = None  # float32: log-probabilities under a reference (posttrain/reference.py)


class TooLong(UserError):
    """A sequence is longer than model.context_length."""


class Encoder:
    """form: a data.chat.Format; tokenizer: with its control tokens; overflow: of data.chat_overflow."""

    def __init__(self, form, tokenizer, context_length: int, overflow: str):
        self.tokenizer = tokenizer
        self._form, self._length, self._overflow = form, context_length, overflow

    def __call__(self, comparison: Comparison, where: str) -> Example:
        """Raises UserError that begins with where: the format cannot write it, or writes the prompt otherwise before an
        answer; TooLong: it does not fit, or what is left of it does not."""
        prompt_L = self._form.prompt(comparison.prompt, self.tokenizer)
        written = [self._answer(prompt_L, (*comparison.prompt, *answer), where) for answer in comparison.answers]
        longest = max(len(token_T) for token_T, _ in written)
        cut = sum(len(token_T) > self._length for token_T, _ in written)
        if cut and self._overflow != "cut":
            raise TooLong(f"{where} has {longest:,} tokens, more than model.context_length={self._length:,}.")
        sequences, targets = zip(
            *((token_T[: self._length], is_target_T[: self._length]) for token_T, is_target_T in written)
        )
        differ = len(sequences) == 1 or len({token_T.tobytes() for token_T in sequences}) > 1
        if not all(is_target_T.any() for is_target_T in targets) or (cut and not differ):
            raise TooLong(f"{where}: nothing of its answers is left in {self._length:,} tokens.")
        score_K = np.array(comparison.scores, np.float32)
        return Example(sequences, targets, len(prompt_L), score_K, comparison.margin, comparison.label, cut)

    def _answer(self, prompt_L: np.ndarray, messages: tuple, where: str) -> tuple[np.ndarray, np.ndarray]:
        """(ids, whether each is a target), to the last target."""
        token_T, weight_T = self._form.render(Conversation(messages, where), self.tokenizer)
        if not np.array_equal(token_T[: len(prompt_L)], prompt_L):
            raise UserError(
                f"{where}: the chat format {self._form.name!r} writes a prompt otherwise when an answer follows; use another"
                " data.chat."
            )
        is_target_T = weight_T > 0
        is_target_T[: len(prompt_L)] = False  # also what the assistant has said in it
        end = last_target(is_target_T, where) + 1
        return token_T[:end], is_target_T[:end]


def last_target(is_target_T: np.ndarray, where: str) -> int:
    """Its place. Raises UserError: there is none."""
    if not is_target_T.any():
        raise UserError(f"{where} has an answer without a target, so that nothing is learnt of it; leave it out.")
    return int(np.flatnonzero(is_target_T)[-1])
