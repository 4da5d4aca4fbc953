"""What a run reads, in numbers, before it has begun: of each source its documents, its packing and how often it is read.

No token is read: all of it is arithmetic on the tables of documents, a million of them at a time, on the plan of a
packing, and on the mixture. Lengths are in tokens, end-of-text included.
"""

import numpy as np

from gptjax import schedule
from gptjax.data.rows.packing import BestFitRows, ConcatRows
from gptjax.data.rows.pipeline import TrainRows
from gptjax.data.tokens.shards import Tokens

_GROUP = 1 << 20  # documents, or rows, that are in memory at once
_LONG = 1 << 20  # tokens; lengths up to it are counted one by one, the few beyond are kept
_SAMPLE = 64  # rows


def statistics(config, store, rows: TrainRows) -> dict:
    """Of the whole run that config describes, as JSON values.

    sources: of each its text, lengths, packing and reading. stages: the mixture over training time.
    """
    n_rows = schedule.rows_before(config, schedule.total_steps(config))
    counts, parts = rows.counts(n_rows), rows.by_source
    return {
        "run": _run(config, n_rows),
        "sources": {
            name: {
                "train": _text(source.train),
                "held_out": _held_out(source),
                "lengths": lengths(source.train),
                "packing": packing(parts[name]),
                "conversations": conversations(parts[name]),
                "reading": reading(parts[name], counts[name]) | {"share_of_rows": counts[name] / n_rows},
            }
            for name, source in store.sources.items()
        },
        "stages": stages(config, rows, n_rows),
        "objective": _objective(config, rows, n_rows),
    }


def _run(config, n_rows: int) -> dict:
    return {
        "steps": schedule.total_steps(config),
        "rows": n_rows,
        "context_length": config.model.context_length,
        "tokens": n_rows * config.model.context_length,
        "packing": config.data.packing,
        "documents_apart": config.data.documents_apart,
        "objective": config.data.objective,
    }


def _text(tokens: Tokens) -> dict:
    return {
        "documents": tokens.n_documents,
        "tokens": tokens.n_tokens,
        "bytes": tokens.byte_count,
        "bytes_per_token": tokens.byte_count / tokens.n_tokens if tokens.n_tokens else None,
    }


def _held_out(source) -> dict:
    total = source.train.byte_count + source.val.byte_count
    return _text(source.val) | {"share_of_bytes": source.val.byte_count / total if total else 0.0}


def _groups(tokens: Tokens):
    """(number of the first, int64 [D, 2] first token and end) of a million documents after the other."""
    for first in range(0, tokens.n_documents, _GROUP):
        yield first, tokens.documents(first, min(first + _GROUP, tokens.n_documents))[0]


# ---- documents


def lengths(tokens: Tokens) -> dict:
    """Of documents: mean, median, the shortest and longest with their numbers, and a histogram in bins that double."""
    count_N, long, shortest, longest = np.zeros(_LONG, np.int64), [], None, None
    for first, span_D2 in _groups(tokens):
        length_D = span_D2[:, 1] - span_D2[:, 0]
        count_N += np.bincount(length_D[length_D < _LONG], minlength=_LONG)
        long.append(length_D[length_D >= _LONG])
        small, large = int(length_D.argmin()), int(length_D.argmax())
        if shortest is None or length_D[small] < shortest["tokens"]:
            shortest = {"document": first + small, "tokens": int(length_D[small])}
        if longest is None or length_D[large] > longest["tokens"]:
            longest = {"document": first + large, "tokens": int(length_D[large])}
    long = np.sort(np.concatenate([np.zeros(0, np.int64), *long]))
    n = tokens.n_documents
    return {
        "mean": tokens.n_tokens / n if n else None,
        "median": _median(count_N, long, n) if n else None,
        "shortest": shortest,
        "longest": longest,
        "histogram": _histogram(count_N, long),
    }


