"""The text that a run is judged on: its own held-out text, or any other, with the run's own tokenizer.

Another text is a SPEC of `data.sources` (text:FILE, jsonl:FILE, hf:NAME@SPLIT ...) and is taken whole; of a folder of
gptjax prepare it is the held-out split. Each document is followed by end-of-text where the tokenizer has it, as in
training, unless a protocol says otherwise. For a run of conversations (data.chat) the records of another source are
conversations too, and plain text is text.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterable, Iterator

import numpy as np

from gptjax.config import text_kinds
from gptjax.config.fields import DataConfig
from gptjax.data import sources, tokenizers
from gptjax.data.rows.pipeline import open_text
from gptjax.data.tokens import rendering
from gptjax.data.tokens.folder import open_folder, with_end
from gptjax.data.tokens.shards import MemoryShard, Tokens
from gptjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Text:
    tokens: Tokens
    said: str  # what it is, for whoever reads the numbers
    words: int | None = None  # of the text before a protocol changed it


def own(run) -> dict[str, Text]:
    """The held-out text of each source of a run. Raises UserError: it has none, or it cannot be had, or is another now."""
    run.directory.check_trained("evaluated on it; give --data=KIND:PATH")
    store, _ = open_text(run.config.data, run.config.model.context_length)
    tokenizers.check_same(store.tokenizer, run.tokenizer)
    run.directory.check_text(store)
    return {name: Text(source.val, "the run's held-out text") for name, source in store.sources.items()}


def named(specs) -> dict[str, str]:
    """{name: SPEC} of a dict, or of one SPEC or several, each as it is or as NAME=SPEC.

    Raises UserError: a name twice, or "all", which is all of them."""
    if isinstance(specs, dict):
        specs = [f"{name}={spec}" for name, spec in specs.items()]
    found = {}
    for spec in [specs] if isinstance(specs, str) else specs:
        if not isinstance(spec, str):
            raise UserError(
                f"--data: {spec!r} does not name a text; expected KIND:PATH as in 'text:book.txt', a folder, or hf:NAME@SPLIT."
            )
        given = re.fullmatch(r"([\w.-]+)=(.+)", spec)
        name, spec = given.groups() if given else (_short_name(spec), spec)
        if name in found or name == "all":
            taken = "all texts together are" if name == "all" else "two texts are"
            raise UserError(f"--data: {taken} called {name!r}; name this one, as in --data=NAME={spec}.")
        found[name] = spec
    return found


def _short_name(spec: str) -> str:
    return pathlib.PurePath(spec.rpartition("@")[0] or spec).name.rpartition(":")[2] or spec


def others(specs: dict[str, str], tokenizer, config: DataConfig) -> dict[str, Text]:
    """Texts by name. config: says how fields and separators are read.

    Raises UserError: a SPEC that names nothing, text that cannot be read, or none."""
    return {name: _other(spec, tokenizer, config) for name, spec in specs.items()}


def _other(spec: str, tokenizer, config: DataConfig) -> Text:
    one = source_config(spec, config)
    if one.source != "prepared":
        if config.chat is not None and text_kinds.SOURCES[one.source].records:
            tokens = conversations(dataclasses.replace(one, chat=config.chat), tokenizer, spec)
        else:
            tokens = tokenise(sources.documents(one), tokenizer, spec)
        return Text(tokens, f"all of {spec}")
    folders_own, text = open_folder(one.path)
    said = f"the held-out split of {one.path}"
    if text.val.weights is not None:
        tokenizers.check_same(folders_own, tokenizer)
        return Text(text.val, said)
    if folders_own.base_hash == tokenizer.base_hash:
        return Text(text.val, said)
    return Text(tokenise(documents_of(text.val, folders_own), tokenizer, said), f"{said}, tokenised again")


def source_config(spec: str, config: DataConfig) -> DataConfig:
    """That of a SPEC, read as text."""
    return sources.from_spec(spec, dataclasses.replace(config, mixture=None, weights=None, weight_stages=(), chat=None))


def documents_of(tokens: Tokens, tokenizer) -> Iterator[str]:
    """The texts that tokens were made from."""
    for number in range(tokens.n_documents):
        [(start, stop)], _ = tokens.documents(number, number + 1)
        yield tokenizer.decode(tokens.read(np.array([start]), stop - start)[0] if stop > start else [])


def conversations(config: DataConfig, tokenizer, said: str) -> Tokens:
    """In memory, with their weights. Raises UserError: there is none, or one that cannot be read."""
    renderer = rendering.Renderer(config, tokenizer)
    tokenizers.check_same(renderer.tokenizer, tokenizer)
    rendered = [renderer(document) for document in sources.whole_documents(config)]
    if not rendered:
        raise UserError(f"{said} has no conversation to evaluate.")
    length = np.array([len(one.token_L) for one in rendered], np.int64)
    size = np.array([renderer.text_bytes(one) for one in rendered], np.int64)
    weight = np.concatenate([one.weight_L for one in rendered])
    shard = MemoryShard(np.concatenate([one.token_L for one in rendered]), np.cumsum(length) - length, size)
    return Tokens([shard], int(size.sum()), Tokens([MemoryShard(weight)]), int(np.count_nonzero(weight)))


def tokenise(documents: Iterable[str], tokenizer, said: str, end: bool = True) -> Tokens:
    """In memory. end: with end-of-text after each document. Raises UserError: there is no text."""
    parts, sizes = [], []
    for text in documents:
        ids = tokenizer.encode(text)
        parts.append(with_end(ids, tokenizer) if end else ids)
        sizes.append(len(text.encode()))
    if not sum(sizes):
        raise UserError(f"{said} has no text to evaluate.")
    length = np.array([len(part) for part in parts], np.int64)
    shard = MemoryShard(np.concatenate(parts), np.cumsum(length) - length, np.array(sizes, np.int64))
    return Tokens([shard], sum(sizes))
