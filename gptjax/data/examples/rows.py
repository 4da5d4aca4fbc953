"""Row g of a run on labelled examples: one example, a function of the set, the seed and g, in whole epochs.

The arrays of a batch are those of models/labelled.py. Axes: B examples, C sequences of one, L length, O outputs of the head.
"""

import numpy as np

from gptjax.data.rows.hashing import mix, permute


def row_length(longest: int, context_length: int, unit: int) -> int:
    """The context, or the smallest of its halves, quarters ... that has so many tokens. unit: what it is a multiple of."""
    size = context_length
    while size % 2 == 0 and size // 2 >= longest and (size // 2) % unit == 0:
        size //= 2
    return size


def batch_of(examples, head, sequences: int, length: int) -> dict[str, np.ndarray]:
    """The arrays of examples, each with so many sequences of so many tokens."""
    B = len(examples)
    token_BCL, length_BC = np.zeros((B, sequences, length), np.int32), np.zeros((B, sequences), np.int32)
    for b, example in enumerate(examples):
        for c, ids in enumerate(example.sequences):
            token_BCL[b, c, : len(ids)], length_BC[b, c] = ids, len(ids)
    batch = {"token_BCL": token_BCL, "length_BC": length_BC, "weight_B": np.ones(B, np.float32)}
    return batch if examples[0].label is None else batch | _LABELS[head.loss](examples, length)


def _of_classes(examples, length: int) -> dict:
    return {"label_B": np.array([example.label for example in examples], np.int32)}


def _of_numbers(examples, length: int) -> dict:
    return {"label_BO": np.stack([example.label for example in examples])}


def _of_span(examples, length: int) -> dict:
    return {"label_B2": np.stack([example.label for example in examples])}


def _of_tokens(examples, length: int) -> dict:
    label_BL = np.zeros((len(examples), length), np.int32)
    weight_BL = np.zeros((len(examples), length), np.float32)
    for b, example in enumerate(examples):
        label_BL[b, example.place_W], weight_BL[b, example.place_W] = example.label, 1
    return {"label_BL": label_BL, "weight_BL": weight_BL}


_LABELS = {"classify": _of_classes, "choice": _of_classes, "tag": _of_tokens, "span": _of_span, "regress": _of_numbers}


class TrainExamples:
    """An endless stream of rows, in the place of pipeline.TrainRows. store: an ExampleStore; unit: see row_length."""

    def __init__(self, store, seed: int, unit: int):
        self._examples, self._head, self._seed = store.examples.train.examples, store.head, seed
        longest = max(len(ids) for example in self._examples for ids in example.sequences)
        self.shape = (
            max(len(each.sequences) for each in self._examples),
            row_length(longest, store.context_length, unit),
        )
        self._name, self._identity = store.name, np.uint64(int(store.fingerprint[:16], 16))

    @property
    def rows_per_epoch(self) -> dict[str, int]:
        return {self._name: len(self._examples)}

    def order(self, first: int, stop: int) -> np.ndarray:
        """int64 [stop - first]: which example each of rows first to stop - 1 is."""
        epoch_B, index_B = np.divmod(np.arange(first, stop, dtype=np.int64), len(self._examples))
        return permute(index_B, len(self._examples), self._seed, epoch_B)

    def rows(self, first: int, stop: int) -> dict[str, np.ndarray]:
        """Rows first to stop - 1 of the run."""
        examples = [self._examples[i] for i in self.order(first, stop).tolist()]
        return self.batch(examples)

    def batch(self, examples) -> dict[str, np.ndarray]:
        return batch_of(examples, self._head, *self.shape)

    def hashes(self, first: int, stop: int) -> np.ndarray:
        """uint64 [stop - first]: of the set, the example, and the number in the run, as TrainRows.hashes."""
        place_B = mix(self._identity ^ self.order(first, stop).astype(np.uint64))
        return mix(place_B ^ mix(np.arange(first, stop, dtype=np.uint64)))

    def epochs(self, n_rows: int) -> dict[str, float]:
        """How often the set was gone through in the first n_rows rows of the run."""
        return {self._name: n_rows / len(self._examples)}


class EvalExamples:
    """Held-out examples in order, in `num_rows` rows; those from there on have weight 0."""

    def __init__(self, examples, head, task, tokenizer, context_length: int, unit: int, max_tokens: int | None = None):
        """max_tokens: only the first of them, which have so many tokens together. unit: see row_length."""
        if max_tokens is not None:
            until = np.cumsum([sum(map(len, example.sequences)) for example in examples])
            examples = examples[: max(1, int(np.searchsorted(until, max_tokens, side="right")))]
        self.examples, self.head, self.task, self.tokenizer = examples, head, task, tokenizer
        longest = max(len(ids) for example in examples for ids in example.sequences)
        self.shape = max(len(each.sequences) for each in examples), row_length(longest, context_length, unit)

    @classmethod
    def held_out(cls, store, unit: int, max_tokens: int | None = None) -> "EvalExamples":
        """Those of an ExampleStore."""
        examples, length = store.examples.val.examples, store.context_length
        return cls(examples, store.head, store.task, store.tokenizer, length, unit, max_tokens)

    @property
    def num_rows(self) -> int:
        return len(self.examples)

    def rows(self, first: int, stop: int) -> dict[str, np.ndarray]:
        """Rows first to stop - 1. stop may lie beyond num_rows."""
        last = len(self.examples) - 1
        batch = self.batch([self.examples[min(i, last)] for i in range(first, stop)])
        is_real_B = np.arange(first, stop) <= last
        for name in [name for name in batch if name.startswith("weight")]:
            batch[name] = batch[name] * is_real_B.reshape(-1, *[1] * (batch[name].ndim - 1))
        return batch

    def batch(self, examples) -> dict[str, np.ndarray]:
        return batch_of(examples, self.head, *self.shape)
