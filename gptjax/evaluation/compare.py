"""Two runs on the same text: which is better, by how much, and whether that could be chance.

What both predict is paired, so that whatever makes a stretch of text hard makes it hard for both and falls out of their
difference. With one tokenizer the pairs are windows of as many tokens as the longer context; with two, stretches of the
text of about as many bytes, cut where both have a token boundary. Only what both predict counts: not the first token of a
text (or document, where a run keeps them apart), and with two tokenizers no end-of-text, which spells no bytes.

The difference is one of ratios of means, as in `held_out.summarise`, and its standard error comes from the spread of the
pairs' differences, taken as independent (Cochran 1977, section 2.11). p is that of Student's t with one degree of freedom
less than pairs: how often two equally good runs would differ at least so much.

Axes: N tokens of a text, A atoms (what lies between two boundaries that both tokenizers have), P pairs.
"""

import dataclasses
import functools
import math
import typing

import jax
import numpy as np

from gptjax.errors import UserError
from gptjax.evaluation import run_loss
from gptjax.evaluation import texts as evaluation_text
from gptjax.evaluation.differences import Difference, difference, verdict
from gptjax.parallel import numerics, placement


class Predicted(typing.NamedTuple):
    """What a run says of each token of a text, in order."""

    loss_N: np.ndarray  # nats; 0 where not predicted
    predicted_N: np.ndarray  # boolean
    bytes_N: np.ndarray  # UTF-8 that the token spells


class Pairs(typing.NamedTuple):
    """Nats of both runs, and the tokens and bytes they were on."""

    a_P: np.ndarray
    b_P: np.ndarray
    tokens_P: np.ndarray | None  # None: the tokenizers differ
    bytes_P: np.ndarray


# ---- pairs


def pair(a: Predicted, b: Predicted, same_tokenizer: bool, span: int) -> Pairs:
    """span: tokens of a pair with one tokenizer, otherwise bytes, about.

    Raises UserError: nothing of the text is predicted by both, or the texts are of different lengths.
    """
    if same_tokenizer:
        return _pair_tokens(a, b, span)
    a, b = (Predicted(*(value_N[one.bytes_N > 0] for value_N in one)) for one in (a, b))
    (a_start, a_end), (b_start, b_end) = _extent(a.bytes_N), _extent(b.bytes_N)
    if a_end != b_end:
        raise UserError(f"A read {a_end} bytes of text and B read {b_end}; give both the same text with --data.")
    boundary_A = np.intersect1d(a_start, b_start)
    size_A = np.diff(boundary_A, append=a_end)
    a_A, b_A = (_of_atoms(one, start, boundary_A) for one, start in ((a, a_start), (b, b_start)))
    kept_A = a_A.predicted_N & b_A.predicted_N
    _check_any(kept_A)
    number_P = _numbers(boundary_A[kept_A] - boundary_A[kept_A][0], span)
    nats = (np.bincount(number_P, one.loss_N[kept_A]) for one in (a_A, b_A))
    return Pairs(*nats, None, np.bincount(number_P, size_A[kept_A]))


def _pair_tokens(a: Predicted, b: Predicted, span: int) -> Pairs:
    kept_N = a.predicted_N & b.predicted_N
    _check_any(kept_N)
    number_P = _numbers(np.flatnonzero(kept_N) - 1, span)  # token 1 is the first that is predicted
    sums = (np.bincount(number_P, value_N[kept_N]) for value_N in (a.loss_N, b.loss_N, np.ones(len(kept_N)), a.bytes_N))
    return Pairs(*sums)


def _extent(bytes_N: np.ndarray) -> tuple[np.ndarray, int]:
    """The byte that each token starts at, and the end."""
    end_N = np.cumsum(bytes_N, dtype=np.int64)
    return end_N - bytes_N, int(end_N[-1]) if len(end_N) else 0


def _of_atoms(tokens: Predicted, start_N, boundary_A) -> Predicted:
    """The sum of nats, and whether all is predicted."""
    atom_N = np.searchsorted(boundary_A, start_N, "right") - 1
    count = len(boundary_A)
    missed_A = np.bincount(atom_N, ~tokens.predicted_N, count)
    return Predicted(
        np.bincount(atom_N, tokens.loss_N, count), missed_A == 0, np.bincount(atom_N, tokens.bytes_N, count)
    )


