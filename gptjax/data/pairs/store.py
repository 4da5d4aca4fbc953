"""The preferences of a config: read, made into tokens, and cut into training and held-out ones, in memory.

Held out is the end of the set (data.val_split="tail") or examples chosen by a hash of their prompts ("document"), so that all
answers to one prompt fall to one side. What cannot be an example is left out, named on stderr and counted. So is what is
longer than model.context_length, by data.chat_overflow: dropped whole (a pair of which one side is cut would be judged by
where it was cut), cut to the beginning of each sequence, or refused.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from gptjax.config import task_heads
from gptjax.data import sources, tokenizers
from gptjax.data.chat import chat_format
from gptjax.data.examples.store import Examples, OfOneSet, Split, how_split, split
from gptjax.data.pairs.encoding import Encoder, Example, TooLong
from gptjax.data.pairs.rows import EvalPairs, TrainPairs
from gptjax.data.tokens.folder import digest
from gptjax.errors import UserError
from gptjax.models import labelled


@dataclasses.dataclass(frozen=True)
class PairStore(OfOneSet):
    """In the place of a TokenStore."""

    tokenizer: tokenizers.Tokenizer  # with the control tokens of the chat format
    head: task_heads.TaskHead | None
    context_length: int
    examples: Examples
    name: str

    def rows(self, config, program) -> tuple[TrainPairs, dict[str, EvalPairs]]:
        """(rows to train on, {source: held-out rows}) for a Config and a model on a mesh."""
        unit = labelled.length_unit(program.kernel, program.mesh)
        held_out = rows_of(self.examples.val.examples, self.head, self.tokenizer, config, unit, config.eval.max_tokens)
        return TrainPairs(self, config.data.seed, unit), {self.name: held_out}


def open_pairs(config, alive: Callable = lambda: None) -> PairStore:
    """The PairStore of a Config; alive() is called after each record that is read.

    Raises UserError: no such file or format, a tokenizer that does not work, a split without examples, an example that is
    too long where data.chat_overflow is refuse.
    """
    data = config.data
    form, omissions = chat_format(data.chat), sources.Omissions(said=True)
    documents = list(_watched(sources.whole_documents(data, omissions), alive))
    tokenizer = tokenizers.train_tokenizer(data, _texts(documents)).with_special(form.symbols)
    made = _examples(documents, _encoder(config, form, tokenizer), data.chat_overflow, omissions)
    omissions.end()
    _say(made, config)
    train, val = split(made.examples, made.prompts, data)
    about = {"examples": _hash(made.examples), "preferences": data.preferences, "tokenizer": tokenizer.hash}
    examples = Examples(train, val, _description(config, made, omissions, train, val), digest(about | how_split(data)))
    head = task_heads.of(config.model)
    return PairStore(tokenizer, head, config.model.context_length, examples, sources.source_name(data))


def other_examples(spec: str, config, form, tokenizer) -> list[Example]:
    """All examples of another set, a SPEC, as a Config has them. form: its data.chat.Format; tokenizer: with its symbols."""
    data, omissions = sources.from_spec(spec, config.data), sources.Omissions(said=True)
    documents = sources.whole_documents(data, omissions)
    made = _examples(documents, _encoder(config, form, tokenizer), data.chat_overflow, omissions)
    omissions.end()
    _say(made, config)
    return made.examples


def rows_of(examples, head, tokenizer, config, unit: int, max_tokens: int | None = None) -> EvalPairs:
    """Examples in order, as they are judged; max_tokens, unit: see EvalExamples."""
    return EvalPairs(examples, head, None, tokenizer, config.model.context_length, unit, max_tokens)


def _encoder(config, form, tokenizer) -> Encoder:
    return Encoder(form, tokenizer, config.model.context_length, config.data.chat_overflow)


def _watched(documents, alive) -> Iterator:
    for document in documents:
        alive()
        yield document


def _texts(documents) -> Iterator[str]:
    """For a tokenizer that is made of them."""
    for document in documents:
        yield document.text
        yield from (message.content for answer in document.comparison.answers for message in answer)


class Made(NamedTuple):
    """What became of documents."""

    examples: list[Example]
    prompts: list[str]  # of each example
    too_long: list[str]  # the line on each that is left out because it is

    @property
    def cut(self) -> int:
        """Examples of which something is cut."""
        return sum(example.cut > 0 for example in self.examples)


def _examples(documents, encoder: Encoder, overflow: str, omissions) -> Made:
    """What cannot be an example is told to omissions. Raises UserError: there is none."""
    made = Made([], [], [])
    for document in documents:
        try:
            example = encoder(document.comparison, document.where)
        except TooLong as error:
            if overflow == "refuse":
                raise UserError(f"{error} Use a larger one, or data.chat_overflow='drop' or 'cut'.") from error
            made.too_long.append(str(error))
            continue
        except UserError as error:
            omissions(error)
            continue
        made.examples.append(example)
        made.prompts.append(document.text)
    if not made.examples:
        why = [*omissions.messages, *made.too_long]
        raise UserError(why[0] if why else "data.path holds no record; give another file.")
    return made


def _say(made: Made, config) -> None:
    length, all_of = config.model.context_length, len(made.examples) + len(made.too_long)
    for count, what in ((made.cut, "cut to their beginning"), (len(made.too_long), "dropped")):
        if count:
            print(
                f"longer than model.context_length={length}: {count:,} of {all_of:,} examples {what}", file=sys.stderr
            )


def _description(config, made: Made, omissions, train: Split, val: Split) -> dict:
    counts = {
        name: {"examples": len(part.examples), "tokens": part.n_tokens}
        for name, part in (("train", train), ("val", val))
    }
    left_out = {"left_out": {"count": omissions.count, "messages": omissions.messages}} if omissions.count else {}
    too_long = {"policy": config.data.chat_overflow, "dropped": len(made.too_long), "cut": made.cut}
    if made.too_long:
        too_long["first"] = made.too_long[0]
    about = {"preferences": config.data.preferences, "chat": config.data.chat, **sources.identity(config.data)}
    return about | {"splits": counts, "too_long": too_long} | left_out


def _hash(examples: list[Example]) -> str:
    sha = hashlib.sha256()
    for each in examples:
        facts = [[*map(len, each.sequences)], each.score_K.tolist(), each.margin, each.label]
        sha.update(json.dumps(facts).encode())
        for array in (*each.sequences, *each.targets):
            sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()
