"""The labelled examples of a config: read, made into tokens, and cut into training and held-out ones, in memory.

Held out is the end of the set (data.val_split="tail") or examples chosen by a hash of their texts ("document"), as of running
text. What cannot be an example is left out, named on stderr and counted; so are texts that are cut to fit.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable

import numpy as np

from gptjax.config import task_heads
from gptjax.data import sources, tokenizers
from gptjax.data.examples import kinds, records
from gptjax.data.examples.rows import EvalExamples, TrainExamples
from gptjax.data.examples.task import CONTROL, Encoder, Example, Task
from gptjax.data.rows.hashing import is_held_out
from gptjax.data.tokens.folder import digest
from gptjax.errors import UserError
from gptjax.models import labelled


@dataclasses.dataclass(frozen=True)
class Split:
    examples: tuple  # of Example, or of data.pairs.encoding.Example

    @property
    def n_tokens(self) -> int:
        return sum(len(ids) for example in self.examples for ids in example.sequences)


@dataclasses.dataclass(frozen=True)
class Examples:
    """A set, as a TokenStore has its texts."""

    train: Split
    val: Split
    description: dict  # JSON values for the manifest
    fingerprint: str
    training_text: str = "the training examples"


class OfOneSet:
    """What stores of a single set, `examples`, called `name`, have in common with a TokenStore."""

    @property
    def sources(self) -> dict[str, Examples]:
        return {self.name: self.examples}

    @property
    def fingerprint(self) -> str:
        return self.examples.fingerprint

    @property
    def description(self) -> dict:
        return self.examples.description


@dataclasses.dataclass(frozen=True)
class ExampleStore(OfOneSet):
    """In the place of a TokenStore."""

    tokenizer: tokenizers.Tokenizer  # with the control tokens
    task: Task
    head: task_heads.TaskHead
    context_length: int
    examples: Examples
    name: str

    def rows(self, config, program) -> tuple[TrainExamples, dict[str, EvalExamples]]:
        """(rows to train on, {source: held-out rows}) for a Config and a model on a mesh."""
        unit = labelled.length_unit(program.kernel, program.mesh)
        held_out = EvalExamples.held_out(self, unit, config.eval.max_tokens)
        return TrainExamples(self, config.data.seed, unit), {self.name: held_out}


def open_examples(config, alive: Callable = lambda: None) -> ExampleStore:
    """The ExampleStore of a Config; alive() is called after each record that is read.

    Raises UserError: no such task or file, a tokenizer that does not work, a split without examples.
    """
    data, length = config.data, config.model.context_length
    head = task_heads.of(config.model)
    task = kinds.of(data, head)
    omissions = sources.Omissions(said=True)
    placed_records = list(_watched(records.read(data, omissions), alive))
    if not placed_records and omissions.messages:
        raise UserError(omissions.messages[0])
    tokenizer = _tokenizer(data, task, placed_records).with_special(CONTROL)
    encoder = Encoder(tokenizer, length, task.keep)
    if encoder.room(2) < 1:
        raise UserError(f"model.context_length={length} has no room for two texts; use at least 6.")
    examples, texts = _examples(placed_records, task, head, encoder, omissions)
    omissions.end()
    train, val = split(examples, texts, data)
    _say_cut(examples, encoder)
    description = _description(data, examples, omissions, train, val)
    fingerprint = digest(
        {"examples": _hash(examples), "task": data.task, "tokenizer": tokenizer.hash, **how_split(data)}
    )
    made = Examples(train, val, description, fingerprint)
    return ExampleStore(tokenizer, task, head, length, made, sources.source_name(data))


def other_examples(spec: str, config, tokenizer) -> list[Example]:
    """All examples of another set, a SPEC, for the task and head of a Config. tokenizer: with the control tokens."""
    data, head, omissions = (
        sources.from_spec(spec, config.data),
        task_heads.of(config.model),
        sources.Omissions(said=True),
    )
    task = kinds.of(data, head)
    encoder = Encoder(tokenizer, config.model.context_length, task.keep)
    examples, _ = _examples(records.read(data, omissions), task, head, encoder, omissions)
    omissions.end()
    _say_cut(examples, encoder)
    return examples


def _watched(placed_records, alive):
    for each in placed_records:
        alive()
        yield each


def _tokenizer(data, task: Task, placed_records: list) -> tokenizers.Tokenizer:
    """That of the config; one that is made from text is made of the records' texts."""

    def texts():
        for where, record in placed_records:
            try:
                yield from (text for sequence in task.texts(record, where) for text in sequence)
            except UserError:  # told of when it is made an example
                continue

    return tokenizers.train_tokenizer(data, texts())


def _examples(placed_records, task: Task, head, encoder: Encoder, omissions) -> tuple[list[Example], list[str]]:
    """(examples, the texts of each in one). What cannot be one is told to omissions."""
    examples, texts = [], []
    for where, record in placed_records:
        try:
            example = task.example(record, where, encoder, head)
        except UserError as error:
            omissions(error)
            continue
        examples.append(example)
        texts.append("\n".join(task.texts(record, where)[0]))
    if not examples:
        raise UserError(
            omissions.messages[0] if omissions.messages else "data.path holds no record; give another file."
        )
    return examples, texts


def split(examples: list, texts: list[str], data) -> tuple[Split, Split]:
    """(training, held-out). texts: of each example, by which it is held out where data.val_split says so. Raises UserError:
    one of them is empty."""
    if data.val_split == "document":
        held_out = [is_held_out(text, data.val_fraction) for text in texts]
    else:
        n_train = int(len(examples) * (1 - data.val_fraction))
        held_out = [i >= n_train for i in range(len(examples))]
    parts = [Split(tuple(each for each, out in zip(examples, held_out) if out == wanted)) for wanted in (False, True)]
    for part, name in zip(parts, ("training", "held-out")):
        if not part.examples:
            raise UserError(
                f"data.val_fraction={data.val_fraction} of {len(examples)} examples leaves no {name} ones; use another."
            )
    return parts[0], parts[1]


def how_split(data) -> dict:
    """What `split` goes by, for a fingerprint."""
    return {"val_split": data.val_split, "val_fraction": data.val_fraction}


def _say_cut(examples: list[Example], encoder: Encoder) -> None:
    if count := sum(example.cut > 0 for example in examples):
        print(
            f"cut to fit model.context_length={encoder.context_length}: texts of {count:,} of {len(examples):,} examples",
            file=sys.stderr,
        )


def _description(data, examples, omissions, train: Split, val: Split) -> dict:
    counts = {
        name: {"examples": len(split.examples), "tokens": split.n_tokens}
        for name, split in (("train", train), ("val", val))
    }
    left_out = {"left_out": {"count": omissions.count, "messages": omissions.messages}} if omissions.count else {}
    cut = sum(example.cut > 0 for example in examples)
    return {"task": data.task, **records.identity(data), "splits": counts, "cut": cut, **left_out}


def _hash(examples: list[Example]) -> str:
    sha = hashlib.sha256()
    for example in examples:
        label = np.asarray(example.label)
        sha.update(json.dumps([*map(len, example.sequences), str(label.dtype), *label.shape]).encode())
        for array in (*example.sequences, label):
            sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
