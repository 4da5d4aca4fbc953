"""The tokens of a run: `prepare(config)` returns its TokenStore, made now, or before, or by `gptjax prepare`.

A source of text is tokenised once, into a folder of data.cache_dir whose name is a hash of the text's identity and of every
config field that decides the tokens. It has the form of those that `gptjax prepare` makes (see `folder`).

The folder is written under another name and renamed when complete, so that several processes may prepare
the same data, and one that dies leaves nothing that could be taken for a cache.

What cannot be read is left out, named on stderr and kept count of in the folder's manifest.

Held out is the end of the text, or documents chosen by hash; neither depends on data.seed, so that runs that differ
only in their seed are judged on the same text. Memory in use is that of the largest document.
"""

import contextlib
import dataclasses
import errno
import fcntl
import functools
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator

from gptjax.config.fields import DataConfig
from gptjax.data import sources
from gptjax.data.rows.hashing import is_held_out
from gptjax.data.tokenizers import Tokenizer, tokenizer_class, tokenizer_settings, train_tokenizer
from gptjax.data.tokens import rendering
from gptjax.data.tokens.cache import cache_folder
from gptjax.data.tokens.folder import (
    FORMAT,
    SPLITS,
    TextStore,
    digest,
    open_folder,
    token_dtype,
    with_end,
    write_manifest,
)
from gptjax.data.tokens.shards import ShardWriter
from gptjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TokenStore:
    tokenizer: Tokenizer
    sources: dict[str, TextStore]  # one, or those of data.mixture by name

    @property
    def fingerprint(self) -> str:
        """Of all sources; of one alone it is that one's."""
        fingerprints = {name: source.fingerprint for name, source in self.sources.items()}
        return digest(fingerprints) if len(fingerprints) > 1 else next(iter(fingerprints.values()))

    @property
    def description(self) -> dict:
        descriptions = {name: source.description for name, source in self.sources.items()}
        return {"sources": descriptions} if len(descriptions) > 1 else next(iter(descriptions.values()))


def prepare(config: DataConfig, alive: Callable = lambda: None) -> TokenStore:
    """The tokens of config's text; alive() is called after each document that is read.

    Raises UserError: a source or tokenizer that does not work, a damaged folder, sources of different tokenizers.
    """
    if config.mixture is None:
        tokenizer, text = _prepare_one(config, alive)
        return TokenStore(tokenizer, {sources.source_name(config): text})
    configs = mixture_configs(config)
    made = {name: _prepare_one(one, alive, name) for name, one in configs.items()}
    tokenizers = {name: tokenizer for name, (tokenizer, _) in made.items()}
    first = next(iter(tokenizers))
    for name, tokenizer in tokenizers.items():
        if tokenizer.hash != tokenizers[first].hash:
            raise UserError(
                f"data.mixture: {name!r} was made with another tokenizer ({tokenizer.kind}, {tokenizer.hash[:12]}) than"
                f" {first!r} ({tokenizers[first].kind}, {tokenizers[first].hash[:12]}); prepare them with the same one."
            )
    return TokenStore(tokenizers[first], {name: text for name, (_, text) in made.items()})


def mixture_configs(config: DataConfig) -> dict[str, DataConfig]:
    """The DataConfig of each source of data.mixture.

    Raises UserError: raw text whose tokenizer would be trained on it, so that each source had another.
    """
    alone = dataclasses.replace(config, mixture=None, weights=None, weight_stages=())
    configs = {name: sources.from_spec(spec, alone) for name, spec in config.mixture.items()}
    for name, one in configs.items():
        if sources.source_name(one) != "prepared" and trains(one):
            raise UserError(
                f"data.mixture: {name!r} is raw text, and data.tokenizer={one.tokenizer or 'sentencepiece'!r} would be made"
                " from it alone; train one tokenizer for all (gptjax tokenizer train) and give its folder as data.tokenizer, or"
                " use 'bytes' or 'gpt2'."
            )
    return configs


def trains(config: DataConfig) -> bool:
    """Whether config's tokenizer is made from its text."""
    return config.tokenizer_path is None and tokenizer_class(config).made_from_text


def _prepare_one(config: DataConfig, alive: Callable, name: str | None = None) -> tuple[Tokenizer, TextStore]:
    """name: of the source in data.mixture; None: it is alone."""
    if sources.source_name(config) == "prepared":
        tokenizer, text = open_folder(config.path, name)
        _check_tokenizer(config, tokenizer)
        _check_chat(config, text)
        return tokenizer, text
    key = _cache_key(config)
    folder = _tokens_folder(config, key)
    if not folder.exists():
        with _one_at_a_time(folder, alive):
            if not folder.exists():
                _make(config, key, folder, alive)
                return open_folder(folder, name)
    tokenizer, text = open_folder(folder, name)
    _say_left_out(text)
    return tokenizer, text


