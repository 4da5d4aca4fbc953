"""A model with a task head on labelled examples: loss and metrics of held-out ones, and what it says of new ones.

    evaluate_sources(program, params, {name: EvalExamples}, batch_size)     as held_out's, of text
    classify(run, ["a text", ...])                                          [Prediction, ...]

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
from gptjax.data.examples.task import Encoder, Example
from gptjax.errors import UserError
from gptjax.evaluation import held_out, metrics
from gptjax.evaluation import texts as evaluation_text
from gptjax.hosts import compiling
from gptjax.models import labelled
from gptjax.parallel import numerics, placement, sharding


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
    found = {}
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
        found[name] = outcome
    pooled = {"all": Outcome.joined(found.values())} if len(found) > 1 else {}
    return {name: summarise(outcome) for name, outcome in (pooled | found).items()}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of a set: its examples, and what the model made of each."""

    examples: list[Example]
    head: task_heads.TaskHead
    tokenizer: typing.Any
    loss_E: np.ndarray
    weight_E: np.ndarray
    said: list  # Said of each example

    @classmethod
    def joined(cls, parts) -> "Outcome":
        first, *_ = parts = list(parts)
        return cls(
            [each for part in parts for each in part.examples],
            first.head,
            first.tokenizer,
            np.concatenate([part.loss_E for part in parts]),
            np.concatenate([part.weight_E for part in parts]),
            [each for part in parts for each in part.said],
        )


@functools.partial(compiling.jit, static_argnums=0)
def _judged(graph, params, batch):
    """(outputs, loss [B], weight [B]) of a batch that has labels."""
    head = _head_of(graph, params)
    output, _ = labelled.outputs(params, batch, graph=graph, mesh_config=MeshConfig(), head=head)
    return output, *labelled.LOSSES[head.loss](output, batch)


@functools.partial(compiling.jit, static_argnums=0)
def _outputs(graph, params, batch):
    return labelled.outputs(params, batch, graph=graph, mesh_config=MeshConfig(), head=_head_of(graph, params))[0]


def _head_of(graph, params) -> task_heads.TaskHead:
    return task_heads.of(nnx.merge(graph, params).config)


def judge(
    program, params, rows: EvalExamples, batch_size: int, should_stop=lambda: False, report=None
) -> Outcome | None:
    """On the mesh in context, batch_size examples at a time. None if should_stop() said so between two batches."""
    losses, weights, said = [], [], []
    for first in range(0, rows.num_rows, batch_size):
        if should_stop():
            return None
        output, loss_B, weight_B = sharding.on_host(
            _judged(program.graph, params, _placed(program, rows, first, batch_size))
        )
        examples = rows.examples[first : first + batch_size]
        said += [_SAID[rows.head.loss](output[b], example) for b, example in enumerate(examples)]
        losses.append(loss_B[: len(examples)])
        weights.append(weight_B[: len(examples)])
        if report is not None:
            report(
                first + len(examples), *(float(np.sum([part.sum() for part in parts])) for parts in (losses, weights))
            )
    return Outcome(
        list(rows.examples), rows.head, rows.tokenizer, np.concatenate(losses), np.concatenate(weights), said
    )


def _placed(program, rows: EvalExamples, first: int, batch_size: int) -> dict:
    return placement.device_batch(
        lambda start, stop: rows.rows(first + start, first + stop), batch_size, program.eval_batch_sharding
    )


# ---- what the outputs of an example say


def _said_class(output_O, example: Example) -> np.ndarray:
    """Float64 [K]: the probability of each class, or of each sequence of a choice."""
    exp_O = np.exp(np.float64(output_O) - np.max(output_O))
    return exp_O / exp_O.sum()


def _said_tokens(output_LO, example: Example) -> np.ndarray:
    """int64 [W]: the class of each token that has a label."""
    return output_LO[example.place_W].argmax(-1)


def _said_span(output_LO, example: Example) -> tuple[int, int, float]:
    """(first token, last token, probability) of the likeliest span within the context."""
    length = len(example.sequences[0])
    start_L, end_L = (_said_class(output_LO[:length, i], example) for i in range(2))
    first, last = example.place_W
    start_L, end_L = start_L[first : last + 1], end_L[first : last + 1]
    best_start_L = np.maximum.accumulate(start_L)
    end = int(np.argmax(best_start_L * end_L))
    start = int(np.argmax(start_L[: end + 1]))
    return int(first) + start, int(first) + end, float(start_L[start] * end_L[end])


_SAID = {
    "classify": _said_class,
    "choice": lambda output_C, example: _said_class(output_C[: len(example.sequences)], example),
    "tag": _said_tokens,
    "span": _said_span,
    "regress": lambda output_O, example: np.float64(output_O),
}


# ---- metrics


def summarise(outcome: Outcome) -> LabelledEvaluation:
    loss = metrics.Estimate(*held_out.ratio_of_means(np.float64(outcome.loss_E), np.float64(outcome.weight_E)))
    return LabelledEvaluation(loss, _SCORES[outcome.head.loss](outcome), len(outcome.examples))


def _class_scores(outcome: Outcome) -> dict:
    true_E = [int(example.label) for example in outcome.examples]
    return metrics.of_classes(true_E, [int(said_K.argmax()) for said_K in outcome.said], outcome.head.outputs)


def _choice_scores(outcome: Outcome) -> dict:
    right_E = [int(example.label) == int(said_C.argmax()) for example, said_C in zip(outcome.examples, outcome.said)]
    return {"accuracy": metrics.binomial(float(np.mean(right_E)), len(right_E))}


def _tag_scores(outcome: Outcome) -> dict:
    K = outcome.head.outputs
    return metrics.of_sequences(
        np.stack(
            [metrics.confusion(example.label, said_W, K) for example, said_W in zip(outcome.examples, outcome.said)]
        )
    )