def _median(count_N: np.ndarray, long: np.ndarray, n: int) -> float:
    """Of n values: how many there are of each below _LONG, and the others in order."""
    below = np.cumsum(count_N)

    def value(rank: int) -> int:
        return int(np.searchsorted(below, rank, "right")) if rank < below[-1] else int(long[rank - below[-1]])

    return (value((n - 1) // 2) + value(n // 2)) / 2


def _histogram(count_N: np.ndarray, long: np.ndarray) -> list[dict]:
    """Documents and their tokens from each power of two to the next, the empty bins at both ends left out."""
    edges = [0, *(1 << i for i in range(63))]
    bins, length_N = [], np.arange(len(count_N))
    for low, high in zip(edges, edges[1:]):
        many = long[np.searchsorted(long, low) : np.searchsorted(long, high)]
        here = count_N[low:high]
        documents, tokens = int(here.sum()) + len(many), int(here @ length_N[low:high] + many.sum())
        bins.append({"from": low, "to": high - 1, "documents": documents, "tokens": tokens})
    filled = [i for i, one in enumerate(bins) if one["documents"]]
    return bins[filled[0] : filled[-1] + 1] if filled else []


# ---- packing


def packing(rows: ConcatRows | BestFitRows) -> dict:
    """Of an epoch, the first of them: rows, and what their places for targets hold.

    slots = predicted + document_starts + padding. document_starts: targets with weight 0 because another document is
    before them. documents_cut: read, but in no row whole; tokens_left_out: in no row, this epoch.
    """
    facts = _best_fit(rows) if isinstance(rows, BestFitRows) else _concat(rows)
    stride = rows.row_tokens - 1
    slots = rows.rows_per_epoch * stride
    predicted = slots - facts["document_starts"] - facts["padding"]
    return {
        "rows_per_epoch": rows.rows_per_epoch,
        "slots": slots,
        "predicted": predicted,
        "efficiency": predicted / slots,
    } | facts


def _concat(rows: ConcatRows) -> dict:
    tokens, stride = rows.tokens, rows.row_tokens - 1
    first = int(rows.offsets(np.zeros(1, np.int64))[0])
    last = first + rows.rows_per_epoch * stride  # the epoch's last token
    starts = cut = left_out = 0
    for _, span_D2 in _groups(tokens):
        start_D, stop_D = span_D2[span_D2[:, 1] > span_D2[:, 0]].T
        read_D = (stop_D > first) & (start_D <= last)
        row_D = np.minimum((start_D - first) // stride, rows.rows_per_epoch - 1)
        whole_D = (start_D >= first) & (stop_D <= first + row_D * stride + rows.row_tokens)
        starts += int(np.sum((start_D > first) & (start_D <= last)))
        cut += int(np.sum(read_D & ~whole_D))
        left_out += int(np.sum(~read_D))
    return {
        "document_starts": starts if rows.apart else 0,
        "padding": 0,
        "documents_cut": cut,
        "documents_left_out": left_out,
        "tokens_left_out": tokens.n_tokens - (last + 1 - first),
    }


def _best_fit(rows: BestFitRows) -> dict:
    pieces = len(rows.plan.start)
    used = int(np.sum(rows.plan.length, dtype=np.int64))
    cut = left_out = tokens_left_out = 0
    for _, span_D2 in _groups(rows.tokens):
        length_D = span_D2[:, 1] - span_D2[:, 0]
        cut += int(np.sum(length_D > rows.row_tokens))
        left_out += int(np.sum(length_D < 2))
        tokens_left_out += int(np.sum(length_D == 1))
    if rows.tokens.weights is not None:  # what a row does not hold is in no other
        left_out = rows.overflow.left_out
        cut, tokens_left_out = cut - left_out, rows.tokens.n_tokens - used
    return {
        "document_starts": pieces - rows.rows_per_epoch,
        "padding": rows.rows_per_epoch * rows.row_tokens - used,
        "documents_cut": cut,
        "documents_left_out": left_out,
        "tokens_left_out": tokens_left_out,
    }


def conversations(rows: ConcatRows | BestFitRows) -> dict | None:
    """Of a source of conversations, its targets as they were prepared (whatever data.chat_loss takes of them), and what
    becomes of those longer than a row; None: of text."""
    if rows.tokens.weights is None:
        return None
    overflow = rows.overflow
    return {
        "targets": rows.tokens.n_targets,
        "target_share": rows.tokens.n_targets / rows.tokens.n_tokens,
        "overflow": overflow.policy,
        "too_long": overflow.too_long,
        "left_out": overflow.left_out,
    }


# ---- reading


def reading(rows: ConcatRows | BestFitRows, n_rows: int) -> dict:
    """Of a source that gives n_rows rows: its epochs, and how many rows and tokens are read how many times.

    Tokens are those predicted in these rows (concat: their places, a document's first token too). The text that concat
    cuts into rows shifts from epoch to epoch: there, tokens are so many to within two rows at the ends.
    """
    per_epoch = rows.rows_per_epoch
    epochs, more = divmod(n_rows, per_epoch)
    more_tokens, all_tokens = _targets(rows, n_rows - more, n_rows), _targets(rows, 0, per_epoch)
    times = [
        {"times": epochs, "rows": per_epoch - more, "tokens": all_tokens - more_tokens},
        {"times": epochs + 1, "rows": more, "tokens": more_tokens},
    ]
    return {
        "rows": n_rows,
        "epochs": n_rows / per_epoch,
        "times_read": [one for one in times if one["rows"]],
        "rows_read_again": max(0, n_rows - per_epoch),
        "tokens_read": epochs * all_tokens + more_tokens,
    }


def _targets(rows: ConcatRows | BestFitRows, first: int, stop: int) -> int:
    """Tokens that rows first to stop - 1 of a source predict."""
    if isinstance(rows, ConcatRows):
        return (stop - first) * (rows.row_tokens - 1)
    if stop - first == rows.rows_per_epoch:
        return int(np.sum(rows.plan.length, dtype=np.int64)) - len(rows.plan.start)
    total = 0
    for begin in range(first, stop, _GROUP // 8):
        index_B = np.arange(begin, min(begin + _GROUP // 8, stop))
        _, _, length_P = rows.spans(rows.ids(index_B))
        total += int(length_P.sum()) - len(length_P)
    return total


def stages(config, rows: TrainRows, n_rows: int) -> list[dict]:
    """Of each stage of the mixture, those that the run never comes to included: when it begins, and the share of its
    rows that each source was to have and has."""
    found = []
    firsts = [first for first, _ in rows.stages]
    for (first, weights), end in zip(rows.stages, [*firsts[1:], n_rows]):
        begin, end = min(first, n_rows), min(end, n_rows)
        before, after = rows.counts(begin), rows.counts(end)
        total = sum(weights.values())
        shares = {
            name: {
                "wanted": weights[name] / total,
                "rows": after[name] - before[name],
                "got": (after[name] - before[name]) / (end - begin) if end > begin else None,
            }
            for name in rows.by_source
        }
        tokens = first * config.model.context_length
        found.append({"first_row": first, "rows": end - begin, "from_tokens": tokens, "sources": shares})
    return found


def _objective(config, rows: TrainRows, n_rows: int) -> dict:
    """What the objective predicts of rows spread evenly over the run: the only tokens that are read here."""
    first_B = np.unique(np.linspace(0, n_rows - 1, min(_SAMPLE, n_rows)).astype(np.int64)).tolist()
    weights = [rows.rows(first, first + 1)["weight_BL"] for first in first_B]
    slots = sum(weight_BL.size for weight_BL in weights)
    predicted = sum(int(np.count_nonzero(weight_BL)) for weight_BL in weights)
    return {"name": config.data.objective, "sampled_rows": len(first_B), "predicted_share": predicted / slots}
