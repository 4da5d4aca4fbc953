"""Batches as arithmetic: row g of a run is a function of the text, the seed and g, on any number of hosts.

    g --mixture--> (source, its row) --packing--> tokens --objective--> what the model takes

Nothing is kept between batches, so that resuming needs the step and nothing else, and a host reads any part of any
batch. A row holds T + 1 tokens: T inputs, and the T targets that follow each of them. `packing` and `objectives` say
what arrays a batch has.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from gptjax.config import text_kinds
from gptjax.data.rows import objectives, packing
from gptjax.data.rows.hashing import DRAW_STREAM, hash_of, hash_of_name, mix
from gptjax.data.rows.mixture import Mixture
from gptjax.data.rows.packing import Batch
from gptjax.data.tokens.cache import cache_folder
from gptjax.errors import UserError, choose


def open_text(config, context_length: int, alive: Callable = lambda: None):
    """(TokenStore, Objective) of a DataConfig. The tokenizer has the special symbols that the objective needs.

    Raises UserError as `prepare` and `make_objective` do.
    """
    if config.task is not None:
        raise UserError(
            f"data.task={config.task!r} gives labelled examples, but running text is read here: it has to be None."
        )
    if config.preferences is not None:
        raise UserError(
            f"data.preferences={config.preferences!r} gives answers, but running text is read here: it has to be None."
        )
    choose(PACKINGS, config.packing, "data.packing")  # before text is read, perhaps for hours
    choose(text_kinds.OBJECTIVES, config.objective, "data.objective")
    from gptjax.data.tokens import store as stores  # who reads rows of tokens that are open needs none of it

    store = stores.prepare(config, alive)
    objective = objectives.make_objective(config, store.tokenizer, context_length)
    return dataclasses.replace(store, tokenizer=store.tokenizer.with_special(objective.symbols)), objective


class TrainRows:
    """An endless stream of rows: those of each source in whole epochs of its own, mixed by data.weights.

    data: a DataConfig; objective: of `objectives`; alive: is called while documents are packed, which happens once.

    Raises UserError: a source that is too short for a row, weights that cannot be.
    """

    def __init__(self, store, data, context_length: int, objective, alive: Callable = lambda: None):
        self.objective = objective
        self._names = tuple(store.sources)
        self._seeds = [_seed_of(data.seed, name, len(self._names)) for name in self._names]
        row_tokens = objective.source_tokens(context_length + 1)
        pack = choose(PACKINGS, data.packing, "data.packing")
        self._rows = [
            pack(source, row_tokens, seed, data, alive) for source, seed in zip(store.sources.values(), self._seeds)
        ]
        self._identity_S = np.array([int(source.fingerprint[:16], 16) for source in store.sources.values()], np.uint64)
        self.stages = self._stages(data, context_length)  # (first row, {source: weight})
        self._mixture = Mixture(self._names, self.stages, data.seed)

    def _stages(self, config, context_length: int) -> list[tuple[int, dict[str, float]]]:
        weights = config.weights or {name: rows.rows_per_epoch for name, rows in zip(self._names, self._rows)}
        later = [(-(-tokens // context_length), weights) for tokens, weights in config.weight_stages]
        return [(0, weights), *later]

    @property
    def by_source(self) -> dict[str, packing.ConcatRows | packing.BestFitRows]:
        return dict(zip(self._names, self._rows))

    @property
    def rows_per_epoch(self) -> dict[str, int]:
        """Rows of an epoch of each source."""
        return {name: rows.rows_per_epoch for name, rows in zip(self._names, self._rows)}

    def locate(self, first: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int64 [stop - first], three times: for rows first to stop - 1 the source, which of its rows, and the id of that
        row in its packing: the token it starts at, or its number."""
        source_B, index_B = self._mixture.locate(first, stop)
        id_B = np.empty(len(source_B), np.int64)
        for i in np.unique(source_B):
            id_B[source_B == i] = self._rows[i].ids(index_B[source_B == i])
        return source_B, index_B, id_B

    def rows(self, first: int, stop: int) -> Batch:
        """Rows first to stop - 1 of the run."""
        source_B, index_B, id_B = self.locate(first, stop)
        key_B, parts = np.empty(len(source_B), np.uint64), []
        present = np.unique(source_B)
        for i in present:
            key_B[source_B == i] = hash_of(self._seeds[i], index_B[source_B == i], DRAW_STREAM)
            parts.append(self._rows[i].rows(id_B[source_B == i]))
        order_B = np.argsort(np.argsort(source_B, kind="stable"))
        batch = (
            parts[0]
            if len(parts) == 1
            else {name: np.concatenate([part[name] for part in parts])[order_B] for name in parts[0]}
        )
        return self.objective(batch, key_B)

    def hashes(self, first: int, stop: int) -> np.ndarray:
        """uint64 [stop - first]: of the text, the place in it, and the number in the run of rows first to stop - 1.

        Their sum over all the rows of a run so far, modulo 2 ** 64, is the same on any number of hosts, and another one if
        a row was another text, missing, read twice or in the place of another.
        """
        source_B, _, id_B = self.locate(first, stop)
        place_B = np.empty(len(source_B), np.uint64)
        for i in np.unique(source_B):
            place_B[source_B == i] = self._rows[i].places(id_B[source_B == i])
        place_B = mix(self._identity_S[source_B] ^ place_B)
        return mix(place_B ^ mix(np.arange(first, stop, dtype=np.uint64)))

    def epochs(self, n_rows: int) -> dict[str, float]:
        """How often each source was gone through in the first n_rows rows of the run."""
        counts = self.counts(n_rows)
        return {name: counts[name] / n for name, n in self.rows_per_epoch.items()}

    def counts(self, n_rows: int) -> dict[str, int]:
        """Rows of each source among the first n_rows of the run."""
        return dict(zip(self._names, self._mixture.counts(n_rows).tolist()))


