"""Two runs with task heads on the same examples: the loss of each, and what share they got right, example by example.

As compare.py: what both judge is paired, and the standard error comes from the spread of the pairs' differences. Two runs whose
tokenizer, context and task are one read A's held-out examples; others need a set of their own (--data), whose every example
both can take.

Axes: E examples.
"""

import dataclasses
import functools

import numpy as np

from gptjax.config import task_heads
from gptjax.errors import UserError
from gptjax.evaluation import labelled, metrics, predictions, run_loss
from gptjax.evaluation.differences import Difference, difference, verdict
from gptjax.parallel import numerics

_RIGHT = {"classify": "accuracy", "choice": "accuracy", "span": "exact match"}  # by the loss of a head


@dataclasses.dataclass(frozen=True, repr=False)
class LabelledComparison:
    """differences: {set: {"loss", and "accuracy" or "exact match": Difference}}. convention: JSON values."""

    differences: dict[str, dict[str, Difference]]
    convention: dict

    def as_dict(self) -> dict:
        shown = {name: {unit: one.as_dict() for unit, one in of.items()} for name, of in self.differences.items()}
        return {"convention": self.convention, "differences": shown}

    def __repr__(self) -> str:
        lines = ["; ".join(f"{name}: {about}" for name, about in self.convention["examples"].items())]
        lines.append(f"paired over examples; +- is a standard error; p: {self.convention['test']}")
        for name, of_set in self.differences.items():
            lines += [f"{name + '  ' if len(self.differences) > 1 else ''}{one}" for one in of_set.values()]
        first = next(iter(self.differences.values()))
        return "\n".join([*lines, verdict(first["loss"])])


def compare_runs(a, b, texts, batch_size: int | None, should_stop, report, settings: dict) -> LabelledComparison | None:
    """Of two Runs with task heads. texts: SPECs; None: the held-out examples of a. None if should_stop() said so.

    Raises UserError: runs of different tasks, or that cannot read the same examples."""
    heads = [task_heads.of(run.config.model) for run in (a, b)]
    kinds = [(head.loss, head.outputs) for head in heads]
    if kinds[0] != kinds[1]:
        shown = [repr(run.config.model.task_head) for run in (a, b)]
        raise UserError(f"A has model.task_head={shown[0]} and B {shown[1]}: they answer different questions.")
    reading_a = run_loss.reading_of(a, texts, **settings)
    rows_b = _rows_of_b(a, b, reading_a, texts, settings)
    differences = {}
    for name, rows in reading_a.rows.items():
        outcomes = []
        for run, rows_of, which in ((a, rows, "A"), (b, rows_b[name], "B")):
            tell = None if report is None else functools.partial(report, f"{which} {name}", rows.num_rows)
            with numerics.on_mesh(run.mesh):
                size = run_loss.batch_rows(run, batch_size)
                outcomes.append(labelled.judge(run.program, run.params, rows_of, size, should_stop, tell))
            if outcomes[-1] is None:
                return None
        differences[name] = _differences(*outcomes, kinds[0][0])
    convention = {"examples": reading_a.about, "test": "two-sided paired t-test", "task": a.config.data.task}
    return LabelledComparison(differences, convention)


def _rows_of_b(a, b, reading_a, texts, settings: dict) -> dict:
    """{set: EvalExamples} of what a reads, as b reads it. Raises UserError: it can't, or not all of it."""
    if texts is None:
        for of in (
            lambda run: run.tokenizer.hash,
            lambda run: run.config.model.context_length,
            lambda run: run.config.data.task,
        ):
            if of(a) != of(b):
                raise UserError(
                    f"the held-out examples of A are made for its tokenizer, context and task ({a.config.data.task!r}), and B's"
                    " are others; give both the same set with --data."
                )
        return {name: labelled.rows_of(b, rows.examples) for name, rows in reading_a.rows.items()}
    rows_b = run_loss.reading_of(b, texts, **settings).rows
    for name, rows in reading_a.rows.items():
        counts = len(rows.examples), len(rows_b[name].examples)
        if counts[0] != counts[1]:
            raise UserError(
                f"A can take {counts[0]:,} of the examples in {name!r} and B {counts[1]:,}, so that they do not pair; give a set"
                " of which both can take all."
            )
    return rows_b


def _differences(a: labelled.Outcome, b: labelled.Outcome, kind: str) -> dict[str, Difference]:
    unit = {"tag": "nats/token", "regress": "squared error"}.get(kind, "nats/example")
    found = {"loss": difference(a.loss_E, b.loss_E, a.weight_E, unit)}
    if (name := _RIGHT.get(kind)) is not None:
        right = [_right(outcome, kind) for outcome in (a, b)]
        found[name] = difference(*right, np.ones(len(right[0])), name)
    return found


def _right(outcome: labelled.Outcome, kind: str) -> np.ndarray:
    """float64 [E]: 1 of an example that is answered rightly."""
    pairs = zip(outcome.examples, outcome.predictions, strict=True)
    if kind == "span":
        texts = [predictions.answer_text(example, span, outcome.tokenizer) for example, span in pairs]
        return np.array([metrics.exact_match(text, each.answers) for text, each in zip(texts, outcome.examples)], float)
    return np.array([float(int(example.label) == int(read.argmax())) for example, read in pairs])
