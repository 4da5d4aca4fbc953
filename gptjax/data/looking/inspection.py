"""Rows of any step of a run, past or future, as facts and as text: what the model reads, and what it is to predict.

Facts are JSON values. `parts` of a row are stretches of its text that are alike:

    kind       text | special (a token that no text has) | boundary (another document begins) | padding
    predicted  whether there is a loss at predicting it, or, with target_BL, at predicting `target` in its place
    prefix     whether all the row's document sees it, also what comes before it
    target     what is to be predicted in its place, with target_BL
"""

import codecs

import numpy as np

from gptjax import schedule
from gptjax.data.rows.objectives import NextToken
from gptjax.data.rows.pipeline import TrainRows
from gptjax.errors import UserError
from gptjax.schedule import NO_REWINDS, Rewinds

_CHUNK = 1 << 18  # rows whose hashes are in memory at once


def step_facts(
    config,
    rows: TrainRows,
    tokenizer,
    step: int,
    row: int | None,
    report=lambda done, total: None,
    rewinds: Rewinds = NO_REWINDS,
    facts_of=None,
) -> dict:
    """Of a step: its rows in the run, the batch hash before and after it, and the facts of its rows, or of one.

    step: counted from 1, as on the screen and in metrics.jsonl: the rows that the loss logged for this step is of.
    rewinds: of a run that left text out. report: is called while earlier rows are hashed. facts_of: in the place of
    `row_facts`, of rows that are no running text.
    Raises UserError: no such step of the run, no such row of the step.
    """
    steps = schedule.total_steps(config)
    if not 1 <= step <= steps:
        raise UserError(
            f"--step={step}: the run has {steps} steps; give one from 1 to {steps}, as the log counts them."
        )
    index = step - 1  # as the schedule counts
    size, first = schedule.batch_size(config, index), rewinds.first_row(config, index)
    if row is not None and not 0 <= row < size:
        raise UserError(f"--row={row}: step {step} has {size} rows; give one from 0 to {size - 1}.")
    chosen = range(size) if row is None else (row,)
    before = hash_before(rows, rewinds.read_before(config, index), report)
    hash_B = np.array(before, np.uint64) + np.cumsum(rows.hashes(first, first + size), dtype=np.uint64)
    facts = (facts_of or row_facts)(rows, tokenizer, first + chosen[0], first + chosen[-1] + 1)
    return {
        "step": step,
        "steps": steps,
        "batch_size": size,
        "first_row": first,
        "rows_left_out": first - schedule.rows_before(config, index),
        "batch_hash_before": f"{before:016x}",
        "batch_hash": f"{int(hash_B[-1]):016x}",
        "rows": [
            {"row": i} | one | {"batch_hash": f"{int(hash_B[i]):016x}"} for i, one in zip(chosen, facts, strict=True)
        ],
    }


def hash_before(rows: TrainRows, ranges: list[tuple[int, int]], report=lambda done, total: None) -> int:
    """The batch hash of rows in (first, stop) ranges, as metrics.jsonl has it."""
    total, done = np.uint64(0), 0
    for begin, end in ranges:
        for first in range(begin, end, _CHUNK):
            stop = min(first + _CHUNK, end)
            with np.errstate(over="ignore"):  # modulo 2 ** 64
                total = total + rows.hashes(first, stop).sum(dtype=np.uint64)
            done += stop - first
            report(done, sum(b - a for a, b in ranges))
    return int(total)


