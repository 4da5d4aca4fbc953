"""What a run with a task head says of new examples: classify(run, ["a text", ...]) gives a Prediction of each."""

import dataclasses
import functools
import typing

from gptjax.config import task_heads
from gptjax.config.fields import MeshConfig
from gptjax.data.examples import kinds
from gptjax.data.examples.task import Encoder, Example
from gptjax.errors import UserError
from gptjax.evaluation import labelled, predictions
from gptjax.hosts import compiling
from gptjax.models import labelled as labelled_model
from gptjax.parallel import numerics, sharding


@dataclasses.dataclass(frozen=True)
class Prediction:
    """label: the name of the class; of a choice the number of the text; of tags the names for the words that fit the context; of
    a question the answer; of a regression the number, or a list of several. probability: of each class or choice; of an answer
    that of its span."""

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
    records = [examples] if isinstance(examples, str | dict) else list(examples)
    made = [
        task.example(_record(task, one), f"example {i}", encoder, head, labelled=False) for i, one in enumerate(records)
    ]
    if not made:
        return []
    rows, read = labelled.rows_of(run, made), []
    with numerics.on_mesh(run.mesh):
        for first in range(0, len(made), batch_size):
            output = sharding.on_host(
                _outputs(run.graph, run.params, labelled.placed_batch(run.program, rows, first, batch_size))
            )
            part = made[first : first + batch_size]
            read += [predictions.READ[head.loss](output[b], example) for b, example in enumerate(part)]
    names = task.class_names(head.outputs)
    return [_prediction(head, names, example, one, run.tokenizer) for example, one in zip(made, read)]


def _record(task, one) -> dict:
    if isinstance(one, dict):
        return one
    if isinstance(one, str) and isinstance(task, kinds.Classify):
        return {task.text: one}
    raise UserError(
        f"run.classify: {type(one).__name__} is no example of this task; give a record with its fields, a dict."
    )


def _prediction(head, names: list[str], example: Example, read, tokenizer) -> Prediction:
    if head.loss == "tag":
        return Prediction([names[k] for k in read])
    if head.loss == "span":
        return Prediction(predictions.answer_text(example, read, tokenizer), read[2])
    if head.loss == "regress":
        return Prediction(float(read[0]) if len(read) == 1 else read.tolist())
    names = names if head.loss == "classify" else [str(c) for c in range(len(read))]
    return Prediction(names[int(read.argmax())], dict(zip(names, read.tolist())))


@functools.partial(compiling.jit, static_argnums=0)
def _outputs(graph, params, batch):
    return labelled_model.outputs(
        params, batch, graph=graph, mesh_config=MeshConfig(), head=labelled.head_of(graph, params)
    )[0]
