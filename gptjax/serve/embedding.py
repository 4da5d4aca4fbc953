"""Texts that somebody waits for as vectors (generation.embedding), made a few at a time beside the texts of others.

L: tokens of a text.
"""

import concurrent.futures

import numpy as np

from gptjax.errors import UserError
from gptjax.generation.embedding import MOST, embed


class Request:
    """Texts that somebody waits for, embedded a few at a time."""

    def __init__(self, texts: list[np.ndarray]):
        self.future, self.finished = concurrent.futures.Future(), False
        self._texts, self._parts = texts, []

    def advance(self, engine) -> None:
        """Embeds the next MOST of them; the last settle the future. One that was cancelled is given up."""
        if self.future.cancelled():
            self.finished = True
            return
        first = len(self._parts) * MOST
        self._parts.append(embed(engine, self._texts[first : first + MOST]))
        if first + MOST >= len(self._texts):
            self._settle(lambda: self.future.set_result(np.concatenate(self._parts)))

    def fail(self, error: Exception) -> None:
        self._settle(lambda: self.future.set_exception(error))

    def _settle(self, settle) -> None:
        """Until here it can be cancelled: a future that says that it runs cannot."""
        if not self.finished and self.future.set_running_or_notify_cancel():
            settle()
        self.finished = True


def check(token_lists, config) -> list[np.ndarray]:
    """int32 [L] of each. Raises UserError: no text, no tokens, more than the context, ids that are none."""
    texts = [np.asarray(tokens) for tokens in token_lists]
    if not texts:
        raise UserError("there is no text to embed; expected at least one.")
    for token_L in texts:
        if token_L.ndim != 1 or token_L.size == 0 or token_L.dtype.kind not in "iu":
            raise UserError(f"{token_L.dtype} of shape {token_L.shape} is no text to embed; expected token ids [L].")
        if len(token_L) > config.context_length:
            raise UserError(f"a text to embed has {len(token_L)} tokens; expected at most {config.context_length}.")
        outside = token_L[(token_L < 0) | (token_L >= config.vocab_size)]
        if outside.size:
            raise UserError(f"token id {outside[0]} is outside the vocabulary; expected 0 to {config.vocab_size - 1}.")
    return [token_L.astype(np.int32) for token_L in texts]