def row_facts(rows: TrainRows, tokenizer, first: int, stop: int) -> list[dict]:
    """Of rows first to stop - 1 of the run: where they come from, counts, and their text."""
    source_B, index_B, id_B = rows.locate(first, stop)
    batch = rows.rows(first, stop)
    facts = []
    for i, (source, index, row_id) in enumerate(zip(source_B.tolist(), index_B.tolist(), id_B.tolist())):
        name, packed = list(rows.by_source.items())[source]
        one = {key: value[i] for key, value in batch.items()}
        used = int(packed.spans(np.array([row_id]))[2].sum())
        end = used if isinstance(rows.objective, NextToken) else _end(one)
        origin = {"run_row": first + i, "source": name, "epoch": index // packed.rows_per_epoch}
        origin["conversations"] = packed.tokens.weights is not None
        facts.append(origin | _documents(packed, row_id) | _counts(one, end) | _text(one, tokenizer, end))
    return facts


def _end(row: dict[str, np.ndarray]) -> int:
    """How many of a row's tokens the objective filled: padding is token 0 of weight 0, in a segment of its own."""
    token_T, weight_L = row["token_BT"], row["weight_BL"]
    if "target_BL" in row:  # each is predicted in its own place: the last is no input
        token_T = token_T[:-1]
        lost_T = (token_T == 0) & (weight_L == 0)
    else:
        lost_T = (token_T == 0) & np.append(True, weight_L == 0)
    if "segment_BT" not in row:
        return len(token_T) if "target_BL" in row else int(np.flatnonzero(np.append(True, weight_L > 0))[-1]) + 1
    last = int(np.searchsorted(row["segment_BT"], row["segment_BT"][len(token_T) - 1]))
    return last if last and lost_T[last:].all() else len(token_T)


def _documents(packed, row_id: int) -> dict:
    """Where the text of a row lies: its first document and token in it, and all pieces of documents."""
    tokens = packed.tokens
    _, start_P, length_P = packed.spans(np.array([row_id]))
    first_P, begin_P = tokens.document_at(start_P)
    last_P, _ = tokens.document_at(start_P + length_P - 1)
    return {
        "document": int(first_P[0]),
        "offset": int(start_P[0] - begin_P[0]),
        "documents": int(np.sum(last_P - first_P + 1)),
        "pieces": [
            {"first_document": a, "last_document": b, "first_token": start, "tokens": n}
            for a, b, start, n in zip(*(values.tolist() for values in (first_P, last_P, start_P, length_P)))
        ],
    }


def _counts(row: dict[str, np.ndarray], end: int) -> dict:
    weight_L, n = row["weight_BL"], _inputs(row)
    predicted = int(np.count_nonzero(weight_L))
    return {"targets": len(weight_L), "predicted": predicted, "weight_0": len(weight_L) - predicted, "padding": n - end}


def _inputs(row: dict[str, np.ndarray]) -> int:
    """Tokens of a row that mean anything: the last has no place where each is predicted in its own."""
    return len(row["token_BT"]) - ("target_BL" in row)


def _text(row: dict[str, np.ndarray], tokenizer, end: int) -> dict:
    token_T = row["token_BT"]
    return {
        "text": tokenizer.decode(token_T[:end], special=True),
        "tokens": token_T.tolist(),
        "weights": row["weight_BL"].tolist(),
        "predicts_in_place": "target_BL" in row,
        "parts": parts(row, tokenizer, end),
    }


def parts(row: dict[str, np.ndarray], tokenizer, end: int | None = None) -> list[dict]:
    """A row's text in stretches that are alike, its padding from token `end` on as one."""
    token_T, weight_L = row["token_BT"].tolist(), row["weight_BL"] > 0
    n = _inputs(row)
    end = n if end is None else end
    target_L = row.get("target_BL")
    # column t is predicted at t - 1; with targets of its own, at t
    predicted_T = [False, *weight_L.tolist()] if target_L is None else [*weight_L.tolist(), False]
    prefix_T = [*row["prefix_BL"].tolist(), False] if "prefix_BL" in row else [False] * len(token_T)
    names = {i: name for name, i in tokenizer.special.items()}
    begins_T = _begins(row, tokenizer.eot_id)
    joined = _Parts()
    for t, token in enumerate(token_T[:end]):
        marks = {"predicted": predicted_T[t], "prefix": prefix_T[t]}
        if begins_T[t]:
            joined.boundary()
        target = {}
        if target_L is not None and predicted_T[t]:
            target = {"target": tokenizer.decode([target_L[t]], special=True)}
        if token in names:
            joined.add("special", names[token], marks | target)
        else:
            joined.bytes(tokenizer.spelling[token] if token < len(tokenizer.spelling) else b"", marks | target)
    joined.flush()
    if end < n:
        joined.add("padding", "", {"predicted": False, "prefix": False, "tokens": n - end})
    return joined.parts


def _begins(row: dict[str, np.ndarray], eot_id: int | None) -> np.ndarray:
    """bool [T]: whether a document begins at a token, other than the first one: another segment, or after end-of-text."""
    if "segment_BT" in row:
        return np.diff(row["segment_BT"], prepend=row["segment_BT"][0]) != 0
    before_T = np.append(-1, row["token_BT"][:-1])
    return before_T == (-2 if eot_id is None else eot_id)


class _Parts:
    """Joins tokens to stretches. A character spelled by several tokens belongs to the last of them, but where a token has
    a target of its own, and is shown as far as it alone is text."""

    def __init__(self):
        self.parts, self._last_marks = [], {}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def bytes(self, spelling: bytes, marks: dict) -> None:
        if "target" in marks:  # it stands alone: what is to be predicted is told of this token
            self.add("text", spelling.decode("utf-8", "replace"), marks)
            return
        self._last_marks = {key: marks[key] for key in ("predicted", "prefix")}
        if text := self._decoder.decode(spelling):
            self._append(text, marks)

    def flush(self) -> None:
        """What an unfinished character left."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        if rest:
            self._append(rest, self._last_marks)

    def add(self, kind: str, text: str, marks: dict) -> None:
        self.flush()
        self.parts.append({"kind": kind, "text": text} | marks)

    def boundary(self) -> None:
        self.add("boundary", "", {"predicted": False, "prefix": False})

    def _append(self, text: str, marks: dict) -> None:
        last = self.parts[-1] if self.parts else {}
        alike = all(last.get(key) == marks.get(key) for key in ("predicted", "prefix"))
        if last.get("kind") == "text" and alike and "target" not in last:
            last["text"] += text
        else:
            self.parts.append({"kind": "text", "text": text} | marks)
