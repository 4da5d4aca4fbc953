"""A model with a task head on labelled examples: loss and metrics with their standard errors.

    evaluate_sources(program, params, {name: EvalExamples}, batch_size)     as held_out's, of text

Axes: B examples of a batch, E of a set, C sequences, L length, O outputs of the head, K classes.
"""

import dataclasses
import functools
import typing

import numpy as np
from flax import nnx

from gptjax.config import task_heads
from gptjax.config.fields import MeshConfig
from gptjax.data import tokenizers
from gptjax.data.examples import kinds, store
from gptjax.data.examples.rows import EvalExamples
from gptjax.data.examples.task import Example
from gptjax.evaluation import held_out, metrics, predictions
from gptjax.evaluation import texts as evaluation_text
from gptjax.hosts import compiling
from gptjax.models import labelled
from gptjax.parallel import placement, sharding


@dataclasses.dataclass(frozen=True)
class LabelledEvaluation:
    loss: metrics.Estimate  # nats, or squared error; of tags per token, of all else per example
    scores: dict[str, metrics.Estimate]
    examples: int

    def as_dict(self) -> dict:
        scores = {name: value for name, (value, _) in self.scores.items()}
        errors = {f"{name}_error": error for name, (_, error) in self.scores.items()}
        return {
            "loss": self.loss.value,
            "standard_error": self.loss.error,
            **scores,
            **errors,
            "examples": self.examples,
        }

    def __str__(self) -> str:
        scores = "".join(f"  {name} {value:.4f} +- {error:.4f}" for name, (value, error) in self.scores.items())
        return f"loss {self.loss.value:.4f} +- {self.loss.error:.4f}{scores}  ({self.examples:,} examples)"


