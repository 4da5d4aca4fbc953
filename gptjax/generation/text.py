"""Texts to texts: prompts and completions, stop strings wherever they lie between tokens, streaming piece by piece."""

import dataclasses

import numpy as np

from gptjax.errors import UserError, shorten
from gptjax.generation import beam
from gptjax.generation.engine import Engine, Row
from gptjax.generation.settings import Settings
from gptjax.generation.watching import Watcher

WATCHED_CHUNK = 8  # tokens between two looks for stop strings; 1 where somebody reads along


@dataclasses.dataclass(frozen=True, repr=False)
class Completion:
    prompt: str
    text: str  # what follows the prompt, without the stop string
    tokens: np.ndarray  # int32, of the text; the last may hold the beginning of the stop string
    finish_reason: str  # eot (end-of-text, or the end of a turn) | stop (a stop string) | length (max_tokens) | cancelled (the callback said so)
    seed: int | None  # gives this text again with this prompt alone; None: nothing was drawn
    logprobs: np.ndarray | None = None  # float32, of each of tokens in nats, as the model gives them before any setting
    prompt_logprobs: np.ndarray | None = None  # of each token of the prompt but the first, end-of-text before it
    score: float | None = None  # beam search: log-probability over length ** length_penalty

    def __str__(self) -> str:
        return self.prompt + self.text

    def __repr__(self) -> str:
        prompt, text = (shorten(repr(words), 100) for words in (self.prompt, self.text))
        return (
            f"Completion(prompt={prompt}, text={text}, {len(self.tokens)} tokens, finish_reason={self.finish_reason!r})"
        )


def generate(
    engine: Engine, tokenizer, prompts, settings: Settings | list[Settings], callback=None, stop_ids=()
) -> list[Completion]:
    """num_return_sequences completions of each prompt, in order. prompts: a text, token ids, or a list of these; None: the
    start of a document. settings: for all prompts, or of each, whose seed is then that of its first completion. stop_ids:
    tokens that end a text, beside end-of-text.

    callback(index of the completion, new piece of its text) is called as text comes; False from it ends that one.

    Raises UserError: an empty prompt of a tokenizer without end-of-text, settings that don't go together.
    """
    prompts = _listed(prompts)
    ids = [
        prompt_ids(tokenizer, p) if p is None or isinstance(p, str) else _ids(p, engine.config.vocab_size)
        for p in prompts
    ]
    texts = [p or "" if p is None or isinstance(p, str) else tokenizer.decode(i) for p, i in zip(prompts, ids)]
    settings_of_each, seeds = _settings_and_seeds(settings, len(prompts))
    if any(each.num_beams > 1 and (callback is not None or each.stop) for each in settings_of_each):
        raise UserError("beam search has its texts only at the end; leave out streaming and stop strings.")
    rows, watchers, completions = [], {}, []
    for prompt, token_L, each, row_seeds in zip(texts, ids, settings_of_each, seeds):
        if each.num_beams > 1:
            completions += _search(engine, tokenizer, prompt, token_L, each, stop_ids)
            continue
        for seed in row_seeds:
            rows.append(Row(token_L, seed, each, tokenizer.eot_id, tuple(stop_ids)))
            if callback is not None or each.stop:
                watchers[id(rows[-1])] = len(completions), Watcher(tokenizer, each.stop)
            completions.append((prompt, rows[-1]))
    _run(engine, rows, watchers, callback)
    return [
        made
        if isinstance(made, Completion)
        else _completion(tokenizer, *made, watchers.get(id(made[1]), (None, None))[1])
        for made in completions
    ]


def _settings_and_seeds(settings, prompts: int) -> tuple[list[Settings], list[list[int]]]:
    """The settings of each prompt, and a seed for each of its completions. Raises UserError: not as many as there are."""
    if isinstance(settings, Settings):
        count = settings.num_return_sequences
        seeds = seeds_of(settings.seed, prompts * count)
        return [settings] * prompts, [seeds[i * count : (i + 1) * count] for i in range(prompts)]
    if len(settings) != prompts:
        raise UserError(
            f"there are settings for {len(settings)} of {prompts} prompts; give one for each, or one for all."
        )
    return list(settings), [seeds_of(each.seed, each.num_return_sequences) for each in settings]


def _run(engine: Engine, rows: list[Row], watchers: dict, callback) -> None:
    """watchers: {id of a row: (index of its completion, Watcher)}."""

    def watch(row, new):
        if id(row) not in watchers:
            return None
        index, watcher = watchers[id(row)]
        piece, keep = watcher.feed(new, final=row.finished is not None)
        wants_more = callback is None or not piece or callback(index, piece) is not False
        if keep is not None:
            return "stop", keep
        return None if wants_more or row.finished is not None else ("cancelled", len(row.new))

    if not watchers:
        engine.run(rows)
    else:
        engine.run(rows, watch, chunk=WATCHED_CHUNK if callback is None else 1)


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


def _listed(prompts) -> list:
    """The prompts one by one. Raises UserError: what is no prompt and no list of them."""
    if prompts is None or isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, bytes | dict) or not hasattr(prompts, "__len__") or getattr(prompts, "shape", None) == ():
        raise UserError(
            f"prompts={shorten(repr(prompts), 80)} is no prompt; expected a text, token ids [L], or a list of these."
        )
    return [prompts] if _are_ids(prompts) else list(prompts)


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


def _completion(tokenizer, prompt: str, row: Row, watcher: Watcher | None) -> Completion:
    text = tokenizer.decode(row.new) if watcher is None or watcher.cut is None else watcher.cut
    return Completion(
        prompt=prompt,
        text=text,
        tokens=np.array(row.new, np.int32),
        finish_reason=row.finished,
        seed=None if row.settings.temperature == 0 else row.seed,
        logprobs=np.array(row.logprobs, np.float32) if row.settings.logprobs else None,
        prompt_logprobs=row.prompt_logprobs,
    )


def _search(engine, tokenizer, prompt: str, ids, settings, stop_ids) -> list[Completion]:
    ends = Row(ids, 0, settings, tokenizer.eot_id, tuple(stop_ids)).ends
    likeliest = beam.search(engine, ids, settings, ends)[: settings.num_return_sequences]
    return [
        Completion(prompt, tokenizer.decode(b.tokens), np.array(b.tokens, np.int32), b.finished, None, score=b.score)
        for b in likeliest
    ]