def _seed_of(seed: int, name: str, n_sources: int) -> int:
    """A source alone is in the order of data.seed; in a mixture each has a seed of its own, whoever the others are."""
    return seed if n_sources == 1 else hash_of_name(f"{seed} {name}")


def _concat(source, row_tokens: int, seed: int, config, alive) -> packing.ConcatRows:
    return packing.ConcatRows(source.train, row_tokens, seed, config.mask_documents, source.training_text)


def _best_fit(source, row_tokens: int, seed: int, config, alive) -> packing.BestFitRows:
    if config.chat is not None:
        from gptjax.data.rows import conversations

        return conversations.train_rows(source, row_tokens, seed, config, alive)
    folder = cache_folder(config) / f"rows-{packing.Plan.FORMAT}-{source.fingerprint[:16]}-{row_tokens}"
    plan = packing.plan_rows(source.train, row_tokens, folder, alive)
    return packing.BestFitRows(source.train, row_tokens, seed, plan)


PACKINGS = {"concat": _concat, "best_fit": _best_fit}


def held_out_rows(tokens) -> Callable:
    """EvalRows, or where tokens are of conversations EvalConversations, which takes the same."""
    if tokens.weights is None:
        return EvalRows
    from gptjax.data.rows import conversations

    return conversations.EvalConversations


class EvalRows:
    """A text in order, in `num_rows` windows that predict every token but the first exactly once.

    Windows start `stride` tokens apart (None: as many as one predicts, so that they only touch). With fewer, a window
    predicts its last `stride` tokens, each from context_length - stride tokens before it at least, and the first window
    all of its own. What is predicted elsewhere, what pads the last window, and rows from num_rows on, has weight 0. bits
    per byte is the loss summed over all rows, over ln 2, over the sum of bytes_B. An objective that is judged by itself
    gets whole windows only: fewer than a row's tokens at the end are left out.

    Raises UserError: fewer than 2 tokens, or than such a window's; a stride that cannot be.
    """

    def __init__(
        self,
        tokens,
        tokenizer,
        context_length: int,
        config,
        objective,
        max_tokens: int | None = None,
        name: str = "the held-out text",
        stride: int | None = None,
    ):
        self.tokens, self._apart = tokens, config.documents_apart
        self._token_bytes = np.asarray(tokenizer.token_bytes, np.int32)
        self._judge = objectives.held_out(objective)
        self._row_tokens = self._judge.source_tokens(context_length + 1)
        self.window = self._row_tokens - 1  # tokens that a window predicts at most
        n_tokens, whole = tokens.n_tokens, self._judge.judged_by_itself
        self.stride = self._checked_stride(stride, context_length, config.objective)
        least = self._row_tokens if whole else 2
        if n_tokens < least:
            raise UserError(
                f"{name} has {n_tokens} tokens, but predicting one takes {least}; use a larger data.val_fraction"
                " (of a prepared folder: --val_fraction of gptjax prepare) or more text."
            )
        self._n_predicted = n_tokens - 1 if max_tokens is None else min(max_tokens, n_tokens - 1)
        if whole:
            self.num_rows = max(1, self._n_predicted // self.stride)
            self._n_predicted = self.num_rows * self.stride
        else:
            self.num_rows = 1 + max(0, math.ceil((self._n_predicted - self.window) / self.stride))

    def _checked_stride(self, stride: int | None, context_length: int, objective: str) -> int:
        if stride is None:
            return self.window
        if self._judge.judged_by_itself:
            raise UserError(
                f"--stride={stride}: a model of data.objective={objective!r} is evaluated on whole windows; leave it out."
            )
        if not 1 <= stride <= context_length:
            raise UserError(
                f"--stride={stride} must be from 1 to the context length, {context_length}; a larger one would leave tokens out."
            )
        return stride

    @property
    def rows_per_window(self) -> int:
        """Rows that together predict as many tokens as a window: neighbours whose losses go together."""
        return math.ceil(self.window / self.stride)

    def places(self, first: int, stop: int) -> np.ndarray:
        """int64 [B, L]: which token of the text is predicted at each place of rows first to stop - 1."""
        return np.arange(first, stop)[:, None] * self.stride + np.arange(1, self.window + 1)

    def rows(self, first: int, stop: int) -> Batch:
        """Rows first to stop - 1, with bytes_B, int32: UTF-8 bytes of what each predicts with weight 1. stop may lie
        beyond num_rows."""
        start_B = np.arange(first, stop, dtype=np.int64) * self.stride
        batch = packing.window_rows(self.tokens, start_B, self._row_tokens, self._apart)
        inside_BL = start_B[:, None] + np.arange(self.window) < self._n_predicted
        batch["token_BT"][:, 1:] *= inside_BL
        new_BL = (np.arange(first, stop) == 0)[:, None] | (np.arange(self.window) >= self.window - self.stride)
        batch["weight_BL"] *= inside_BL & new_BL
        batch = self._judge(batch, objectives.evaluation_keys(first, stop))
        batch["weight_BL"] *= np.arange(first, stop)[:, None] < self.num_rows
        spelled_BL = self._token_bytes[objectives.targets(batch)] * (batch["weight_BL"] > 0)
        return batch | {"bytes_B": spelled_BL.sum(axis=1, dtype=np.int32)}