def _span_scores(outcome: Outcome) -> dict:
    answers = [_answer(example, said, outcome.tokenizer) for example, said in zip(outcome.examples, outcome.said)]
    return metrics.of_answers(answers, [example.answers for example in outcome.examples])


def _number_scores(outcome: Outcome) -> dict:
    """Of the first number, and of others by their place."""
    true_EO, said_EO = np.stack([example.label for example in outcome.examples]), np.stack(outcome.said)
    found = {}
    for i in range(outcome.head.outputs):
        scores = metrics.of_numbers(true_EO[:, i], said_EO[:, i])
        found |= {name + f"_{i}" * (i > 0): score for name, score in scores.items()}
    return found


def _answer(example: Example, said: tuple[int, int, float], tokenizer) -> str:
    first, last, _ = said
    return tokenizer.decode(example.sequences[0][first : last + 1]).strip()


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
    said: dict[str, str]  # what each set is
    texts: dict = dataclasses.field(default_factory=dict)

    def convention(self, run) -> dict:
        """JSON values: what the numbers of an evaluation mean."""
        return {
            "task": run.config.data.task,
            "task_head": run.config.model.task_head,
            "loss": "squared error" if task_heads.of(run.config.model).loss == "regress" else "nats",
            "standard_error": f"accuracy and exact match: binomial; others: over {metrics.RESAMPLES} bootstrap samples of the"
            " examples; loss: of a ratio of means over examples",
            "examples": self.said,
            "dtype": run.model_config.dtype,
        }


def check_settings(run, settings: dict) -> None:
    """Raises UserError: a flag of `gptjax eval` that is given is of running text."""
    for name, value in settings.items():
        if value is not None:
            raise UserError(
                f"--{name}={value}: a run of data.task={run.config.data.task!r} is judged by examples; leave it out."
            )


def reading_of(run, texts=None, max_tokens: int | None = None) -> LabelledReading:
    """The run's held-out examples, or all of other sets. texts: SPECs, as run_loss.reading_of takes them.

    Raises UserError: examples that cannot be had."""
    if texts is None:
        found, said = _own(run)
    else:
        specs = evaluation_text.named(texts)
        found = {name: store.other_examples(spec, run.config, run.tokenizer) for name, spec in specs.items()}
        said = {name: f"all of {spec}" for name, spec in specs.items()}
    return LabelledReading({name: _rows(run, examples, max_tokens) for name, examples in found.items()}, said)


def _own(run) -> tuple[dict, dict]:
    run.directory.check_trained("evaluated on its examples; give --data=KIND:PATH")
    opened = store.open_examples(run.config)
    tokenizers.check_same(opened.tokenizer, run.tokenizer)
    run.directory.check_text(opened)
    return {opened.name: opened.examples.val.examples}, {opened.name: "the run's held-out examples"}


def _rows(run, examples, max_tokens: int | None = None) -> EvalExamples:
    head = task_heads.of(run.config.model)
    unit = labelled.length_unit(run.model.kernel, run.mesh)
    task, length = kinds.of(run.config.data, head), run.config.model.context_length
    return EvalExamples(examples, head, task, run.tokenizer, length, unit, max_tokens)


# ---- new examples


@dataclasses.dataclass(frozen=True)
class Prediction:
    """label: the name of the class; of a choice the number of the text; of tags a list of names; of a question the answer; of a
    regression the number, or a list of several. probability: of each class or choice; of an answer that of its span."""

    label: typing.Any
    probability: typing.Any = None


def classify(run, examples, batch_size: int) -> list[Prediction]:
    """What a run says of texts, or of records with the fields of its data.task, without a label; so many go through the model
    at once, a multiple of the devices.

    Raises UserError: a run without a task head, examples that are not of its task."""
    if run.config.data.task is None:
        raise UserError("run.classify: this model has no task head (model.task_head); use a run of data.task.")
    head = task_heads.of(run.config.model)
    task = kinds.of(run.config.data, head)
    encoder = Encoder(run.tokenizer, run.config.model.context_length, task.keep)
    given = [examples] if isinstance(examples, str | dict) else list(examples)
    made = [
        task.example(_record(task, one), f"example {i}", encoder, head, labelled=False) for i, one in enumerate(given)
    ]
    if not made:
        return []
    rows, said = _rows(run, made), []
    with numerics.on_mesh(run.mesh):
        for first in range(0, len(made), batch_size):
            output = sharding.on_host(_outputs(run.graph, run.params, _placed(run.program, rows, first, batch_size)))
            part = made[first : first + batch_size]
            said += [_SAID[head.loss](output[b], example) for b, example in enumerate(part)]
    names = task.class_names(head.outputs)
    return [_prediction(head, names, example, one, run.tokenizer) for example, one in zip(made, said)]


def _record(task, one) -> dict:
    if isinstance(one, dict):
        return one
    if isinstance(one, str) and isinstance(task, kinds.Classify):
        return {task.text: one}
    raise UserError(
        f"run.classify: {type(one).__name__} is no example of this task; give a record with its fields, a dict."
    )


def _prediction(head, names: list[str], example: Example, said, tokenizer) -> Prediction:
    if head.loss == "tag":
        return Prediction([names[k] for k in said])
    if head.loss == "span":
        return Prediction(_answer(example, said, tokenizer), said[2])
    if head.loss == "regress":
        return Prediction(float(said[0]) if len(said) == 1 else said.tolist())
    names = names if head.loss == "classify" else [str(c) for c in range(len(said))]
    return Prediction(names[int(said.argmax())], dict(zip(names, said.tolist())))
