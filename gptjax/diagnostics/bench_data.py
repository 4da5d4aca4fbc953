"""How fast text becomes tokens and tokens become batches here, beside the libraries and the needs of training.

Each pair of rates comes from one run in which the two took turns, on the same texts or rows: the machine's drift falls
on both. Rates are per second of CPU time of this process (all its threads), and of wall-clock time; on a machine that
others use too, the first is the one to compare. No JAX device is touched.
"""

import itertools
import os
import pathlib
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from gptjax import schedule
from gptjax.config.extras import library
from gptjax.data import tokenizers
from gptjax.data.rows.hashing import permute
from gptjax.data.rows.pipeline import TrainRows, open_text
from gptjax.data.tokenizers import Tokenizer
from gptjax.data.tokens.shards import Tokens
from gptjax.data.tokens.store import TokenStore
from gptjax.errors import UserError
from gptjax.terminal import si

ROUND_CHARACTERS = 1 << 19  # of text that ours and the library take turns on
COLD_BATCHES = 20


def bench(config, seconds: float, specs: Iterable[str] = ()) -> dict:
    """loader_rates of a config ("loader") and tokenizer_rates on its text ("tokenizers"), seconds for each.

    specs are tokenizers; none: the one of the config's data, as it is kept with the tokens.
    """
    store, _ = open_text(config.data, config.model.context_length)
    specs = list(specs) or [next(iter(store.sources.values())).description["folder"]]
    rates = [tokenizer_rates(spec, _texts(store), seconds) for spec in specs]
    return {"loader": loader_rates(config, seconds), "tokenizers": rates}


def _texts(store: TokenStore) -> Iterator[str]:
    """The documents that are trained on, from all over each source, source after source in turns."""
    turns = [_shuffled(source.train, store.tokenizer) for source in store.sources.values()]
    for texts in itertools.zip_longest(*turns):
        yield from (text for text in texts if text)


def _shuffled(tokens: Tokens, tokenizer: Tokenizer) -> Iterator[str]:
    for number in permute(np.arange(tokens.n_documents), tokens.n_documents, 0, 0).tolist():
        [(start, stop)], _ = tokens.documents(number, number + 1)
        yield tokenizer.decode(tokens.read(np.array([start]), stop - start)[0])