def evaluate_sources(
    program, params, rows: dict[str, EvalExamples], batch_size: int, should_stop=lambda: False, report=None
) -> dict[str, LabelledEvaluation] | None:
    """{source: LabelledEvaluation}; of several also "all", their examples taken as one set, first. None: should_stop() said so.

    report: as held_out.evaluate_sources has it."""
    outcomes = {}
    for name, source in rows.items():
        outcome = judge(
            program,
            params,
            source,
            batch_size,
            should_stop,
            functools.partial(report, name, source.num_rows) if report else None,
        )
        if outcome is None:
            return None
        outcomes[name] = outcome
    pooled = {"all": Outcome.joined(outcomes.values())} if len(outcomes) > 1 else {}
    return {name: summarise(outcome) for name, outcome in (pooled | outcomes).items()}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of a set: its examples, and what the model made of each."""

    examples: list[Example]
    head: task_heads.TaskHead
    tokenizer: typing.Any
    loss_E: np.ndarray
    weight_E: np.ndarray
    predictions: list  # of each example, as predictions.READ gives them

    @classmethod
    def joined(cls, parts) -> "Outcome":
        first, *_ = parts = list(parts)
        return cls(
            [each for part in parts for each in part.examples],
            first.head,
            first.tokenizer,
            np.concatenate([part.loss_E for part in parts]),
            np.concatenate([part.weight_E for part in parts]),
            [each for part in parts for each in part.predictions],
        )


@functools.partial(compiling.jit, static_argnums=0)
def _judged(graph, params, batch):
    """(outputs, loss [B], weight [B]) of a batch that has labels."""
    head = head_of(graph, params)
    output, _ = labelled.outputs(params, batch, graph=graph, mesh_config=MeshConfig(), head=head)
    return output, *labelled.LOSSES[head.loss](output, batch)


def head_of(graph, params) -> task_heads.TaskHead:
    return task_heads.of(nnx.merge(graph, params).config)


def judge(
    program, params, rows: EvalExamples, batch_size: int, should_stop=lambda: False, report=None
) -> Outcome | None:
    """On the mesh in context, batch_size examples at a time. None if should_stop() said so between two batches."""
    losses, weights, read = [], [], []
    for first in range(0, rows.num_rows, batch_size):
        if should_stop():
            return None
        output, loss_B, weight_B = sharding.on_host(
            _judged(program.graph, params, placed_batch(program, rows, first, batch_size))
        )
        examples = rows.examples[first : first + batch_size]
        read += [predictions.READ[rows.head.loss](output[b], example) for b, example in enumerate(examples)]
        losses.append(loss_B[: len(examples)])
        weights.append(weight_B[: len(examples)])
        if report is not None:
            report(
                first + len(examples), *(float(np.sum([part.sum() for part in parts])) for parts in (losses, weights))
            )
    return Outcome(
        list(rows.examples), rows.head, rows.tokenizer, np.concatenate(losses), np.concatenate(weights), read
    )


def placed_batch(program, rows: EvalExamples, first: int, batch_size: int) -> dict:
    return placement.device_batch(
        lambda start, stop: rows.rows(first + start, first + stop), batch_size, program.eval_batch_sharding
    )


# ---- metrics


def summarise(outcome: Outcome) -> LabelledEvaluation:
    loss = metrics.Estimate(*held_out.ratio_of_means(np.float64(outcome.loss_E), np.float64(outcome.weight_E)))
    return LabelledEvaluation(loss, _SCORES[outcome.head.loss](outcome), len(outcome.examples))


def _class_scores(outcome: Outcome) -> dict:
    true_E = [int(example.label) for example in outcome.examples]
    return metrics.of_classes(
        true_E, [int(prediction_K.argmax()) for prediction_K in outcome.predictions], outcome.head.outputs
    )


def _choice_scores(outcome: Outcome) -> dict:
    right_E = [
        int(example.label) == int(prediction_C.argmax())
        for example, prediction_C in zip(outcome.examples, outcome.predictions)
    ]
    return {"accuracy": metrics.binomial(float(np.mean(right_E)), len(right_E))}


def _tag_scores(outcome: Outcome) -> dict:
    K = outcome.head.outputs
    return metrics.of_sequences(
        np.stack(
            [
                metrics.confusion(example.label, prediction_W, K)
                for example, prediction_W in zip(outcome.examples, outcome.predictions)
            ]
        )
    )


def _span_scores(outcome: Outcome) -> dict:
    answers = [
        predictions.answer_text(example, span, outcome.tokenizer)
        for example, span in zip(outcome.examples, outcome.predictions)
    ]
    return metrics.of_answers(answers, [example.answers for example in outcome.examples])


def _number_scores(outcome: Outcome) -> dict:
    """Of the first number, and of others by their place."""
    true_EO, predicted_EO = np.stack([example.label for example in outcome.examples]), np.stack(outcome.predictions)
    scores = {}
    for i in range(outcome.head.outputs):
        of_one = metrics.of_numbers(true_EO[:, i], predicted_EO[:, i])
        scores |= {name + f"_{i}" * (i > 0): score for name, score in of_one.items()}
    return scores


_SCORES = {
    "classify": _class_scores,
    "choice": _choice_scores,
    "tag": _tag_scores,
    "span": _span_scores,
    "regress": _number_scores,
}


# ---- a run's own examples, and others


@dataclasses.dataclass(frozen=True)
class LabelledReading:
    """In the place of a run_loss.Reading."""

    rows: dict[str, EvalExamples]
    about: dict[str, str]  # what each set is
    texts: dict = dataclasses.field(default_factory=dict)

    def convention(self, run) -> dict:
        """JSON values: what the numbers of an evaluation mean."""
        return {
            "task": run.config.data.task,
            "task_head": run.config.model.task_head,
            "loss": "squared error" if task_heads.of(run.config.model).loss == "regress" else "nats",
            "standard_error": f"accuracy and exact match: binomial; others: over {metrics.RESAMPLES} bootstrap samples of the"
            " examples; loss: of a ratio of means over examples",
            "examples": self.about,
            "dtype": run.model_config.dtype,
        }


def reading_of(run, texts=None, max_tokens: int | None = None) -> LabelledReading:
    """The run's held-out examples, or all of other sets. texts: SPECs, as run_loss.reading_of takes them.

    Raises UserError: examples that cannot be had."""
    if texts is None:
        sets, about = _own(run)
    else:
        specs = evaluation_text.named(texts)
        sets = {name: store.other_examples(spec, run.config, run.tokenizer) for name, spec in specs.items()}
        about = {name: f"all of {spec}" for name, spec in specs.items()}
    return LabelledReading({name: rows_of(run, examples, max_tokens) for name, examples in sets.items()}, about)


def _own(run) -> tuple[dict, dict]:
    run.directory.check_trained("evaluated on its examples; give --data=KIND:PATH")
    opened = store.open_examples(run.config)
    tokenizers.check_same(opened.tokenizer, run.tokenizer)
    run.directory.check_text(opened)
    return {opened.name: opened.examples.val.examples}, {opened.name: "the run's held-out examples"}


def rows_of(run, examples, max_tokens: int | None = None) -> EvalExamples:
    head = task_heads.of(run.config.model)
    unit = labelled.length_unit(run.model.kernel, run.mesh)
    task, length = kinds.of(run.config.data, head), run.config.model.context_length
    return EvalExamples(examples, head, task, run.tokenizer, length, unit, max_tokens)
