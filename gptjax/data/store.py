"""Documents to tokens on disk, once: `prepare(config)` returns the TokenStore of a run's data, made now or before.

A folder of data.cache_dir holds train.bin and val.bin (token after token, uint16 or uint32), the offsets at which
their documents start, the tokenizer and manifest.json. Its name is a hash of the text's identity and of every config
field that decides the tokens. It is written under another name and renamed when complete, so that several processes
may prepare the same data, and one that dies leaves nothing that could be taken for a cache.

Held out is the end of the text, or documents chosen by hash; neither depends on data.seed, so that runs that differ
only in their seed are judged on the same text. Memory in use is that of the largest document.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from gptjax.config import DataConfig
from gptjax.data import sources
from gptjax.data.pipeline import mix
from gptjax.data.tokenizers import (
    Tokenizer,
    load_tokenizer,
    save_tokenizer,
    tokenizer_class,
    tokenizer_settings,
    train_tokenizer,
)
from gptjax.errors import UserError

FORMAT = 1  # of the folder; raise it when the same config and text give other files
SPLITS = ("train", "val")
_HASHED_BYTES = 100_000_000  # larger files are checked by their size alone


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One split. Documents lie end to end, each followed by end-of-text if the tokenizer has one."""

    token: np.ndarray  # uint16 or uint32 [tokens], mapped from disk
    document_start: np.ndarray  # int64 [documents], ascending, the first is 0
    byte_count: int  # UTF-8 bytes of the text


@dataclasses.dataclass(frozen=True)
class TokenStore:
    tokenizer: Tokenizer
    train: Tokens
    val: Tokens
    fingerprint: str  # hex; equal for equal tokens and tokenizer, wherever and whenever they were made
    description: dict  # JSON values: the source, the tokenizer, what each split holds, the folder


def prepare(config: DataConfig, alive: Callable = lambda: None) -> TokenStore:
    """The tokens of config's text; alive() is called after each document that is read.

    Raises UserError: a source or tokenizer that does not work, a damaged cache.
    """
    key = _cache_key(config)
    if "://" in config.cache_dir:
        raise UserError(f"data.cache_dir={config.cache_dir} is not a local folder; tokens are mapped from a disk.")
    folder = pathlib.Path(config.cache_dir).expanduser() / f"tokens-{_digest(key)[:16]}"
    if not folder.exists():
        with _one_at_a_time(folder, alive):
            if not folder.exists():
                _make(config, key, folder, alive)
    return open_store(folder)


def open_store(folder) -> TokenStore:
    """The store in a folder. Raises UserError: a file is missing or altered."""
    folder = pathlib.Path(folder)
    manifest = _checked_manifest(folder)
    tokenizer = load_tokenizer(folder)
    splits = {name: _map_tokens(folder, name, manifest) for name in SPLITS}
    content = {name: file["sha256"] for name, file in manifest["files"].items() if name.endswith(".bin")}
    fingerprint = _digest({"format": manifest["format"], "tokenizer": tokenizer.hash, "files": content})
    about = {k: v for k, v in manifest.items() if k != "files"}
    return TokenStore(tokenizer, **splits, fingerprint=fingerprint, description=about | {"folder": str(folder)})


# ---- the key of a cache folder


def _cache_key(config: DataConfig) -> dict:
    return {
        "format": FORMAT,
        "source": sources.identity(config),
        "tokenizer": tokenizer_settings(config),
        "val_fraction": config.val_fraction,
        "val_split": config.val_split,
    }