def tokenizer_rates(spec: str, texts: Iterable[str], seconds: float) -> dict:
    """Our Tokenizer.encode against its library called directly, each about half of the seconds, one text a call.

    Bytes are of UTF-8. differ counts the texts of which the two gave other tokens: with sentencepiece, those that hold
    U+2581, which the library reads as a space and we don't. For bytes and chars, which have no library, there are our
    rates alone. Raises UserError: no such tokenizer; no text.
    """
    tokenizer = tokenizers.from_spec(spec)
    name, direct = _library(tokenizer)
    ours, theirs = Timer(), Timer()
    sizes, differ, deadline = [], 0, time.perf_counter() + seconds
    for i, batch in enumerate(_rounds(texts, ROUND_CHARACTERS)):
        sizes.append(sum(len(text.encode()) for text in batch))
        tasks = [(ours, tokenizer.encode), (theirs, direct)][:: -1 if i % 2 else 1]
        tokens = {id(timer): timer([encode] * len(batch), batch) for timer, encode in tasks if encode}
        if direct:
            differ += sum(not np.array_equal(a, b) for a, b in zip(tokens[id(ours)], tokens[id(theirs)]))
        if time.perf_counter() > deadline:
            break
    if not sizes:
        raise UserError("there is no text to measure a tokenizer on; give files that hold some.")
    results = {"tokenizer": spec, "text_bytes": sum(sizes), "rounds": len(sizes), "ours": ours.rates(sizes)}
    if direct:
        results |= {"library": name, "direct": theirs.rates(sizes), "differ": differ}
        results["ratio"] = results["ours"]["per_cpu_second"] / results["direct"]["per_cpu_second"]
    return results | {"peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def loader_rates(config, seconds: float) -> dict:
    """Tokens of text (B * T a step) that one process reads, and hashes, for the run that config describes.

    Cold: a batch after the pages of the token files were given up, with the store opened anew for each, which takes
    most of half of the seconds. Warm: batch after batch, read once before. disk_bytes are those the kernel fetched
    for this process; if cold has 0, it was not cold. Prepares the tokens if they are not there. Raises UserError as
    training does.
    """
    cold = _read_cold(config, time.perf_counter() + seconds / 2)
    read, files = training_reader(config)
    _, steps = _read_for(read, itertools.count(), seconds / 4)
    warm, steps = _read_for(read, steps, seconds / 2)
    batch_tokens = config.tokens_per_step
    return {
        "file_bytes": sum(file.stat().st_size for file in files),
        "batch_tokens": batch_tokens,
        "cold": cold.rates([batch_tokens] * len(cold.cpu)),
        "warm": warm.rates([batch_tokens] * len(steps)),
    }


def training_reader(config) -> tuple[Callable[[int], object], list[pathlib.Path]]:
    """(what reads the batch of a step and hashes its rows, the files it reads from). The one place that knows how."""
    store, objective = open_text(config.data, config.model.context_length)
    rows = TrainRows(store, config.data, config.model.context_length, objective)

    def read(step: int) -> int:
        first = schedule.rows_before(config, step)
        stop = first + schedule.batch_size(config, step)
        rows.rows(first, stop)
        return int(rows.hashes(first, stop).sum())

    folders = [source.description["folder"] for source in store.sources.values()]
    return read, [path for folder in folders for path in sorted(pathlib.Path(folder).glob("train-*/c/0"))]


def forget_pages(file) -> int:
    """The size of a file, whose pages are no longer in memory but for those that a process has mapped and touched."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # what is not on the disk yet is not given up
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)


class Timer:
    """Wall-clock and CPU seconds of calls, and the bytes the kernel fetched from disks for them."""

    def __init__(self):
        self.wall, self.cpu, self.disk_bytes = [], [], 0

    def __call__(self, functions: list[Callable], arguments: Iterable) -> list:
        """function(argument) of each pair, timed as one."""
        disk = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
        wall, cpu = time.perf_counter(), time.process_time()
        results = [function(argument) for function, argument in zip(functions, arguments)]
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)
        self.disk_bytes += 512 * (resource.getrusage(resource.RUSAGE_SELF).ru_inblock - disk)
        return results

    def rates(self, amounts: list[float]) -> dict:
        """Medians over the rounds of amount per second, and the whole amount over the whole time."""
        per_cpu = [amount / max(seconds, 1e-9) for amount, seconds in zip(amounts, self.cpu)]
        per_wall = [amount / max(seconds, 1e-9) for amount, seconds in zip(amounts, self.wall)]
        return {
            "per_cpu_second": statistics.median(per_cpu),
            "per_second": statistics.median(per_wall),
            "mean_per_cpu_second": sum(amounts) / max(sum(self.cpu), 1e-9),
            "mean_per_second": sum(amounts) / max(sum(self.wall), 1e-9),
            "rounds": len(amounts),
            "disk_bytes": self.disk_bytes,
        }


def table(results: dict) -> str:
    """For a person: what tokenizer_rates ("tokenizers": a list) and loader_rates ("loader") gave; either may lack."""
    lines = []
    if results.get("tokenizers"):
        lines.append(
            f"{'tokenizer':32} {'MB/s of CPU':>11} {'MB/s':>7} {'the library':>12} {'ratio':>6}  the library's name"
        )
    for row in results.get("tokenizers", ()):
        ours = row["ours"]
        line = f"{row['tokenizer'][-32:]:32} {ours['per_cpu_second'] / 1e6:11.2f} {ours['per_second'] / 1e6:7.2f}"
        if "direct" in row:
            line += f" {row['direct']['per_cpu_second'] / 1e6:12.2f} {row['ratio']:6.2f}  {row['library']}"
            line += f"; other tokens for {row['differ']} texts" if row["differ"] else ""
        lines.append(line)
    if (loader := results.get("loader")) is not None:
        for name in ("cold", "warm"):
            rates = loader[name]
            lines.append(
                f"loader, {name}: {si(rates['per_second'])} tokens/s, {si(rates['per_cpu_second'])} per second of CPU;"
                f" {rates['rounds']} batches of {si(loader['batch_tokens'])} tokens,"
                f" {si(rates['disk_bytes'] / rates['rounds'])}B from disk for each"
            )
    return "\n".join(lines)


def _read_cold(config, deadline: float) -> Timer:
    """Of single batches, spread over the first epoch's order."""
    timer = Timer()
    for step in itertools.count():
        read, files = training_reader(config)
        for file in files:
            forget_pages(file)
        timer([read], [step])
        del read  # pages that are mapped stay
        if time.perf_counter() > deadline or len(timer.cpu) == COLD_BATCHES:
            return timer


def _read_for(read: Callable, steps: Iterable[int], seconds: float) -> tuple[Timer, list[int]]:
    """The steps read in order until the seconds are over, at least one."""
    timer, done, deadline = Timer(), [], time.perf_counter() + seconds
    for step in steps:
        timer([read], [step])
        done.append(step)
        if time.perf_counter() > deadline:
            break
    return timer, done


def _rounds(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """The texts in groups of at least so many characters, the last one as it comes."""
    group, characters = [], 0
    for text in texts:
        group.append(text)
        characters += len(text)
        if characters >= size:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _library(tokenizer) -> tuple[str | None, Callable[[str], list[int]] | None]:
    """(name, function from a text to its tokens) of the library behind a tokenizer, as its users call it."""
    make = {"sentencepiece": _sentencepiece, "gpt2": _tiktoken, "hf": _hugging_face}
    return make[tokenizer.kind](tokenizer.definition) if tokenizer.kind in make else (None, None)


def _sentencepiece(definition: bytes):
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=definition)
    return f"sentencepiece {sentencepiece.__version__} encode", model.encode


def _tiktoken(definition: bytes):
    import base64

    import tiktoken
    from tiktoken_ext import openai_public

    pairs = (line.split() for line in definition.splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    encoding = tiktoken.Encoding("gpt2", pat_str=openai_public.r50k_pat_str, mergeable_ranks=ranks, special_tokens={})
    return f"tiktoken {tiktoken.__version__} encode_ordinary", encoding.encode_ordinary


def _hugging_face(definition: bytes):
    tokenizers = library("tokenizers", "the tokenizer 'hf'")
    tokenizer = tokenizers.Tokenizer.from_str(definition.decode())
    tokenizer.encode_special_tokens = True  # as ours: the text `<|endoftext|>` is text
    return (
        f"tokenizers {tokenizers.__version__} encode",
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
    )
