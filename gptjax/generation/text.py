"""Texts to texts: prompts and completions, stop strings wherever they lie between tokens, streaming piece by piece."""

import codecs
import dataclasses
import typing

import numpy as np

from gptjax.errors import UserError
from gptjax.generation import beam, sampling
from gptjax.generation.engine import Engine, Row

WATCHED_CHUNK = 8  # tokens between two looks for stop strings; 1 where somebody reads along


@dataclasses.dataclass(frozen=True)
class Completion:
    prompt: str
    text: str  # what follows the prompt, without the stop string
    tokens: np.ndarray  # int32, of the text; the last may hold the beginning of the stop string
    finish_reason: (
        str  # eot (end-of-text) | stop (a stop string) | length (max_tokens) | cancelled (the callback said so)
    )
    seed: int | None  # gives this text again with this prompt alone; None: nothing was drawn
    logprobs: np.ndarray | None = None  # float32, of each of tokens in nats, as the model gives them before any setting
    prompt_logprobs: np.ndarray | None = None  # of each token of the prompt but the first, end-of-text before it
    score: float | None = None  # beam search: log-probability over length ** length_penalty

    def __str__(self) -> str:
        return self.prompt + self.text


def generate(engine: Engine, tokenizer, prompts, settings: sampling.Settings, callback=None) -> list[Completion]:
    """settings.num_return_sequences completions of each prompt, in order. prompts: a text, token ids, or a list of these;
    None: the start of a document.

    callback(index of the completion, new piece of its text) is called as text comes; False from it ends that one.

    Raises UserError: an empty prompt of a tokenizer without end-of-text, settings that don't go together.
    """
    prompts = [prompts] if prompts is None or isinstance(prompts, str) or _are_ids(prompts) else list(prompts)
    ids = [
        prompt_ids(tokenizer, p) if p is None or isinstance(p, str) else _ids(p, engine.config.vocab_size)
        for p in prompts
    ]
    texts = [p or "" if p is None or isinstance(p, str) else tokenizer.decode(i) for p, i in zip(prompts, ids)]
    if settings.num_beams > 1:
        if callback is not None or settings.stop:
            raise UserError("beam search knows its texts at the end only: no streaming and no stop strings with it.")
        return [found for text, i in zip(texts, ids) for found in _search(engine, tokenizer, text, i, settings)]
    count = settings.num_return_sequences
    seeds = seeds_of(settings.seed, len(ids) * count)
    rows = [Row(ids[i // count], seed) for i, seed in enumerate(seeds)]
    watchers = {}
    if callback is not None or settings.stop:
        watchers = {id(row): _Watcher(i, tokenizer, settings.stop, callback) for i, row in enumerate(rows)}
    watch = (lambda row, new: watchers[id(row)].feed(row, new)) if watchers else None
    chunk = None if watch is None else (1 if callback is not None else WATCHED_CHUNK)
    engine.run(rows, settings, tokenizer.eot_id, watch, chunk)
    return [
        _completion(tokenizer, texts[i // count], row, watchers.get(id(row)), settings) for i, row in enumerate(rows)
    ]


def seeds_of(seed: int | tuple[int, ...], count: int) -> list[int]:
    """One for each sequence. Raises UserError: as many are needed."""
    if isinstance(seed, int):
        return [(seed + i) % 2**32 for i in range(count)]
    if len(seed) != count:
        raise UserError(f"seed has {len(seed)} values for {count} sequences; give one for each, or a single one.")
    return [s % 2**32 for s in seed]


def prompt_ids(tokenizer, prompt: str | None) -> np.ndarray:
    """Token ids of a prompt, after what a document begins after in training: end-of-text where the tokenizer has one."""
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    text = tokenizer.encode(prompt) if prompt else np.zeros(0, np.int32)
    return np.concatenate([np.array(start, np.int32), text])


def _are_ids(prompts) -> bool:
    """Whether they are one prompt; an array [B, L] is several."""
    if hasattr(prompts, "ndim"):
        return prompts.ndim < 2
    return len(prompts) > 0 and all(isinstance(i, (int, np.integer)) for i in prompts)


def _ids(prompt, vocab_size: int) -> np.ndarray:
    """int32 [L]. Raises UserError: what no model could read; an id that is none would be taken for another, unsaid."""
    ids = np.asarray(prompt)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise UserError(f"{ids.dtype} of shape {ids.shape} is no prompt; expected a text, or token ids [L].")
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if outside.size:
        raise UserError(f"token id {outside[0]} is outside the vocabulary; expected 0 to {vocab_size - 1}.")
    return ids.astype(np.int32)


def _completion(tokenizer, prompt: str, row: Row, watcher, settings) -> Completion:
    text = tokenizer.decode(row.new) if watcher is None or watcher.cut is None else watcher.cut
    return Completion(
        prompt=prompt,
        text=text,
        tokens=np.array(row.new, np.int32),
        finish_reason=row.finished,
        seed=None if settings.temperature == 0 else row.seed,
        logprobs=np.array(row.logprobs, np.float32) if settings.logprobs else None,
        prompt_logprobs=row.prompt_logprobs,
    )


def _search(engine, tokenizer, prompt: str, ids, settings) -> list[Completion]:
    found = beam.search(engine, ids, settings, tokenizer.eot_id)
    return [
        Completion(prompt, tokenizer.decode(b.tokens), np.array(b.tokens, np.int32), b.finished, None, score=b.score)
        for b in found[: settings.num_return_sequences]
    ]


class _Watcher:
    """Reads along with one row: finds stop strings, in bytes, and says what can be read of it already."""

    def __init__(self, index: int, tokenizer, stop: tuple[str, ...], callback: typing.Callable | None):
        self._index, self._spelling, self._callback = index, tokenizer.spelling, callback
        self._stop = [text.encode() for text in stop]
        self._bytes = bytearray()
        self._ends = []  # bytes up to and with each token
        self._told = 0  # bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.cut = None  # the text, where a stop string ended it

    def feed(self, row: Row, new) -> tuple[str, int] | None:
        """(reason, tokens to keep) if the row ends here."""
        searched = len(self._bytes)
        for token in new:
            self._bytes += self._spelling[token]
            self._ends.append(len(self._bytes))
        found = self._find(searched)
        if found is not None:
            at, size = found
            self._tell(at, final=True)
            self.cut = bytes(self._bytes[:at]).decode("utf-8", errors="replace")
            return "stop", next(i for i, end in enumerate(self._ends) if end >= at + size) + 1
        final = row.finished is not None
        wants_more = self._tell(len(self._bytes) if final else len(self._bytes) - self._begun(), final)
        return None if wants_more or final else ("cancelled", len(row.new))

    def _find(self, searched: int) -> tuple[int, int] | None:
        """(place, bytes) of the stop string that ends first; of those that end together the longest."""
        best = None
        for stop in self._stop:
            at = self._bytes.find(stop, max(0, searched - len(stop) + 1))
            if at >= 0:
                candidate = (at + len(stop), -len(stop))
                best = candidate if best is None else min(best, candidate)
        return None if best is None else (best[0] + best[1], -best[1])

    def _begun(self) -> int:
        """Bytes at the end that may turn out to begin a stop string."""
        sizes = (n for stop in self._stop for n in range(1, len(stop)) if self._bytes.endswith(stop[:n]))
        return max(sizes, default=0)

    def _tell(self, until: int, final: bool) -> bool:
        """Hands on what is new up to a byte, whole characters only. False: the reader wants no more."""
        if self._callback is None or until < self._told:
            return True
        piece = self._decoder.decode(bytes(self._bytes[self._told : until]), final)
        self._told = until
        return not piece or self._callback(self._index, piece) is not False
