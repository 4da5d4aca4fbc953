"""Pieces of documents within rows, and the random draws of rows: what the objectives have in common.

Axes: B rows, R tokens of a row, P pieces of all rows in order.
"""

from typing import NamedTuple

import numpy as np

from gptjax.data.rows.hashing import draw as draw
from gptjax.data.rows.hashing import mix
from gptjax.data.rows.packing import Batch


class Pieces(NamedTuple):
    """Runs of tokens of one document, all int64 [P]."""

    row: np.ndarray
    column: np.ndarray  # of the first token
    length: np.ndarray  # in tokens
    number: np.ndarray  # within the row


def real_tokens(batch: Batch) -> np.ndarray:
    """Boolean, the shape of token_BT: tokens that are predicted or predict. The rest is padding, or alone."""
    predicts_BL = batch["weight_BL"] > 0
    real_BR = np.zeros(batch["token_BT"].shape, bool)
    real_BR[:, 1:] = predicts_BL
    real_BR[:, :-1] |= predicts_BL
    return real_BR


def find(batch: Batch, eot_id: int | None = None) -> Pieces:
    """The pieces of a batch as it is packed: of each segment; without segments whole rows, or if eot_id is given what
    that token ends."""
    starts_BR = np.zeros(batch["token_BT"].shape, bool)
    starts_BR[:, 0] = True
    if "segment_BT" in batch:
        starts_BR[:, 1:] = batch["segment_BT"][:, 1:] != batch["segment_BT"][:, :-1]
    elif eot_id is not None:
        starts_BR[:, 1:] = batch["token_BT"][:, :-1] == eot_id
    real_BR = real_tokens(batch)
    row_P, column_P = np.nonzero(starts_BR & real_BR)
    if not len(row_P):
        return Pieces(row_P, column_P, row_P, row_P)
    length_P = np.add.reduceat(real_BR.reshape(-1), row_P * real_BR.shape[1] + column_P, dtype=np.int64)
    return Pieces(row_P, column_P, length_P, count_within(row_P))


def count_within(group_N: np.ndarray) -> np.ndarray:
    """int64 [N]: 0, 1, 2, ... within each run of equal numbers."""
    index_N = np.arange(len(group_N))
    changes_N = np.diff(group_N, prepend=group_N[:1] - 1) != 0
    return index_N - np.maximum.accumulate(np.where(changes_N, index_N, 0))


def between(shape: tuple[int, int], row_P, first_P, stop_P) -> np.ndarray:
    """Boolean [B, R]: columns first to stop - 1 of each piece's row. Pieces don't overlap."""
    edge_BR = np.zeros((shape[0], shape[1] + 1), np.int8)
    edge_BR[row_P, first_P] = 1
    edge_BR[row_P, stop_P] -= 1
    return np.cumsum(edge_BR, axis=1, dtype=np.int8)[:, :-1].astype(bool)


def keep_apart(shape: tuple[int, int], row_P, column_P, used_B) -> Batch:
    """segment_BT and position_BL of rows whose pieces start at column_P; what is beyond used_B is a piece itself."""
    starts_BR = np.zeros((shape[0], shape[1] + 1), bool)
    starts_BR[row_P, column_P] = True
    starts_BR[np.arange(shape[0]), used_B] = True
    starts_BR = starts_BR[:, :-1]
    starts_BR[:, 0] = False
    index_R = np.arange(shape[1], dtype=np.int32)
    position_BR = index_R - np.maximum.accumulate(np.where(starts_BR, index_R, 0), axis=1)
    return {"segment_BT": np.cumsum(starts_BR, axis=1, dtype=np.int32), "position_BL": position_BR[:, :-1]}


# ---- draws


def uniform(drawn: np.ndarray) -> np.ndarray:
    """float64 in [0, 1)."""
    return (drawn >> np.uint64(11)) * 2.0**-53


def below(drawn: np.ndarray, n) -> np.ndarray:
    """int64 in [0, n)."""
    return (uniform(drawn) * n).astype(np.int64)


def choose_some(n_P: np.ndarray, chosen_P: np.ndarray, key_P: np.ndarray) -> np.ndarray:
    """Boolean [sum of n_P]: chosen_P of the n_P things of each piece, any choice as likely as another."""
    assert len(n_P) < 1 << 24
    piece_N = np.repeat(np.arange(len(n_P), dtype=np.uint64), n_P)
    first_P = np.cumsum(n_P) - n_P
    index_N = np.arange(len(piece_N)) - np.repeat(first_P, n_P)
    drawn_N = mix(np.repeat(key_P, n_P) ^ mix(index_N.astype(np.uint64)))
    order_N = np.argsort((piece_N << np.uint64(40)) | (drawn_N >> np.uint64(24)))
    chosen_N = np.empty(len(piece_N), bool)
    chosen_N[order_N] = index_N < np.repeat(chosen_P, n_P)  # sorted, the pieces lie where they were
    return chosen_N
