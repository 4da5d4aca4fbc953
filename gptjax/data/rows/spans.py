"""Span corruption (T5, Raffel et al. 2020, section 3.1.4) for a decoder (UL2, Tay et al. 2022): spans of the text are
cut out, and follow it, to be predicted.

    text        a b c d e f g h          two spans of 4 tokens in all: "b c" and "f g"
    inputs      a <0> d e <1> h          seen both ways
    targets     <0> b c <1> f g <2>      predicted, left to right

mask_rate of the tokens are cut out, in spans of span_length on average. The spans' lengths, and their places, are drawn
so that all ways to cut a text into so many are equally likely; two spans are at least one token apart.

A text of n tokens and s spans takes n + 2 s + 1. A row's text is chosen so short that as one piece it fills the row
exactly. Where documents are kept apart each piece is cut on its own, and has its own last symbol: what no longer fits
is left out at the end of a row's text, before spans are drawn.
"""

import numpy as np

from gptjax.data.rows import pieces
from gptjax.data.rows.objectives import Objective
from gptjax.data.rows.packing import Batch
from gptjax.data.rows.pieces import Pieces
from gptjax.errors import UserError

SYMBOLS = 100  # at least, as T5 has: so that contexts of up to 2000 tokens share a tokenizer
_ROUND_NOISE, _ROUND_SPANS, _LENGTHS, _PLACES = range(4)  # streams of draws


def symbol(number: int) -> str:
    return f"<|span_{number}|>"