def _digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
    threshold = int(val_fraction * 2**64)
    for i, text in enumerate(documents):
        held_out = int(mix(np.array([i], np.uint64))[0]) < threshold
        yield Span("val" if held_out else "train", text, ends=True)


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
    n_characters = None
    if config.val_split == "tail":
        n_characters = sum(len(text) for text in _watched(sources.documents(config), "reading", alive))
    tokenizer = _tokenizer(config, n_characters)
    save_tokenizer(tokenizer, folder)
    writers = {name: _SplitWriter(folder, name, tokenizer) for name in SPLITS}
    for span in split_documents(config, _watched(sources.documents(config), "tokenising", alive), n_characters):
        writers[span.split].add(span)
    files = {name: _size_and_hash(folder / name) for name in ("tokenizer.json", "tokenizer.model")}
    for writer in writers.values():
        files |= writer.close()
    manifest = key | {
        "tokenizer": key["tokenizer"] | {"hash": tokenizer.hash, "vocab_size": tokenizer.vocab_size},
        "dtype": _dtype(tokenizer).name,
        "splits": {name: writer.counts for name, writer in writers.items()},
        "files": files,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _tokenizer(config: DataConfig, n_characters: int | None) -> Tokenizer:
    documents = sources.documents(config)
    if not tokenizer_class(config).sees_held_out_text:
        spans = split_documents(config, documents, n_characters)
        documents = (span.text for span in spans if span.split == "train")
    return train_tokenizer(config, documents)


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def _size_and_hash(path: pathlib.Path) -> dict:
    data = path.read_bytes()
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class _SplitWriter:
    """Appends spans to a split's files, hashing as it goes."""

    def __init__(self, folder: pathlib.Path, name: str, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._dtype = _dtype(tokenizer)
        self._files = {f"{name}.bin": None, f"{name}_documents.bin": None}
        self._token, self._start = (_HashedFile(folder / file) for file in self._files)
        self.counts = {"documents": 0, "tokens": 0, "characters": 0, "bytes": 0}

    def add(self, span: Span) -> None:
        ids = self._tokenizer.encode(span.text)
        if span.ends and self._tokenizer.eot_id is not None:
            ids = np.append(ids, self._tokenizer.eot_id)
        self._start.write(np.array([self.counts["tokens"]], np.int64))
        self._token.write(ids.astype(self._dtype))
        size = len(span.text.encode())
        for count, n in zip(self.counts, (1, len(ids), len(span.text), size)):
            self.counts[count] += n

    def close(self) -> dict:
        """Size and SHA-256 of each file."""
        return {name: file.close() for name, file in zip(self._files, (self._token, self._start))}


class _HashedFile:
    def __init__(self, path: pathlib.Path):
        self._stream, self._sha256 = path.open("wb"), hashlib.sha256()

    def write(self, array: np.ndarray) -> None:
        data = array.tobytes()
        self._stream.write(data)
        self._sha256.update(data)

    def close(self) -> dict:
        size = self._stream.tell()
        self._stream.close()
        return {"size": size, "sha256": self._sha256.hexdigest()}


def _watched(documents: Iterable[str], doing: str, alive: Callable) -> Iterator[str]:
    """documents, and every five seconds a line on stderr on how far they are."""
    began = said = time.monotonic()
    size = 0
    for n, text in enumerate(documents, start=1):
        yield text
        alive()
        size += len(text)
        if (now := time.monotonic()) - said > 5:
            rate = size / 1e6 / (now - began)
            line = f"{doing}: {n:,} documents, {size / 1e6:,.0f}M characters, {rate:.1f}M/s"
            print(line, file=sys.stderr, flush=True)
            said = now


# ---- reading


def _checked_manifest(folder: pathlib.Path) -> dict:
    mend = f"it is damaged: remove {folder} and run again"
    path = folder / "manifest.json"
    if not path.exists():
        raise UserError(f"{folder} has no manifest.json, the last file to be written; {mend}.")
    try:
        manifest = json.loads(path.read_text())
        files = {name: (file["size"], file["sha256"]) for name, file in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}); {mend}.") from error
    for name, (size, sha256) in files.items():
        file = folder / name
        if not file.exists():
            raise UserError(f"{file} is missing; {mend}.")
        if file.stat().st_size != size:
            raise UserError(f"{file} has {file.stat().st_size} bytes, but was written with {size}; {mend}.")
        if size <= _HASHED_BYTES and _size_and_hash(file)["sha256"] != sha256:
            raise UserError(f"{file} was altered after it was written; {mend}.")
    return manifest


def _map_tokens(folder: pathlib.Path, name: str, manifest: dict) -> Tokens:
    token = _mapped(folder / f"{name}.bin", manifest["dtype"])
    document_start = _mapped(folder / f"{name}_documents.bin", np.int64)
    return Tokens(token, document_start, manifest["splits"][name]["bytes"])


def _mapped(path: pathlib.Path, dtype) -> np.ndarray:
    if not path.stat().st_size:  # numpy cannot map an empty file
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")
