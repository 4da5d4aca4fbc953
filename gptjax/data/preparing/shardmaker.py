"""One shard of `gptjax prepare`, as a worker makes it: documents read, cleaned, split, tokenised, written.

    tokenised:      units --read--> --clean--> --tokenise--> train-00003-of-00008/, val-..., record shard-00003
    deduplicated:   units --read--> --clean--> work/cleaned-00003.gz, fingerprints-00003.bin, record cleaned-00003
                    and, when duplicates are known, cleaned-00003.gz --tokenise--> as above

A shard is a function of its units and the Recipe: whoever makes it, and however often, its files are the same.
Memory in use is that of a batch of documents, or of the largest of them.
"""

import dataclasses
import functools
import gzip
import os
import re
import resource
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from etils import epath

from gptjax.config.fields import DataConfig
from gptjax.data import sources
from gptjax.data.preparing import unfinished
from gptjax.data.rows.hashing import is_held_out
from gptjax.data.sources import Unit
from gptjax.data.tokenizers import Tokenizer
from gptjax.data.tokens import rendering
from gptjax.data.tokens.folder import token_dtype, with_end
from gptjax.data.tokens.shards import ShardWriter
from gptjax.errors import SaveFailed, UserError

NAMED_FAILURES = 100  # of a shard; more are counted
_BATCH_CHARACTERS, _BATCH_DOCUMENTS = 1 << 20, 1024
_SECONDS_BETWEEN_REPORTS = 0.25
_SAMPLES, _EXCERPT = 3, 240  # of duplicates: documents of a shard, characters of each


class Piece(NamedTuple):
    """A document that is to be tokenised, or a part of one that cleaning has split."""

    where: str
    text: str
    held_out: bool  # all parts of a document or none
    document: sources.Document | None = None  # that it is the whole of, where that is a conversation


