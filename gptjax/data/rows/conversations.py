"""Rows of whole conversations, each token with its weight as a target (shards.Tokens.weights).

    data.chat_loss        which of a conversation's tokens are targets: text_kinds.CHAT_LOSSES
    data.chat_overflow    what becomes of one that is longer than a row: drop | cut | refuse

A row of model.context_length T holds conversations of T + 1 tokens or fewer. In training they share rows by best fit
(`packing`); held-out ones lie in rows in their order. Nothing is left out silently: `Overflow` counts it and says it.
"""

import functools
from typing import NamedTuple

import numpy as np

from gptjax.config import text_kinds
from gptjax.data.rows import packing
from gptjax.data.rows.packing import Batch, BestFitRows
from gptjax.data.tokens.cache import cache_folder
from gptjax.data.tokens.shards import Tokens
from gptjax.errors import UserError, imported

# ---- which tokens are targets


def assistant(weight_L: np.ndarray) -> np.ndarray:
    """float32 [L]: the weights of a conversation's tokens as they were prepared."""
    return weight_L


def last_answer(weight_L: np.ndarray) -> np.ndarray:
    """float32 [L]: the weights of the last run of targets; elsewhere 0."""
    target_K = np.flatnonzero(weight_L)
    before_K = np.flatnonzero(np.diff(target_K) > 1)
    first = target_K[before_K[-1] + 1] if len(before_K) else 0
    return np.where(np.arange(len(weight_L)) >= first, weight_L, 0)


def every_token(weight_L: np.ndarray) -> np.ndarray:
    """float32 [L]: 1. Nothing precedes a conversation's first token, which is therefore never predicted."""
    return np.ones_like(weight_L)


def targets_of(config):
    """The function of a DataConfig's chat_loss."""
    return imported(text_kinds.CHAT_LOSSES[config.chat_loss], "data.chat_loss")


# ---- rows


class ConversationRows(BestFitRows):
    """BestFitRows whose weight_BL is that of each token as a target. overflow: of the conversations they are made of."""

    def __init__(self, tokens: Tokens, row_tokens: int, seed: int, plan, targets, overflow: "Overflow"):
        super().__init__(tokens, row_tokens, seed, plan)
        self._targets, self.overflow = targets, overflow

    def rows(self, id_B: np.ndarray) -> Batch:
        batch = super().rows(id_B)
        row_P, start_P, length_P = self.spans(id_B)
        _, column_P = packing.places_in_rows(row_P, length_P, len(id_B))
        weight_BT = np.zeros((len(id_B), self.row_tokens), np.float32)
        pieces = [weight_BT[r, c : c + n] for r, c, n in zip(row_P.tolist(), column_P.tolist(), length_P.tolist())]
        self.tokens.weights.fill(pieces, start_P, start_P + length_P)
        for piece in pieces:
            piece[:] = self._targets(piece)
        batch["weight_BL"] *= weight_BT[:, 1:]
        return batch


def train_rows(source, row_tokens: int, seed: int, config, alive) -> ConversationRows:
    """Of a TextStore. Raises UserError: no conversation fits, or one does not and chat_overflow is refuse."""
    overflow = Overflow.of(source.train, row_tokens, config.chat_overflow, source.training_text)
    name = f"rows-{packing.Plan.FORMAT}-{source.fingerprint[:16]}-{row_tokens}-{config.chat_overflow}"
    cut = functools.partial(_kept_pieces, source.train, config.chat_overflow)
    plan = packing.plan_rows(source.train, row_tokens, cache_folder(config) / name, alive, cut)
    return ConversationRows(source.train, row_tokens, seed, plan, targets_of(config), overflow)


class EvalConversations:
    """Held-out conversations in order, whole, in `num_rows` rows of as many as fit: each target is predicted once.

    It takes what EvalRows takes. max_tokens: only the first conversations, of so many tokens together, one at least. A token counts as a target
    or not, whatever weight its message had in training: losses are nats per target. Raises UserError: as train_rows.
    """

    rows_per_window = 1

    def __init__(
        self,
        tokens: Tokens,
        tokenizer,
        context_length: int,
        config,
        objective,
        max_tokens: int | None = None,
        name: str = "the held-out text",
        stride: int | None = None,
    ):
        if stride is not None:
            raise UserError(f"--stride={stride}: conversations are read whole, each in one row; leave it out.")
        self.tokens, row_tokens = tokens, context_length + 1
        self.overflow = Overflow.of(tokens, row_tokens, config.chat_overflow, name)
        self.window = self.stride = context_length
        self._token_bytes = np.asarray(tokenizer.token_bytes, np.int32)
        span_D2, _ = tokens.documents(0, tokens.n_documents)
        start_P, length_P = _kept_pieces(tokens, config.chat_overflow, span_D2, row_tokens)
        if max_tokens is not None:
            count = max(1, int(np.searchsorted(np.cumsum(length_P), max_tokens, "right")))
            start_P, length_P = start_P[:count], length_P[:count]
        laid = InOrder(start_P, length_P, _next_fit(length_P, row_tokens))
        self.num_rows = len(laid.row_first) - 1
        self._rows = ConversationRows(tokens, row_tokens, 0, laid, targets_of(config), self.overflow)

    def places(self, first: int, stop: int) -> np.ndarray:
        """int64 [B, L]: which token of the text is predicted at each place of rows first to stop - 1; 0 of padding."""
        id_B = np.minimum(np.arange(first, stop), self.num_rows - 1)
        row_P, start_P, length_P = self._rows.spans(id_B)
        _, column_P = packing.places_in_rows(row_P, length_P, len(id_B))
        place_BT = np.zeros((len(id_B), self.window + 1), np.int64)
        for row, column, start, length in zip(row_P, column_P, start_P, length_P):
            place_BT[row, column : column + length] = np.arange(start, start + length)
        return place_BT[:, 1:]

    def rows(self, first: int, stop: int) -> Batch:
        """Rows first to stop - 1, with bytes_B, int32: UTF-8 bytes of the targets. stop may lie beyond num_rows."""
        index_B = np.arange(first, stop)
        batch = self._rows.rows(np.minimum(index_B, self.num_rows - 1))
        is_target_BL = (batch["weight_BL"] > 0) & (index_B < self.num_rows)[:, None]
        spelled_BL = self._token_bytes[batch["token_BT"][:, 1:]] * is_target_BL
        batch["weight_BL"] = is_target_BL.astype(np.float32)
        return batch | {"bytes_B": spelled_BL.sum(axis=1, dtype=np.int32)}


