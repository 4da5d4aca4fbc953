"""A model with a task head as transformers' class for the task, which reads the same activation by the same matrix.

    classes, regression   ...ForSequenceClassification: `score`, without a bias, at the last token that is no padding
    token_classes         ...ForTokenClassification: `score` or GPT-2's `classifier`, with a bias, at every token

The body is written as that of a language model, whose own output matrix has no place there. A sequence has to have the tokens
that our tasks give it (docs/classification.md), which end with one that pads nothing.
"""

import dataclasses
import typing

from gptjax.config import task_heads
from gptjax.data.examples import kinds
from gptjax.data.examples.task import START
from gptjax.errors import UserError
from gptjax.huggingface.base import Layout, Tensor

SEQUENCE, TOKENS = "ForSequenceClassification", "ForTokenClassification"
_LANGUAGE_MODELS = ("LMHeadModel", "ForCausalLM")  # how the names of families' architectures end
_TRANSPOSED = Layout(lambda arrays, model: arrays[0].T, lambda array, model: (array.T,))  # [D, O] here, [O, D] there


class TaskModel(typing.NamedTuple):
    """What is written of the head of a model."""

    architecture: str
    tensors: tuple[Tensor, ...]
    fields: dict  # of config.json
    note: str


def of_run(run, family) -> TaskModel | None:
    """Of a Run, whose body is of a base.Family; None: it has no task head. Raises UserError: transformers has no class of the
    same outputs."""
    head = task_heads.of(run.config.model)
    if head is None:
        return None
    stem = next(family.architecture.removesuffix(end) for end in _LANGUAGE_MODELS if family.architecture.endswith(end))
    of_tokens = head.reads_tokens
    architecture = stem + (TOKENS if of_tokens else SEQUENCE)
    if reason := _reason(run, head, family, architecture):
        raise UserError(f"this model cannot be written as Hugging Face's {architecture}: {reason}.")
    name = "classifier" if of_tokens and family.model_type == "gpt2" else "score"
    tensors = [Tensor("task_head.weight", (f"{name}.weight",), _TRANSPOSED)]
    tensors += [Tensor("task_head.bias", (f"{name}.bias",))] * head.bias
    return TaskModel(architecture, tuple(tensors), _fields(run, head), _note(run))


def body_of(shape):
    """A ModelConfig without its task head."""
    return dataclasses.replace(shape, task_head=None)


def _reason(run, head, family, architecture: str) -> str | None:
    """Why there is no such class; None: there is."""
    if head.loss not in ("classify", "regress", "tag"):
        return f"it has model.task_head={run.config.model.task_head!r}, whose outputs no class of that kind has"
    if head.reads_tokens and not head.bias:
        return "its head has no bias, which that class has; train it with bias=True"
    if head.reads_tokens and family.model_type == "openai-gpt":
        return "transformers has no GPT-1 that classifies tokens"
    if not head.reads_tokens and head.bias:
        name = run.config.model.task_head.partition("(")[0]
        return f"that class has no bias, and this head has one; train it with model.task_head='{name}(..., bias=False)'"
    if isinstance(kinds.of(run.config.data, head), kinds.Similarity):
        return "it adds the activations of a pair's two orders, and that class reads one sequence"
    return None


def _fields(run, head) -> dict:
    names = kinds.of(run.config.data, head).class_names(head.outputs) if head.loss != "regress" else None
    fields = {"num_labels": head.outputs, "pad_token_id": run.tokenizer.special[START]}  # which ends no sequence
    if names is None:
        return fields | {"problem_type": "regression"}
    kind = {} if head.reads_tokens else {"problem_type": "single_label_classification"}
    labels = {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {n: i for i, n in enumerate(names)},
    }
    return fields | labels | kind


def _note(run) -> str:
    untied = "" if run.config.model.tied_head else "; the output matrix of the language model is left out"
    return f"its texts need the tokens that data.task={run.config.data.task!r} puts around them{untied}"
