"""Rows from the tokens of one source: two packings, both a function of the row's index, with nothing kept between.

    concat     documents end to end, cut at a stride of R - 1 from a random offset for each epoch (GPT-2, GPT-3)
    best_fit   whole documents, each row filled by best-fit decreasing; documents never see each other

`tokens` are those of a split (shards.Tokens). A row has R of them, and its neighbour, where a document or the text is
cut, starts with its last one: so that every token but a document's first is predicted. Rows are read in whole epochs of
`rows_per_epoch`, each in an order of its own.

    token_BT     int32 [B, R]
    weight_BL    float32 [B, R - 1]  of the loss at predicting token_BT[:, t + 1]
    segment_BT   int32 [B, R]        the document a token belongs to, counted within the row  (if documents are apart)
    position_BL  int32 [B, R - 1]    counted from the start of the document, or of the row     (if documents are apart)
"""

import contextlib
import os
import pathlib
import shutil
import tempfile

import numpy as np

from gptjax.data.rows.hashing import OFFSET_STREAM, hash_of, mix, permute
from gptjax.errors import UserError

Batch = dict[str, np.ndarray]


class ConcatRows:
    """An epoch leaves out fewer than 2 R tokens, at the two ends, but not the same ones each time.

    Raises UserError: fewer than R tokens.
    """

    def __init__(self, tokens, row_tokens: int, seed: int, apart: bool, name: str = "the training text"):
        self.tokens, self.row_tokens, self.apart, self._seed = tokens, row_tokens, apart, seed
        stride = row_tokens - 1
        if tokens.n_tokens < row_tokens:
            raise UserError(
                f"{name} has {tokens.n_tokens} tokens, but a row of model.context_length={stride} needs"
                f" {row_tokens}; use a shorter context, more text, or a smaller data.val_fraction."
            )
        self.rows_per_epoch = max(1, tokens.n_tokens // stride - 1)
        self._n_offsets = tokens.n_tokens - self.rows_per_epoch * stride

    def ids(self, index_B: np.ndarray) -> np.ndarray:
        """int64 [B]: the token that each row starts at. index_B counts rows through all epochs."""
        epoch_B, index_B = np.divmod(index_B, self.rows_per_epoch)
        position_B = permute(index_B, self.rows_per_epoch, self._seed, epoch_B)
        return self.offsets(epoch_B) + position_B * (self.row_tokens - 1)

    def offsets(self, epoch_B: np.ndarray) -> np.ndarray:
        """int64 [B]: the token that the first row of each epoch starts at."""
        return (hash_of(self._seed, epoch_B, OFFSET_STREAM) % np.uint64(self._n_offsets)).astype(np.int64)

    def spans(self, id_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As BestFitRows.spans: one for each row."""
        return np.arange(len(id_B)), id_B, np.full(len(id_B), self.row_tokens)

    def places(self, id_B: np.ndarray) -> np.ndarray:
        """uint64 [B]: a hash of where in the text each row lies."""
        return mix(id_B.astype(np.uint64))

    def rows(self, id_B: np.ndarray) -> Batch:
        return window_rows(self.tokens, id_B, self.row_tokens, self.apart)


class BestFitRows:
    """The plan of which documents share a row is made once for a text and a row length; epochs shuffle whole rows."""

    def __init__(self, tokens, row_tokens: int, seed: int, plan: "Plan"):
        self.tokens, self.row_tokens, self.plan, self._seed = tokens, row_tokens, plan, seed
        self.rows_per_epoch = len(plan.row_first) - 1

    def ids(self, index_B: np.ndarray) -> np.ndarray:
        """int64 [B]: the number of each row in the plan. index_B counts rows through all epochs."""
        epoch_B, index_B = np.divmod(index_B, self.rows_per_epoch)
        return permute(index_B, self.rows_per_epoch, self._seed, epoch_B)

    def spans(self, id_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int64 [P], three times: of each piece of text in these rows, in their order, which of the rows it is in, the
        token it starts at, and how many it has."""
        first_B, stop_B = self.plan.row_first[id_B], self.plan.row_first[id_B + 1]
        row_P = np.repeat(np.arange(len(id_B)), stop_B - first_B)
        piece_P = np.arange(len(row_P)) + np.repeat(
            first_B - np.cumsum(stop_B - first_B) + stop_B - first_B, stop_B - first_B
        )
        return row_P, self.plan.start[piece_P], self.plan.length[piece_P].astype(np.int64)

    def places(self, id_B: np.ndarray) -> np.ndarray:
        """uint64 [B]: a hash of where in the text the pieces of each row lie, and of their order; not of the plan's numbers."""
        row_P, start_P, length_P = self.spans(id_B)
        count_B = np.bincount(row_P, minlength=len(id_B))
        first_B = np.cumsum(count_B) - count_B
        number_P = np.arange(len(row_P)) - first_B[row_P]
        hash_P = mix(mix(start_P.astype(np.uint64)) ^ length_P.astype(np.uint64)) ^ number_P.astype(np.uint64)
        return np.add.reduceat(mix(hash_P), first_B) if len(row_P) else np.zeros(0, np.uint64)

    def rows(self, id_B: np.ndarray) -> Batch:
        """What pads a row has token 0, weight 0 and a segment of its own."""
        row_P, start_P, length_P = self.spans(id_B)
        used_B, column_P = places_in_rows(row_P, length_P, len(id_B))
        token_BT = np.zeros((len(id_B), self.row_tokens), np.int32)
        pieces = (token_BT[r, c : c + n] for r, c, n in zip(row_P.tolist(), column_P.tolist(), length_P.tolist()))
        self.tokens.fill(pieces, start_P, start_P + length_P)
        starts_BT = np.zeros(token_BT.shape, bool)
        starts_BT[row_P, column_P] = True
        padded_B = used_B < self.row_tokens
        starts_BT[padded_B, used_B[padded_B]] = True
        batch = {"token_BT": token_BT} | _keep_apart(starts_BT)
        batch["weight_BL"] *= np.arange(1, self.row_tokens) < used_B[:, None]
        return batch


def places_in_rows(row_P: np.ndarray, length_P: np.ndarray, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 [B] and [P]: how many tokens each row has, and which of its row's tokens a piece begins at."""
    used_B = np.bincount(row_P, length_P, n_rows).astype(np.int64)
    return used_B, np.cumsum(length_P) - length_P - (np.cumsum(used_B) - used_B)[row_P]


def window_rows(tokens, start_B: np.ndarray, row_tokens: int, apart: bool) -> Batch:
    """The rows that start at the tokens start_B. Beyond the last token they repeat it."""
    start_B = np.minimum(start_B, tokens.n_tokens - 1)
    token_BT = tokens.read(start_B, row_tokens)
    if not apart:
        return {"token_BT": token_BT, "weight_BL": np.ones((len(start_B), row_tokens - 1), np.float32)}
    first_B, _ = tokens.document_at(start_B)
    last_B, _ = tokens.document_at(np.minimum(start_B + row_tokens, tokens.n_tokens) - 1)
    row_D = np.repeat(np.arange(len(start_B)), last_B - first_B)
    number_D = np.arange(len(row_D)) - np.repeat(np.cumsum(last_B - first_B) - last_B - 1, last_B - first_B)
    starts_BT = np.zeros(token_BT.shape, bool)
    starts_BT[row_D, tokens.document_starts(number_D) - start_B[row_D]] = True
    return {"token_BT": token_BT} | _keep_apart(starts_BT)


def _keep_apart(starts_BT: np.ndarray) -> Batch:
    """What keeps documents apart that start where starts_BT says. A row's first token starts one anyway."""
    starts_BT[:, 0] = False
    segment_BT = np.cumsum(starts_BT, axis=1, dtype=np.int32)
    index_T = np.arange(starts_BT.shape[1], dtype=np.int32)
    position_BT = index_T - np.maximum.accumulate(np.where(starts_BT, index_T, 0), axis=1)
    return {
        "weight_BL": (~starts_BT[:, 1:]).astype(np.float32),
        "segment_BT": segment_BT,
        "position_BL": position_BT[:, :-1],
    }


# ---- the plan of best_fit


class Plan:
    """Pieces of documents, row by row: row r has pieces row_first[r] to row_first[r + 1] - 1. Arrays mapped from disk.

    Raises OSError or ValueError: a file is missing, or cut.
    """

    FORMAT = 2  # of the files; raise it when the same text gives another plan
    DTYPES = {"start": "<i8", "length": "<i4", "row_first": "<i8"}  # of tokens, tokens, pieces

    def __init__(self, folder):
        self._folder = str(folder)
        self.start, self.length, self.row_first = (
            np.memmap(f"{folder}/{name}.bin", dtype, "r") for name, dtype in self.DTYPES.items()
        )
        if not len(self.start) == len(self.length) == self.row_first[-1]:
            raise ValueError("its files are not of one length")

    def __reduce__(self):  # another process maps the files itself
        return Plan, (self._folder,)


def plan_rows(tokens, row_tokens: int, folder: pathlib.Path, alive=lambda: None, cut=None) -> Plan:
    """The Plan in folder, made if it is not there. cut: another way than `_pieces` to make pieces of documents.

    Documents of one token, which predict nothing, are left out. Documents are packed in groups of a million: memory is
    that of a group. Raises UserError: no document has two tokens, a damaged folder.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = pathlib.Path(tempfile.mkdtemp(prefix=f"{folder.name}.unfinished-", dir=folder.parent))
        try:
            _write_plan(tokens, row_tokens, unfinished, alive, cut or _pieces)
            os.chmod(unfinished, 0o755)  # mkdtemp's is for this user alone
            unfinished.rename(folder)
        except OSError:  # another process was faster
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    try:
        return Plan(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is damaged ({error}): remove it and run again.") from error


_GROUP = 1 << 20  # documents


def _write_plan(tokens, row_tokens: int, folder: pathlib.Path, alive, cut) -> None:
    n_pieces = 0
    with contextlib.ExitStack() as opened:
        files = {name: opened.enter_context((folder / f"{name}.bin").open("wb")) for name in Plan.DTYPES}

        def write(**values) -> None:
            for name, array in values.items():
                files[name].write(array.astype(Plan.DTYPES[name]).tobytes())

        for first in range(0, tokens.n_documents, _GROUP):
            span_D2, _ = tokens.documents(first, min(first + _GROUP, tokens.n_documents))
            start_P, length_P = cut(span_D2, row_tokens)
            row_P = best_fit_decreasing(length_P, row_tokens)
            order_P = np.argsort(row_P, kind="stable")
            count_R = np.bincount(row_P) if len(row_P) else np.zeros(0, np.int64)
            row_first_R = n_pieces + np.cumsum(count_R) - count_R
            write(start=start_P[order_P], length=length_P[order_P], row_first=row_first_R)
            n_pieces += len(row_P)
            alive()
        write(row_first=np.array([n_pieces]))
    if not n_pieces:
        raise UserError("no document of the training text has two tokens, but predicting one takes two; use more text.")


def _pieces(span_D2: np.ndarray, row_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """First tokens and lengths of the pieces of documents, at most row_tokens long, each but a document's first one
    starting with the last token of the one before."""
    stride = row_tokens - 1
    predicted_D = np.maximum(span_D2[:, 1] - span_D2[:, 0] - 1, 0)
    count_D = -(-predicted_D // stride)
    document_P = np.repeat(np.arange(len(span_D2)), count_D)
    index_P = np.arange(len(document_P)) - np.repeat(np.cumsum(count_D) - count_D, count_D)
    start_P = span_D2[document_P, 0] + index_P * stride
    return start_P, np.minimum(span_D2[document_P, 1] - start_P, row_tokens)


def best_fit_decreasing(length_P: np.ndarray, capacity: int) -> np.ndarray:
    """int64 [P]: the row of each piece. The longest first, each into the fullest row that it still fits
    (Johnson, 1973; for language models Ding et al., 2024). All pieces of a length are placed at once.
    """
    row_P, n_rows = np.empty(len(length_P), np.int64), 0
    order_P = np.argsort(-length_P, kind="stable")
    lengths, first = np.unique(-length_P[order_P], return_index=True)
    open_rows = {}  # room left -> rows
    room = np.zeros(capacity + 1, bool)  # whether there are rows with so much room

    for length, pieces in zip(-lengths, np.split(order_P, first[1:])):
        while len(pieces):
            fitting = np.flatnonzero(room[length:])
            if len(fitting):
                left = int(length + fitting[0])
                rows, room[left] = np.concatenate(open_rows.pop(left)), False
            else:
                left = capacity
                rows = np.arange(n_rows, n_rows + -(-len(pieces) // (left // length)))
                n_rows += len(rows)
            each = left // length  # a row that takes one takes the next too: it is the fullest that has room
            placed = min(len(pieces), each * len(rows))
            row_P[pieces[:placed]] = rows[np.arange(placed) // each]
            pieces, full, more = pieces[placed:], placed // each, placed % each
            used = full + (more > 0)
            for some, rest in (
                (rows[:full], left - each * length),
                (rows[full:used], left - more * length),
                (rows[used:], left),
            ):
                if len(some) and rest > 0:
                    open_rows.setdefault(int(rest), []).append(some)
                    room[rest] = True
    return row_P