def _numbers(place: np.ndarray, span: int) -> np.ndarray:
    """0, 1, ...: of the pair that each place belongs to; pairs without any are left out."""
    return np.unique(place // span, return_inverse=True)[1]


def _check_any(kept) -> None:
    if not kept.any():
        raise UserError("the two runs predict no token in common; give a longer text.")


# ---- two runs


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    loss: dict[str, Difference] | None  # of each text, "all" first where there are several; None: two tokenizers
    bits_per_byte: dict[str, Difference]
    convention: dict

    @property
    def main(self) -> dict[str, Difference]:
        return self.loss or self.bits_per_byte

    def as_dict(self) -> dict:
        values = {"convention": self.convention}
        for name in ("loss", "bits_per_byte"):
            found = getattr(self, name)
            values[name] = None if found is None else {text: one.as_dict() for text, one in found.items()}
        return values

    def __repr__(self) -> str:
        about = self.convention
        text = "; ".join(f"{name}: {said}" for name, said in about["text"].items())
        windows = [
            f"{side.upper()} windows of {about[side]['window']}, stride {about[side]['stride']}" for side in ("a", "b")
        ]
        lines = [
            f"{about['whose']}{text}",
            f"{', '.join(windows)}; losses are paired over {about['pairs']}; +- is a standard error; p: {about['test']}",
        ]
        for by_text in filter(None, (self.loss, self.bits_per_byte)):
            lines += [f"{name + '  ' if len(by_text) > 1 else ''}{one}" for name, one in by_text.items()]
        return "\n".join([*lines, verdict(next(iter(self.main.values())))])


def compare(
    a, b, texts=None, *, batch_size: int | None = None, should_stop=lambda: False, report=None, **settings
) -> Comparison | None:
    """Of two Runs; of two with task heads a compare_labelled.LabelledComparison. texts: SPECs; None: the held-out text of a.
    settings: of `evaluation.reading_of`. None if should_stop() said so.

    Raises UserError: text that cannot be had, or a model that is not judged by its next tokens.
    """
    tasks = [run.config.data.task is not None for run in (a, b)]
    if all(tasks):
        from gptjax.evaluation import compare_labelled

        return compare_labelled.compare_runs(a, b, texts, batch_size, should_stop, report, settings)
    if any(tasks):
        raise UserError(
            "one of the two runs has a task head and is judged by examples; compare it with another of that task."
        )
    for run in (a, b):
        if run.config.data.sees_ahead:
            raise UserError(
                f"a model of data.objective={run.config.data.objective!r} does not predict next tokens, so its losses cannot be compared."
            )
        data = run.config.data
        if data.examples is not None:
            raise UserError(
                f"a run of {data.examples_field} is judged by examples; compare the numbers of gptjax eval."
            )
    same = a.tokenizer.base_hash == b.tokenizer.base_hash
    reading_a = run_loss.reading_of(a, texts, **settings)
    _check_control_tokens(a, b, reading_a)
    reading_b = _reading_of_b(b, a, reading_a, texts, same, settings)
    _check_formats(a, b, reading_a, reading_b, texts)
    span = _span(a, b, reading_a, same)
    pairs = {}
    for name in reading_a.rows:
        found = []
        for run, reading, which in ((a, reading_a, "A"), (b, reading_b, "B")):
            tell = (lambda *_: None) if report is None else functools.partial(report, f"{which} {name}")
            found.append(predicted(run, reading.rows[name], batch_size, should_stop, tell))
            if found[-1] is None:
                return None
        pairs[name] = pair(*found, same, span)
    whose = "held-out text of A: " if texts is None else ""
    return _summarise(pairs, same, span, reading_a, reading_b, whose)


def _check_control_tokens(a, b, reading) -> None:
    """Raises UserError: A reads conversations with control tokens that B does not have."""
    if a.tokenizer.hash != b.tokenizer.hash and any(rows.tokens.weights is not None for rows in reading.rows.values()):
        raise UserError(
            "A reads conversations, and B's tokenizer has not the same control tokens, so that there are no losses to compare;"
            " give --data=text:FILE."
        )


def _check_formats(a, b, reading_a, reading_b, texts) -> None:
    """Raises UserError: a text is a conversation to one run alone, or in another format."""
    for name, rows in reading_a.rows.items():
        are_chat = {each.tokens.weights is not None for each in (rows, reading_b.rows[name])}
        formats = [run.config.data.chat for run in (a, b)]
        if len(are_chat) > 1 or (are_chat == {True} and texts is not None and formats[0] != formats[1]):
            raise UserError(
                f"A reads {name!r} by data.chat={formats[0]!r} and B by data.chat={formats[1]!r}: they predict other tokens;"
                " give --data=text:FILE."
            )


def _reading_of_b(b, a, reading_a, texts, same: bool, settings: dict) -> run_loss.Reading:
    if texts is not None:
        return run_loss.reading_of(b, texts, **settings)
    found = reading_a.texts
    if not same:
        found = {
            name: dataclasses.replace(
                text,
                tokens=evaluation_text.tokenise(
                    evaluation_text.documents_of(text.tokens, a.tokenizer), b.tokenizer, name
                ),
            )
            for name, text in found.items()
        }
    given = {"max_tokens": a.config.eval.max_tokens if same else None} | settings
    return run_loss.windows_of(b, found, given.get("stride"), given["max_tokens"])


def _span(a, b, reading, same: bool) -> int:
    """Of a pair: tokens of the longer context, or the bytes that a's tokenizer has in so many."""
    longer = max(a.config.model.context_length, b.config.model.context_length)
    if same:
        return longer
    tokens = [text.tokens for text in reading.texts.values()]
    return max(1, round(longer * sum(t.byte_count for t in tokens) / sum(t.n_tokens for t in tokens)))


def predicted(run, rows, batch_size: int | None, should_stop, report) -> Predicted | None:
    """Of each token of a text. None if should_stop() said so."""
    n_tokens = rows.tokens.n_tokens
    loss_N, predicted_N = np.zeros(n_tokens), np.zeros(n_tokens, bool)
    batch, nats = run_loss.batch_rows(run, batch_size), 0.0
    with numerics.on_mesh(run.mesh):
        for first in range(0, rows.num_rows, batch):
            if should_stop():
                return None
            read = rows.rows(first, first + batch)
            on_device = placement.device_batch(
                lambda start, stop: {k: v[start:stop] for k, v in read.items() if k != "bytes_B"},
                batch,
                run.program.eval_batch_sharding,
            )
            loss_BL = jax.device_get(run.program.weighted_loss(run.params, on_device))
            inside_BL = read["weight_BL"] > 0
            place_BL = rows.places(first, first + batch)
            loss_N[place_BL[inside_BL]], predicted_N[place_BL[inside_BL]] = loss_BL[inside_BL], True
            nats += float(loss_BL.sum(dtype=np.float64))
            report(rows.num_rows, min(first + batch, rows.num_rows), nats, int(predicted_N.sum()))
    ids = rows.tokens.read(np.array([0]), n_tokens)[0]
    return Predicted(loss_N, predicted_N, np.asarray(run.tokenizer.token_bytes, np.int64)[ids])


def _summarise(pairs: dict[str, Pairs], same: bool, span: int, reading_a, reading_b, whose: str) -> Comparison:
    if len(pairs) > 1:
        columns = zip(*pairs.values())
        pooled = Pairs(*(None if column[0] is None else np.concatenate(column) for column in columns))
        pairs = {"all": pooled} | pairs
    bits = {
        name: difference(one.a_P / math.log(2), one.b_P / math.log(2), one.bytes_P, "bits/byte")
        for name, one in pairs.items()
    }
    loss = (
        {name: difference(one.a_P, one.b_P, one.tokens_P, "nats/token") for name, one in pairs.items()}
        if same
        else None
    )
    rows_a, rows_b = (next(iter(reading.rows.values())) for reading in (reading_a, reading_b))
    convention = {
        "pairs": f"windows of {span} tokens" if same else f"stretches of the text of about {span} bytes",
        "test": "two-sided paired t-test",
        "whose": whose,
        "text": {name: text.said for name, text in reading_a.texts.items()},
        "a": {"window": rows_a.window, "stride": rows_a.stride},
        "b": {"window": rows_b.window, "stride": rows_b.stride},
    }
    return Comparison(loss, bits, convention)