class Task(NamedTuple):
    """A shard to be made."""

    number: int
    units: tuple[Unit, ...]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is the same for all shards of a folder."""

    folder: str
    config: DataConfig  # of the source
    tokenizer: Tokenizer
    num_shards: int
    val_fraction: float
    clean: str | None
    dedup: str | None
    strict: bool

    def shard_name(self, split: str, number: int) -> str:
        return f"{split}-{number:05d}-of-{self.num_shards:05d}"


def record_name(kind: str, number: int) -> str:
    return f"{kind}-{number:05d}"


def work_file(folder, kind: str, number: int, ending: str):
    return epath.Path(folder) / unfinished.WORK / f"{kind}-{number:05d}.{ending}"


def in_flags(message: str) -> str:
    """A message of sources and tokenizers, in the words of the command line."""
    message = re.sub(r"\bdata\.path\b", "--source", message)
    message = re.sub(r"\bdata\.chat\b", "--template", message)
    return re.sub(r"\bdata\.(text_field|separator|tfds_dir|tokenizer)\b", r"--\1", message)


# ---- what a process does; see workers.run


def tokeniser(recipe: Recipe) -> Callable:
    return functools.partial(_do, _tokenised, recipe, unfinished.hold_as_worker(recipe.folder))


def cleaner(recipe: Recipe) -> Callable:
    return functools.partial(_do, _cleaned, recipe, unfinished.hold_as_worker(recipe.folder))


def _do(make: Callable, recipe: Recipe, lock, task: Task, report: Callable) -> tuple[int, dict]:
    """The number of a task that make does, and its record, which is written."""
    tally = Tally(report, recipe.strict)
    try:
        name, found = make(recipe, task, tally)
        record = found | tally.record()
        unfinished.write_record(recipe.folder, record_name(name, task.number), record)
    except BrokenPipeError:  # the parent is gone
        raise
    except OSError as error:
        why = f"--out={recipe.folder} cannot be written: {error.strerror or error}"
        raise SaveFailed(f"{why}; finished shards are kept: correct this, and run the same command again.") from error
    tally.report()
    return task.number, record


class Tally:
    """What is counted while a shard is made, and reported now and then."""

    def __init__(self, report: Callable, strict: bool):
        self._send, self._strict = report, strict
        self._began, self._said = time.process_time(), time.monotonic()
        self._sent = {}
        self.counts = {"documents": 0, "bytes": 0, "kept_documents": 0, "kept_bytes": 0, "tokens": 0, "units": 0}
        self.failures, self.n_failures = [], 0
        self.tokenising_seconds = 0.0
        self.turns = {"train": 0, "val": 0}  # messages of the conversations that were written

    def failed(self, error: UserError) -> None:
        """Raises it, if the command is strict."""
        message = in_flags(str(error))
        if self._strict:
            raise UserError(message) from error
        self.n_failures += sources.number_left_out(error)
        if len(self.failures) < NAMED_FAILURES:
            self.failures.append(message)
        self._send({"failure": message})

    def read(self, n_bytes: int) -> None:
        """A document of so many bytes of text was read."""
        self.counts["documents"] += 1
        self.counts["bytes"] += n_bytes
        if self.counts["documents"] % 64 == 0:
            self.add()

    def add(self, **counts: int) -> None:
        for name, n in counts.items():
            self.counts[name] += n
        if time.monotonic() - self._said > _SECONDS_BETWEEN_REPORTS:
            self.report()

    def set(self, **counts: int) -> None:
        self.counts |= counts
        self.add()

    def report(self) -> None:
        """What was counted since the last time."""
        self._send({name: n - self._sent.get(name, 0) for name, n in self.counts.items()})
        self._sent, self._said = dict(self.counts), time.monotonic()

    def record(self) -> dict:
        seconds = {"cpu": time.process_time() - self._began, "tokenising": self.tokenising_seconds}
        failures = {"count": self.n_failures, "messages": self.failures}
        return {"counts": self.counts, "failures": failures, "seconds": seconds, "peak_bytes": peak_bytes()}


def peak_bytes() -> int:
    """Most memory this process has had."""
    try:  # ru_maxrss of a new process begins with its parent's
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)


# ---- read and clean


def make_cleaner(clean: str | None):
    """What documents go through; None: nothing. Raises UserError: steps that are not known or not ready."""
    if clean is None:
        return None
    from gptjax.data.preparing import cleaning

    return cleaning.Cleaner(cleaning.parse(clean))


def clean_documents(recipe: Recipe, units: Iterable[Unit], cleaner, tally: Tally) -> Iterator[Piece]:
    """The documents of the units as they are to be tokenised. One without text is left out: it teaches nothing.

    One on which cleaning fails is left out too, and told to the tally.
    """
    for unit in units:
        for document in sources.read(recipe.config, unit, tally.failed):
            tally.read(utf8_length(document.text))
            try:
                pieces = _pieces(recipe, document, cleaner)
            except BaseException as error:
                tally.failed(sources.left_out(error, document.where, "be cleaned"))
                continue
            yield from pieces
        tally.add(units=1)


def _pieces(recipe: Recipe, document: sources.Document, cleaner) -> list[Piece]:
    """Held out is by the cleaned text, of a document in parts by the first of them."""
    if document.conversation is not None:
        return [Piece(document.where, document.text, is_held_out(document.text, recipe.val_fraction), document)]
    parts = [part for part in ((document,) if cleaner is None else cleaner(document)) if part.text]
    held_out = bool(parts) and is_held_out(parts[0].text, recipe.val_fraction)
    return [Piece(part.where, part.text, held_out) for part in parts]


def utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


# ---- tokenised


def _tokenised(recipe: Recipe, task: Task, tally: Tally) -> tuple[str, dict]:
    found = {}
    if recipe.dedup is None:
        cleaner = make_cleaner(recipe.clean)
        documents = clean_documents(recipe, task.units, cleaner, tally)
        entries = _write_shards(recipe, task.number, documents, tally)
        found["cleaning"] = None if cleaner is None else cleaner.report
    else:
        found["duplicates"] = {"documents": 0, "bytes": 0, "samples": []}
        entries = _write_shards(
            recipe, task.number, _without_duplicates(recipe, task, found["duplicates"], tally), tally
        )
    turns = {} if recipe.config.chat is None else {"turns": tally.turns}
    return "shard", {"entries": entries} | found | turns


def _write_shards(recipe: Recipe, number: int, documents: Iterable[Piece], tally: Tally) -> dict:
    """{split: {shard: its entry in the manifest}}, of the splits that got a document."""
    writers = {}
    for batch in _batches(documents):
        began = time.process_time()
        encoded = list(values(recipe, batch, tally))
        tally.tokenising_seconds += time.process_time() - began
        for document, tokens in encoded:
            split = "val" if document.held_out else "train"
            if split not in writers:
                folder = epath.Path(recipe.folder) / recipe.shard_name(split, number)
                weighted = recipe.config.chat is not None
                writers[split] = ShardWriter(folder, token_dtype(recipe.tokenizer), weighted)
            writers[split].add(*tokens)
            tally.turns[split] += 0 if document.document is None else len(document.document.conversation.messages)
        done = {
            name: sum(writer.counts[name] for writer in writers.values()) for name in ("documents", "bytes", "tokens")
        }
        tally.set(kept_documents=done["documents"], kept_bytes=done["bytes"], tokens=done["tokens"])
    return {split: {recipe.shard_name(split, number): writer.close()} for split, writer in sorted(writers.items())}


def _batches(documents: Iterable[Piece]) -> Iterator[list[Piece]]:
    batch, size = [], 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def values(recipe: Recipe, batch: list[Piece], tally: Tally) -> Iterator[tuple[Piece, tuple]]:
    """The documents, each with what ShardWriter.add takes of it, without those that are told to the tally."""
    if recipe.config.chat is not None:
        yield from _rendered(recipe, batch, tally)
        return
    for document, tokens in _encoded(recipe.tokenizer, batch, tally):
        yield document, (with_end(tokens, recipe.tokenizer), utf8_length(document.text))


def _rendered(recipe: Recipe, batch: list[Piece], tally: Tally) -> Iterator[tuple[Piece, tuple]]:
    renderer = rendering.Renderer(recipe.config, recipe.tokenizer)
    for piece in batch:
        try:
            rendered = renderer(piece.document)
        except BaseException as error:
            tally.failed(sources.not_tokenised(error, piece.where))
            continue
        yield piece, (rendered.token_L, renderer.text_bytes(rendered), rendered.weight_L)


def _encoded(tokenizer: Tokenizer, batch: list[Piece], tally: Tally) -> Iterable[tuple[Piece, np.ndarray]]:
    """The documents with their tokens, without those that the tokenizer cannot write or its library fails on."""
    try:
        return zip(batch, tokenizer.encode_batch([document.text for document in batch]))
    except BaseException as error:
        sources.left_out(error, "a batch", "be tokenised")  # which raises what no document can be blamed for
        return list(_encoded_one_by_one(tokenizer, batch, tally))


def _encoded_one_by_one(tokenizer, batch: list[Piece], tally: Tally) -> Iterator[tuple[Piece, np.ndarray]]:
    for document in batch:
        try:
            tokens = tokenizer.encode(document.text)
        except BaseException as error:
            tally.failed(sources.not_tokenised(error, document.where))
            continue
        yield document, tokens


# ---- deduplicated: what is cleaned is kept until duplicates are known
#
# Measured in CPU time: keeping and reading back a megabyte costs 10 ms and a fourth of its size, cleaning it again
# 20 to 500 ms; with no cleaning, reading jsonl again would cost 5 ms, of the 120 to 200 ms that tokenising takes.


_HEAD = struct.Struct("<IQ?")  # before each document: UTF-8 bytes of where and of text, whether it is held out
# A file's name may have bytes that are no UTF-8, which Python holds as halves of surrogate pairs.


def _cleaned(recipe: Recipe, task: Task, tally: Tally) -> tuple[str, dict]:
    from gptjax.data.preparing import dedup

    fingerprint = dedup.Fingerprinter(dedup.parse(recipe.dedup))
    cleaner = make_cleaner(recipe.clean)
    with (
        work_file(recipe.folder, "cleaned", task.number, "gz").open("wb") as packed,
        gzip.open(packed, "wb", compresslevel=1) as stream,
        work_file(recipe.folder, "fingerprints", task.number, "bin").open("wb") as fingerprints,
    ):
        for document in clean_documents(recipe, task.units, cleaner, tally):
            where, text = document.where.encode(errors="surrogateescape"), document.text.encode()
            stream.write(_HEAD.pack(len(where), len(text), document.held_out) + where)
            stream.write(text)
            fingerprints.write(fingerprint(document.text).tobytes())
            tally.add(kept_documents=1, kept_bytes=len(text))
    return "cleaned", {"cleaning": None if cleaner is None else cleaner.report}


def _without_duplicates(recipe: Recipe, task: Task, found: dict, tally: Tally) -> Iterator[Piece]:
    with work_file(recipe.folder, "keep", task.number, "bin").open("rb") as stream:
        keep = np.frombuffer(stream.read(), bool)
    for document, kept in zip(_kept_back(recipe.folder, task.number), keep.tolist(), strict=True):
        size = utf8_length(document.text)
        tally.read(size)
        if kept:
            yield document
            continue
        found["documents"] += 1
        found["bytes"] += size
        if len(found["samples"]) < _SAMPLES:
            found["samples"].append({"where": document.where, "text": document.text[:_EXCERPT]})
    tally.add(units=len(task.units))


def _kept_back(folder, number: int) -> Iterator[Piece]:
    with work_file(folder, "cleaned", number, "gz").open("rb") as packed, gzip.open(packed) as stream:
        while head := stream.read(_HEAD.size):
            *sizes, held_out = _HEAD.unpack(head)
            where, text = (stream.read(n).decode(errors="surrogateescape") for n in sizes)
            yield Piece(where, text, held_out)