class SpanCorruption(Objective):
    """Raffel et al. 2020 (T5): spans of tokens are hidden behind symbols, and predicted after the text."""

    judged_by_itself = True

    @classmethod
    def make(cls, config, tokenizer, context_length: int) -> "SpanCorruption":
        return cls(config, tokenizer, context_length + 1)

    def __init__(self, config, tokenizer, row_tokens: int):
        self._rate, self._span_length, self._row_tokens = config.mask_rate, config.span_length, row_tokens
        self._n_spans = self._spans_of_a_row(row_tokens)
        self._n_source = self.source_tokens(row_tokens)
        if self._n_source < 2:
            raise UserError(
                f"model.context_length={row_tokens - 1} is too short for data.objective='span_corruption', of which a"
                " span takes 4 tokens; use at least 5."
            )
        most = int((self._n_source * self._rate + 1) / self._span_length + 1)
        self.symbols = tuple(symbol(i) for i in range(max(SYMBOLS, most + 1)))
        special = tokenizer.with_special(self.symbols).special
        self._symbol_ids = np.array([special[name] for name in self.symbols], np.int32)

    def _spans_of_a_row(self, row_tokens: int) -> int:
        """s = n * rate / length, where n = row_tokens - 1 - 2 s."""
        spans_per_token = self._rate / self._span_length
        return max(1, round((row_tokens - 1) * spans_per_token / (1 + 2 * spans_per_token)))

    def source_tokens(self, row_tokens: int) -> int:
        return row_tokens - 1 - 2 * self._spans_of_a_row(row_tokens)

    def __call__(self, batch: Batch, key_B: np.ndarray) -> Batch:
        found = pieces.find(batch)
        key_P = pieces.draw(key_B[found.row], found.number)
        found, key_P, noise_P, spans_P = self._shorten(found, key_P)
        starts_N, noise_N = _cut_out(found.length, noise_P, spans_P, key_P)
        return self._rows(batch, found, noise_P, spans_P, starts_N, noise_N)

    def _counts(self, length_P: np.ndarray, key_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(tokens cut out, spans) of pieces of these lengths: rounded at random, so that their means are as asked.

        A piece of a row's whole text has what fills the row exactly. Both are at least 1.
        """
        noise_P = (length_P * self._rate + pieces.uniform(pieces.draw(key_P, _ROUND_NOISE))).astype(np.int64)
        spans_P = np.clip(noise_P, 1, length_P - 1) / self._span_length
        spans_P = (spans_P + pieces.uniform(pieces.draw(key_P, _ROUND_SPANS))).astype(np.int64)
        whole_P = length_P == self._n_source
        noise_P = np.where(whole_P, max(self._n_spans, round(self._n_source * self._rate)), noise_P)
        noise_P = np.clip(noise_P, 1, length_P - 1)
        spans_P = np.where(whole_P, self._n_spans, np.maximum(spans_P, 1))
        return noise_P, np.minimum(spans_P, np.minimum(noise_P, length_P - noise_P + 1))

    def _shorten(self, found: Pieces, key_P: np.ndarray):
        """The pieces that fit into their rows, with their keys and counts: of those that don't fit the first of a row
        is shortened, and the others are left out."""
        _, spans_P = self._counts(found.length, key_P)
        takes_P = found.length + 2 * spans_P + 1
        before_P = np.cumsum(takes_P) - takes_P
        room_P = self._row_tokens - (before_P - before_P[np.arange(len(takes_P)) - found.number])
        too_long_P = takes_P > room_P
        shorter_P = np.clip(room_P - 1 - 2 * spans_P, 2, found.length)
        fewer_P = self._counts(shorter_P, key_P)[1]
        length_P = np.where(too_long_P, np.minimum(found.length, room_P - 1 - 2 * fewer_P), found.length)
        kept_P = room_P >= 5  # two tokens, and a span's symbols
        found, key_P = Pieces(*(values[kept_P] for values in found._replace(length=length_P))), key_P[kept_P]
        noise_P, spans_P = self._counts(found.length, key_P)
        return found, key_P, noise_P, np.where(too_long_P[kept_P], fewer_P[kept_P], spans_P)

    def _rows(self, batch: Batch, found: Pieces, noise_P, spans_P, starts_N, noise_N) -> Batch:
        """The rows of pieces whose tokens, N of all pieces, are cut out where noise_N says, in spans that start where
        starts_N does."""
        shape = (len(batch["token_BT"]), self._row_tokens)
        inputs_P, takes_P = found.length - noise_P + spans_P, found.length + 2 * spans_P + 1
        column_P = _before(takes_P)
        column_P -= column_P[np.arange(len(column_P)) - found.number]
        at_P = found.row * shape[1] + column_P

        def of_piece(value_P):
            return np.repeat(value_P, found.length)

        index_N = np.arange(len(noise_N))
        noise_before_N = np.cumsum(noise_N) - noise_N - of_piece(_before(noise_P))
        spans_so_far_N = np.cumsum(starts_N) - of_piece(_before(spans_P))
        among_inputs_N = index_N + of_piece(at_P - _before(found.length)) - noise_before_N + spans_so_far_N
        among_targets_N = of_piece(at_P + inputs_P) + noise_before_N + spans_so_far_N
        source_N = index_N + of_piece(found.row * batch["token_BT"].shape[1] + found.column - _before(found.length))
        token = np.zeros(shape[0] * shape[1], np.int32)
        token[np.where(noise_N, among_targets_N, among_inputs_N)] = batch["token_BT"].reshape(-1)[source_N]
        symbol_K = self._symbol_ids[spans_so_far_N[starts_N] - 1]
        token[among_inputs_N[starts_N] - 1] = symbol_K
        token[among_targets_N[starts_N] - 1] = symbol_K
        token[at_P + takes_P - 1] = self._symbol_ids[spans_P]

        targets_P, end_P = column_P + inputs_P, column_P + takes_P
        weight_BT = pieces.between(shape, found.row, targets_P - 1, end_P - 1)
        prefix_BT = pieces.between(shape, found.row, column_P, targets_P)
        rows = {"token_BT": token.reshape(shape), "weight_BL": weight_BT[:, :-1].astype(np.float32)}
        rows["prefix_BL"] = prefix_BT[:, :-1]
        if "segment_BT" not in batch:
            return rows
        used_B = np.bincount(found.row, takes_P, shape[0]).astype(np.int64)
        return rows | pieces.keep_apart(shape, found.row, column_P, used_B)


def _cut_out(length_P, noise_P, spans_P, key_P) -> tuple[np.ndarray, np.ndarray]:
    """Boolean [N], twice, of the tokens of all pieces: whether a span starts there, and whether it is cut out.

    Of n - m tokens that stay there are n - m + 1 places for spans, before each and behind the last, of which s have
    one; of the m tokens that go s, the first among them, start a span.
    """
    starts_M = np.ones(noise_P.sum(), bool)
    may_start_M = np.ones(len(starts_M), bool)
    may_start_M[_before(noise_P)] = False
    starts_M[may_start_M] = pieces.choose_some(noise_P - 1, spans_P - 1, pieces.draw(key_P, _LENGTHS))
    place_K = np.flatnonzero(pieces.choose_some(length_P - noise_P + 1, spans_P, pieces.draw(key_P, _PLACES)))
    start_K = np.flatnonzero(starts_M)  # among the tokens that go
    spans_length_K = np.diff(start_K, append=len(starts_M))
    # A span stands after all places before its own, less one for each piece, and all spans before it.
    start_K = place_K - np.repeat(np.arange(len(length_P)), spans_P) + start_K
    starts_N = np.zeros(length_P.sum(), bool)
    starts_N[start_K] = True
    edge_N = np.zeros(len(starts_N) + 1, np.int8)
    edge_N[start_K] = 1
    edge_N[start_K + spans_length_K] -= 1
    return starts_N, np.cumsum(edge_N, dtype=np.int8)[:-1].astype(bool)


def _before(size_P: np.ndarray) -> np.ndarray:
    """int64 [P]: the sum of the sizes of all pieces before."""
    return np.cumsum(size_P) - size_P