class InOrder(NamedTuple):
    """As packing.Plan, in memory: row r has pieces row_first[r] to row_first[r + 1] - 1."""

    start: np.ndarray
    length: np.ndarray
    row_first: np.ndarray


def _next_fit(length_P: np.ndarray, capacity: int) -> np.ndarray:
    """int64 [R + 1]: the first piece of each row, and the end, where each row takes pieces in order while they fit."""
    first, used = [0], 0
    for piece, length in enumerate(length_P.tolist()):
        if used + length > capacity:
            first.append(piece)
            used = 0
        used += length
    return np.array([*first, len(length_P)], np.int64)


# ---- conversations longer than a row


class Overflow(NamedTuple):
    """The conversations of a text that are longer than a row."""

    policy: str  # data.chat_overflow
    row_tokens: int
    conversations: int  # of the text
    too_long: int
    without_target: int  # of those, the cut ones whose first row_tokens tokens have no target: they are dropped
    first: int | None  # number of the first of them
    longest: int  # tokens of the longest conversation
    text: str  # what the text is, for messages

    @property
    def left_out(self) -> int:
        """Conversations that are in no row."""
        return self.too_long if self.policy == "drop" else self.without_target

    @classmethod
    def of(cls, tokens: Tokens, row_tokens: int, policy: str, text: str) -> "Overflow":
        """Raises UserError: there is a conversation that must not be (policy refuse), or none that may stay."""
        span_D2, _ = tokens.documents(0, tokens.n_documents)
        length_D = span_D2[:, 1] - span_D2[:, 0]
        long_K = np.flatnonzero(length_D > row_tokens)
        kept_K = (
            _has_targets(tokens, span_D2[long_K, 0], row_tokens) if policy == "cut" else np.zeros(len(long_K), bool)
        )
        lacking = int((~kept_K).sum()) if policy == "cut" else 0
        first = int(long_K[0]) if len(long_K) else None
        overflow = cls(
            policy, row_tokens, len(span_D2), len(long_K), lacking, first, int(length_D.max(initial=0)), text
        )
        if policy == "refuse" and len(long_K):
            raise UserError(f"{overflow}; use a larger model.context_length, or data.chat_overflow='drop' or 'cut'.")
        if len(long_K) - kept_K.sum() == len(span_D2):
            raise UserError(
                f"{text} has no conversation that fits a row of {row_tokens} tokens ({len(span_D2):,} conversations, the longest of"
                f" {overflow.longest:,} tokens); use a larger model.context_length, data.chat_overflow='cut', or more conversations."
            )
        return overflow

    def __str__(self) -> str:
        """Which are too long, and what becomes of them."""
        if not self.too_long:
            return f"{self.text}: all {self.conversations:,} conversations fit a row of {self.row_tokens:,} tokens"
        done = {"drop": ": dropped", "cut": ": cut to their beginning", "refuse": ""}[self.policy]
        lacking = (
            f", {self.without_target:,} of them dropped, whose beginning has no target" if self.without_target else ""
        )
        return (
            f"{self.text}: {self.too_long:,} of {self.conversations:,} conversations are longer than a row of"
            f" {self.row_tokens:,} tokens (the first is number {self.first:,}, the longest has {self.longest:,}){done}{lacking}"
        )


def _kept_pieces(tokens: Tokens, policy: str, span_D2: np.ndarray, row_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """First tokens and lengths of the conversations that are read, each in one piece."""
    length_D = span_D2[:, 1] - span_D2[:, 0]
    keep_D = length_D <= row_tokens
    if policy == "cut":
        keep_D[~keep_D] = _has_targets(tokens, span_D2[~keep_D, 0], row_tokens)
    return span_D2[keep_D, 0], np.minimum(length_D[keep_D], row_tokens)


def _has_targets(tokens: Tokens, start_K: np.ndarray, row_tokens: int) -> np.ndarray:
    """bool [K]: whether there is a target among the row_tokens tokens from each start on, the first of which is none."""
    weight_T, has_K = np.empty(row_tokens, np.float32), np.zeros(len(start_K), bool)
    for k, start in enumerate(start_K):
        tokens.weights.fill([weight_T], np.array([start]), np.array([start + row_tokens]))
        has_K[k] = weight_T[1:].any()
    return has_K
