"""The prompts of a run: read, made into tokens, and cut into training and held-out ones, in memory.

A generator of problems (problems/) gives both parts by itself. A record of a file is {"prompt": text or messages} or
{"messages": [...]}, of which the answer at the end, if there is one, is left out; whatever else it holds is for the rewards.
With data.chat a prompt is rendered as a conversation that awaits an answer;
without, it is text, and an answer ends with the end-of-text token. Prompt number i of a run is a function of the set, data.seed
and i, in whole epochs.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gptjax.data import sources, tokenizers
from gptjax.data.chat import chat_format, parse_messages
from gptjax.data.chat.conversation import Message
from gptjax.data.examples import records
from gptjax.data.examples.store import OfOneSet
from gptjax.data.rows.hashing import is_held_out, mix, permute
from gptjax.data.tokens import rendering
from gptjax.data.tokens.folder import digest
from gptjax.errors import UserError, did_you_mean, shorten
from gptjax.generation.text import prompt_ids
from gptjax.posttrain.problems import problem

FURTHER_STREAM = 0x66757274  # of the order of prompts that are asked for beside those of the iterations
HELD_OUT_PROBLEMS = 256  # of a generator, where rl.eval_prompts does not say


class Prompt(NamedTuple):
    """What is answered."""

    record: dict  # as it was read
    messages: tuple[Message, ...]
    token_L: np.ndarray  # int32, up to where the answer begins
    where: str  # "FILE:LINE"


@dataclasses.dataclass(frozen=True)
class Split:
    prompts: tuple[Prompt, ...]

    @property
    def n_tokens(self) -> int:
        return sum(len(prompt.token_L) for prompt in self.prompts)


@dataclasses.dataclass(frozen=True)
class Prompts:
    """A set, as a TokenStore has its texts."""

    train: Split
    val: Split
    description: dict  # JSON values for the manifest
    fingerprint: str
    training_text: str = "the training prompts"


@dataclasses.dataclass(frozen=True)
class PromptStore(OfOneSet):
    """What stands in the place of a TokenStore where prompts are read."""

    tokenizer: tokenizers.Tokenizer  # with the control tokens of data.chat
    stop_ids: tuple[int, ...]  # tokens that end an answer
    examples: Prompts
    name: str

    def rows(self, config, program) -> tuple["TrainPrompts", dict]:
        """(prompts to train on, held-out texts, of which there are none) for a Config."""
        return TrainPrompts(self, config), {}

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        both = self.examples.train.prompts + self.examples.val.prompts
        return max(len(prompt.token_L) for prompt in both)


class TrainPrompts:
    """An endless stream of prompts, in the place of pipeline.TrainRows. A row of a run is an answer that is learnt from."""

    def __init__(self, store: PromptStore, config):
        self._prompts, self._seed, self._name = store.examples.train.prompts, config.data.seed, store.name
        self._rows_per_prompt = config.rl.group * config.rl.epochs
        self._identity = np.uint64(int(store.fingerprint[:16], 16))
        self.overflow = store.description["overflow"]

    @property
    def by_source(self) -> dict[str, "TrainPrompts"]:
        return {self._name: self}

    @property
    def rows_per_epoch(self) -> dict[str, int]:
        return {self._name: len(self._prompts) * self._rows_per_prompt}

    def order(self, number_P: np.ndarray) -> np.ndarray:
        """int64 [P]: which prompt of the set each number of the run is."""
        epoch_P, index_P = np.divmod(np.asarray(number_P, np.int64), len(self._prompts))
        return permute(index_P, len(self._prompts), self._seed, epoch_P)

    def prompts(self, number_P: np.ndarray) -> list[Prompt]:
        """Those with these numbers in the run."""
        return [self._prompts[i] for i in self.order(number_P).tolist()]

    def further_prompts(self, number_P: np.ndarray) -> list[Prompt]:
        """Others of the set, in whole epochs of an order of their own, for what those of an iteration did not give."""
        epoch_P, index_P = np.divmod(np.asarray(number_P, np.int64), len(self._prompts))
        order_P = permute(index_P, len(self._prompts), self._seed ^ FURTHER_STREAM, epoch_P)
        return [self._prompts[i] for i in order_P.tolist()]

    def hashes(self, first: int, stop: int) -> np.ndarray:
        """uint64 [stop - first]: of the set, the prompt, and the number in the run of rows first to stop - 1."""
        row_B = np.arange(first, stop, dtype=np.int64)
        place_B = mix(self._identity ^ self.order(row_B // self._rows_per_prompt).astype(np.uint64))
        return mix(place_B ^ mix(row_B.astype(np.uint64)))

    def epochs(self, n_rows: int) -> dict[str, float]:
        """How often the set was gone through for the first n_rows rows of the run."""
        return {self._name: n_rows / self.rows_per_epoch[self._name]}


def open_prompts(config, alive: Callable = lambda: None) -> PromptStore:
    """The PromptStore of a Config; alive() is called after each record that is read.

    Raises UserError: no such file or generator, a tokenizer that does not work, no prompt that leaves room for an answer.
    """
    omissions = sources.Omissions(said=True)
    is_made = problem.is_named(config.rl.prompts)
    parts = _generated(config) if is_made else [list(_records(config, omissions, alive))]
    tokenizer = tokenizers.train_tokenizer(config.data, _texts([each for part in parts for each in part]))
    form = None if config.data.chat is None else chat_format(config.data.chat)
    tokenizer = tokenizer if form is None else tokenizer.with_special(form.symbols)
    _check_entries(config.model.vocab_size, tokenizer)
    stop_ids, unread = _stop_ids(tokenizer, form), omissions.count
    made = [_prompts(part, config, tokenizer, form, omissions) for part in parts]
    omissions.end()
    train, val = map(Split, made) if is_made else _split(made[0], config.data)
    n_prompts = sum(map(len, parts)) - (omissions.count - unread)
    prompts = _set(config, tokenizer, train, val, n_prompts, omissions)
    return PromptStore(tokenizer, stop_ids, prompts, "prompts")


def _set(config, tokenizer, train: Split, val: Split, n_prompts: int, omissions) -> Prompts:
    """n_prompts: how many prompts there were before those that are too long were left out."""
    kept, room = len(train.prompts) + len(val.prompts), config.model.context_length - config.rl.max_tokens
    description = {
        "prompts": config.rl.prompts,
        "splits": {"train": len(train.prompts), "val": len(val.prompts)},
        "overflow": f"{n_prompts - kept:,} of {n_prompts:,} prompts are longer than {room} tokens and left out",
        **({"left_out": {"count": omissions.count, "messages": omissions.messages}} if omissions.count else {}),
        **rendering.identity(config.data),
    }
    facts = {"prompts": [_hash(train), _hash(val)], "tokenizer": tokenizer.hash}
    return Prompts(train, val, description, digest(facts))


def _generated(config) -> list[list[tuple[str, dict]]]:
    """[(where, record) of the problems to train on, of those held out]."""
    counts = {"train": config.rl.problems, "held_out": config.rl.eval_prompts or HELD_OUT_PROBLEMS}
    parts = []
    for split, count in counts.items():
        problems = problem.chosen(config.rl.prompts, config.data.seed, split)
        each = (problems[i] for i in range(count))
        parts.append([(one.where, {"prompt": one.prompt, **one.fields}) for one in each])
    return parts


def _records(config, omissions, alive):
    """(where, record) of the files of rl.prompts."""
    with sources.naming_field("rl.prompts"):
        _check_is_source(config.rl.prompts)
        for where, record in records.read(sources.from_spec(config.rl.prompts, config.data), omissions):
            alive()
            yield where, record


def _check_is_source(spec: str) -> None:
    """Raises UserError: a word that names neither a generator nor what lies on the disk."""
    if re.fullmatch(r"\w*(\(.*)?", spec, re.DOTALL) and not pathlib.Path(spec or "-").exists():
        near = did_you_mean(spec.partition("(")[0], problem.GENERATORS)
        raise UserError(
            f"rl.prompts={shorten(repr(spec), 80)} is no generator and no file{near or ';'} expected jsonl:FILE, parquet:FILE or"
            f" one of: {', '.join(problem.GENERATORS)}."
        )


def _check_entries(entries: int | None, tokenizer) -> None:
    """Raises UserError: the model would say tokens that the tokenizer has not."""
    if entries is not None and entries != tokenizer.vocab_size:
        raise UserError(
            f"model.vocab_size={entries}, but the tokenizer has {tokenizer.vocab_size} entries, and only those can be answered"
            " with; use model.vocab_size=None."
        )


def _texts(named):
    """The prompts as text, for a tokenizer that is made from text."""
    for where, record in named:
        try:
            yield from (message.content for message in parse_messages(_values(record, where), where))
        except UserError:  # told of when it is made a prompt
            continue


def _stop_ids(tokenizer, form) -> tuple[int, ...]:
    """Tokens that end an answer. Raises UserError: there is none."""
    ids = form.stop_ids(tokenizer) if form is not None else tuple(i for i in (tokenizer.eot_id,) if i is not None)
    if not ids:
        raise UserError(
            f"the tokenizer {tokenizer.kind!r} has no end-of-text token that could end an answer; set data.chat, such as"
            " data.chat='gptjax'."
        )
    return ids


def _prompts(named, config, tokenizer, form, omissions) -> tuple[Prompt, ...]:
    """Those that leave room for an answer. What is no prompt is told to omissions. Raises UserError: none is left, or one is
    too long with data.chat_overflow='refuse'."""
    room, prompts, too_long = config.model.context_length - config.rl.max_tokens, [], 0
    for where, record in named:
        try:
            prompt = _prompt(record, where, tokenizer, form)
        except UserError as error:
            omissions(error)
            continue
        if len(prompt.token_L) <= room:
            prompts.append(prompt)
            continue
        too_long += 1
        if config.data.chat_overflow == "refuse":
            raise UserError(f"{where} has {len(prompt.token_L)} tokens; {_room(config)}")
    if not prompts:
        first = omissions.messages[0] if omissions.messages else "rl.prompts holds no prompt; give another source."
        raise UserError(f"all {too_long} prompts are too long; {_room(config)}" if too_long else first)
    return tuple(prompts)


def _room(config) -> str:
    length, tokens = config.model.context_length, config.rl.max_tokens
    return (
        f"model.context_length={length} less rl.max_tokens={tokens} has room for {length - tokens}; use a longer context, or"
        " shorter answers."
    )


def _prompt(record: dict, where: str, tokenizer, form) -> Prompt:
    """Raises UserError that begins with where: it holds no prompt."""
    messages = parse_messages(_values(record, where), where)
    if form is not None:
        return Prompt(record, messages, form.prompt(messages, tokenizer), where)
    if len(messages) > 1:
        raise UserError(f"{where} has {len(messages)} messages, which text cannot tell apart; set data.chat.")
    return Prompt(record, messages, prompt_ids(tokenizer, messages[0].content), where)


def _values(record: dict, where: str) -> list:
    """The messages of a record that await an answer. Raises UserError that begins with where: there are none."""
    value = record.get("prompt")
    if value is None and isinstance(record.get("messages"), list):
        value = list(record["messages"])
        while value and isinstance(value[-1], dict) and value[-1].get("role") == "assistant":
            value.pop()
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        names = ", ".join(map(repr, record)) or "none"
        raise UserError(f"{where} has no prompt: it has the fields {names}; expected prompt or messages.")
    return value


def _split(prompts: tuple[Prompt, ...], data) -> tuple[Split, Split]:
    """(training, held-out) ones; with data.val_fraction=0 none is held out. Raises UserError: one part is empty."""
    if data.val_split == "document":
        held_out = [is_held_out(_text(prompt), data.val_fraction) for prompt in prompts]
    else:
        n_train = len(prompts) - int(len(prompts) * data.val_fraction)
        held_out = [i >= n_train for i in range(len(prompts))]
    parts = [Split(tuple(each for each, out in zip(prompts, held_out) if out == wanted)) for wanted in (False, True)]
    for part, name in zip(parts, ("training", "held-out")):
        if not part.prompts and (name == "training" or data.val_fraction):
            raise UserError(
                f"data.val_fraction={data.val_fraction} of {len(prompts)} prompts leaves no {name} ones; use another."
            )
    return parts[0], parts[1]


def _text(prompt: Prompt) -> str:
    return "\n".join(message.content for message in prompt.messages)


def _hash(split: Split) -> str:
    """The digest of tokens and records: a reward reads these too."""
    sha = hashlib.sha256()
    for prompt in split.prompts:
        sha.update(json.dumps([prompt.token_L.tolist(), prompt.record], sort_keys=True, default=str).encode() + b"\n")
    return sha.hexdigest()