def _say_left_out(text: TextStore) -> None:
    """Text that was tokenised before is not read again, and what it lacks is not forgotten."""
    if (left_out := text.description.get("left_out")) is not None:
        first, where = left_out["messages"][0].rstrip("."), text.description["folder"]
        print(
            f"{text.training_text} lacks {left_out['count']:,} documents that cannot be read, the first of them: {first};"
            f" {where}/manifest.json names them",
            file=sys.stderr,
        )


def _check_tokenizer(config: DataConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError: config names another tokenizer than that of the prepared folder."""
    if config.tokenizer is None and config.tokenizer_path is None:
        return
    named, kind = f"data.tokenizer={config.tokenizer!r}", tokenizer_class(config).kind
    if config.tokenizer_path is not None:
        named += f", data.tokenizer_path={config.tokenizer_path!r}"
    same = kind == tokenizer.kind
    if same and config.tokenizer_path is not None:
        same = train_tokenizer(config, ()).base_hash == tokenizer.base_hash
    if not same:
        raise UserError(
            f"{config.path} was made with a {tokenizer.kind} tokenizer (hash {tokenizer.base_hash[:12]}), which is not"
            f" that of {named}; add --config.data.tokenizer=None --config.data.tokenizer_path=None to take the folder's"
            " own, or prepare the text again."
        )


def _check_chat(config: DataConfig, text: TextStore) -> None:
    """Raises UserError: the prepared folder holds text and data.chat is set, or the other way round, or another format."""
    rendering.check_same(config, text.description.get("chat"), config.path)


def folders(config: DataConfig) -> dict[str, str]:
    """Where `prepare` finds the tokens of each source, or would put them."""
    configs = {sources.source_name(config): config} if config.mixture is None else mixture_configs(config)
    return {
        name: one.path if sources.source_name(one) == "prepared" else str(_tokens_folder(one, _cache_key(one)))
        for name, one in configs.items()
    }


def _tokens_folder(config: DataConfig, key: dict) -> pathlib.Path:
    return cache_folder(config) / f"tokens-{digest(key)[:16]}"


# ---- the key of a cache folder


def _cache_key(config: DataConfig) -> dict:
    return {
        "format": FORMAT,
        "source": sources.identity(config),
        "tokenizer": tokenizer_settings(config),
        "val_fraction": config.val_fraction,
        "val_split": config.val_split,
    } | rendering.identity(config)


# ---- held-out text


@dataclasses.dataclass(frozen=True)
class Span:
    """A document, or the part of one that falls to a split."""

    split: str
    text: str
    ends: bool  # where the document ends


def split_documents(config: DataConfig, documents: Iterable[str], n_characters: int | None) -> Iterator[Span]:
    """Every document as one span, or as two where the tail begins inside it; n_characters is needed for a tail only."""
    if config.val_split == "document":
        return _split_by_hash(documents, config.val_fraction)
    # nanoGPT's arithmetic, so that its train and val text are ours.
    return _split_tail(documents, int(n_characters * (1 - config.val_fraction)))


def _split_by_hash(documents: Iterable[str], val_fraction: float) -> Iterator[Span]:
    for text in documents:
        yield Span("val" if is_held_out(text, val_fraction) else "train", text, ends=True)


def _split_tail(documents: Iterable[str], n_train_characters: int) -> Iterator[Span]:
    left = n_train_characters
    for text in documents:
        if len(text) <= left:
            yield Span("train", text, ends=True)
        elif left > 0:
            yield Span("train", text[:left], ends=False)
            yield Span("val", text[left:], ends=True)
        else:
            yield Span("val", text, ends=True)
        left = max(0, left - len(text))


# ---- writing


@contextlib.contextmanager
def _one_at_a_time(folder: pathlib.Path, alive: Callable) -> Iterator[None]:
    """Processes of one host, or on one disk, do the same work once: the others wait for whoever came first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f"{folder.name}.lock"
    with path.open("w") as lock:
        waiting = False
        while not _locked(lock):
            if not waiting:
                print(f"another process is preparing this text ({lock.name} is locked); waiting", file=sys.stderr)
            waiting = True
            alive()
            time.sleep(0.1)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _locked(lock) -> bool:
    """Takes the lock if it is free; until the file is closed or the process dies."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        # a disk without locks: each does the work, and the first to rename its folder is right for all
    return True


def _make(config: DataConfig, key: dict, folder: pathlib.Path, alive: Callable) -> None:
    """Fills a folder beside the wanted one and renames it; if another process was faster, its folder stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = pathlib.Path(tempfile.mkdtemp(prefix=f"{folder.name}.unfinished-", dir=folder.parent))
    try:
        _write_store(config, key, unfinished, alive)
        os.chmod(unfinished, 0o755)  # mkdtemp's is for this user alone
        try:
            unfinished.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_store(config: DataConfig, key: dict, folder: pathlib.Path, alive: Callable) -> None:
    n_characters, omissions = None, sources.Omissions(said=True)
    if config.val_split == "tail":
        n_characters = sum(len(text) for text in _watched(_documents(config), "reading", alive))
    tokenizer, written = _tokenizer(config, n_characters), _text_spans
    if config.chat is not None:
        renderer = rendering.Renderer(config, tokenizer)
        tokenizer, written = renderer.tokenizer, functools.partial(_conversation_spans, renderer)
    names = {split: f"{split}-00000-of-00001" for split in SPLITS}
    weighted = config.chat is not None
    writers = {split: ShardWriter(folder / name, token_dtype(tokenizer), weighted) for split, name in names.items()}
    n_characters_of = dict.fromkeys(SPLITS, 0)
    for split, characters, *values in written(config, tokenizer, omissions, n_characters, alive):
        writers[split].add(*values)
        n_characters_of[split] += characters
    shards = {split: {names[split]: writer.close()} for split, writer in writers.items()}
    omissions.end()
    left_out = {"left_out": {"count": omissions.count, "messages": omissions.messages}} if omissions.count else {}
    write_manifest(folder, key | left_out, tokenizer, shards, characters=n_characters_of)


def _text_spans(config: DataConfig, tokenizer, omissions, n_characters, alive: Callable) -> Iterator[tuple]:
    """(split, characters, tokens, UTF-8 bytes) of each document, or of its part in a split, that the tokenizer can write.

    Raises UserError: there is none."""
    where, n_written = "", 0

    def texts():
        nonlocal where
        for document in _watched(
            sources.whole_documents(config, omissions), "tokenising", alive, lambda d: len(d.text)
        ):
            where = document.where  # which the span that is made next is of
            yield document.text

    for span in split_documents(config, texts(), n_characters):
        try:
            ids = tokenizer.encode(span.text)
        except BaseException as error:
            omissions(sources.not_tokenised(error, where))
            continue
        n_written += 1
        yield span.split, len(span.text), with_end(ids, tokenizer) if span.ends else ids, len(span.text.encode())
    if not n_written and omissions.messages:
        raise UserError(omissions.messages[0])


def _conversation_spans(renderer, config: DataConfig, tokenizer, omissions, _, alive: Callable) -> Iterator[tuple]:
    """(split, characters, tokens, UTF-8 bytes, weights) of each conversation that the format can write.

    Raises UserError: there is none."""
    n_written = 0
    for document in _watched(sources.whole_documents(config, omissions), "tokenising", alive, lambda d: len(d.text)):
        try:
            rendered = renderer(document)
        except BaseException as error:
            omissions(sources.not_tokenised(error, document.where))
            continue
        n_written += 1
        split = "val" if is_held_out(document.text, config.val_fraction) else "train"
        yield split, len(document.text), rendered.token_L, renderer.text_bytes(rendered), rendered.weight_L
    if not n_written and omissions.messages:
        raise UserError(omissions.messages[0])


def _documents(config: DataConfig) -> Iterator[str]:
    """Those that can be read; the others are told of in the last pass over the text."""
    return sources.documents(config, sources.Omissions(said=False))


def _tokenizer(config: DataConfig, n_characters: int | None) -> Tokenizer:
    documents = _documents(config)
    if not tokenizer_class(config).sees_held_out_text:
        spans = split_documents(config, documents, n_characters)
        documents = (span.text for span in spans if span.split == "train")
    return train_tokenizer(config, documents)


def _watched(documents: Iterable, doing: str, alive: Callable, characters: Callable = len) -> Iterator:
    """documents, and every five seconds a line on stderr on how far they are. characters: of a document."""
    began = said = time.monotonic()
    size = 0
    for n, document in enumerate(documents, start=1):
        yield document
        alive()
        size += characters(document)
        if (now := time.monotonic()) - said > 5:
            rate = size / 1e6 / (now - began)
            line = f"{doing}: {n:,} documents, {size / 1e6:,.0f}M characters, {rate:.1f}M/s"
            print(line, file=sys.stderr, flush=True)
            said = now
