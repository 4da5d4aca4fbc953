"""Batches as arithmetic: row g of a run is a function of the tokens, the seed and g, on any number of hosts.

Nothing is kept between batches, so that resuming needs the step and nothing else, and a host reads any part of
any batch. A row holds T + 1 tokens: T inputs, and the T targets that follow each of them.

    token_BT     int32 [B, T + 1]
    weight_BL    float32 [B, T]    of the loss at predicting token_BT[:, t + 1]
    segment_BT   int32 [B, T + 1]  the document a token belongs to, counted within the row  (with mask_documents)
    position_BL  int32 [B, T]      counted from the start of the document, or of the row     (with mask_documents)
"""

import collections
import concurrent.futures
from collections.abc import Callable

import numpy as np

from gptjax.errors import UserError

Batch = dict[str, np.ndarray]


def permute(index: np.ndarray, n: int, seed: int, epoch) -> np.ndarray:
    """int64, the shape of index: where a permutation of [0, n), drawn by (seed, epoch), takes each index.

    epoch is a number or an array like index. No table: a Feistel network permutes the next power of four, and a
    value outside [0, n) is permuted again until it is inside (cycle walking; Black and Rogaway, 2002, section 5),
    fewer than four times on average (from n = 16 on). Every run ever made depends on these values: they don't change.
    """
    index, epoch = np.broadcast_arrays(np.asarray(index, np.int64), np.asarray(epoch, np.int64))
    if n == 1:
        return np.zeros_like(index)
    half_bits = max(3, (int(n - 1).bit_length() + 1) // 2)  # networks on fewer bits are visibly biased
    value = index.astype(np.uint64).reshape(-1)
    keys = [_hash(seed, epoch.reshape(-1), r) for r in range(_ROUNDS)]
    value = _feistel(value, keys, half_bits)
    while (outside := value >= n).any():
        value[outside] = _feistel(value[outside], [key[outside] for key in keys], half_bits)
    return value.astype(np.int64).reshape(index.shape)


class TrainRows:
    """An endless stream of rows: whole epochs of `rows_per_epoch`, each in an order of its own.

    An epoch cuts the tokens at a stride of T from a random offset of its own, so that a small text seen many times is
    not always cut in the same places. It leaves out fewer than 2 T tokens, at the two ends, but not the same ones.

    Raises UserError: fewer than T + 1 tokens.
    """

    def __init__(self, tokens, context_length: int, seed: int, mask_documents: bool):
        self._tokens = tokens
        self._length = context_length
        self._seed = seed
        self._mask_documents = mask_documents
        n_tokens = len(tokens.token)
        if n_tokens < context_length + 1:
            raise UserError(
                f"the training text has {n_tokens} tokens, but a row of model.context_length={context_length} needs"
                f" {context_length + 1}; use a shorter context, more text, or a smaller data.val_fraction."
            )
        self.rows_per_epoch = max(1, n_tokens // context_length - 1)
        self._n_offsets = n_tokens - self.rows_per_epoch * context_length

    def row_ids(self, first: int, stop: int) -> np.ndarray:
        """int64 [stop - first]: the token each row starts at. Two runs with equal row ids saw the same text."""
        epoch_B, index_B = np.divmod(np.arange(first, stop, dtype=np.int64), self.rows_per_epoch)
        position_B = permute(index_B, self.rows_per_epoch, self._seed, epoch_B)
        offset_B = _hash(self._seed, epoch_B, _OFFSET) % np.uint64(self._n_offsets)
        return offset_B.astype(np.int64) + position_B * self._length

    def rows(self, first: int, stop: int) -> Batch:
        """Rows first to stop - 1 of the run."""
        return _batch(self._tokens, self.row_ids(first, stop), self._length, self._mask_documents)


def row_hashes(token_BT: np.ndarray, first: int) -> np.ndarray:
    """uint64 [B]: of the tokens of each row together with its number in the run; the first has number `first`.

    Their sum over all the rows of a run so far, modulo 2 ** 64, is the same on any number of hosts, and another one if
    a row was another text, missing, read twice or in the place of another.
    """
    odd_T = mix(np.arange(token_BT.shape[1], dtype=np.uint64)) | np.uint64(1)
    content_B = (token_BT.astype(np.uint64) + np.uint64(1)) @ odd_T  # modulo 2 ** 64
    return mix(content_B ^ mix(np.arange(first, first + len(token_BT), dtype=np.uint64)))


class EvalRows:
    """The held-out text in order, in `num_rows` windows that predict every token but the first exactly once.

    What pads the last window, and rows from num_rows on, has weight 0. bits per byte is the loss summed over all
    rows, over ln 2, over the sum of byte_count.

    Raises UserError: fewer than 2 tokens.
    """

    def __init__(self, tokens, token_bytes, context_length: int, mask_documents: bool, max_tokens: int | None = None):
        n_tokens = len(tokens.token)
        if n_tokens < 2:
            raise UserError(
                f"the held-out text has {n_tokens} tokens, and 2 are the least to predict one; use a larger"
                " data.val_fraction or more text."
            )
        self._tokens = tokens
        self._token_bytes = np.asarray(token_bytes, np.int64)
        self._length = context_length
        self._mask_documents = mask_documents
        self._n_predicted = n_tokens - 1 if max_tokens is None else min(max_tokens, n_tokens - 1)
        self.num_rows = -(-self._n_predicted // context_length)

    def rows(self, first: int, stop: int) -> Batch:
        """Rows first to stop - 1; stop may lie beyond num_rows."""
        start_B = np.arange(first, stop, dtype=np.int64) * self._length
        batch = _batch(self._tokens, start_B, self._length, self._mask_documents)
        inside_BL = start_B[:, None] + np.arange(self._length) < self._n_predicted
        batch["weight_BL"] *= inside_BL
        batch["token_BT"][:, 1:] *= inside_BL
        return batch

    def byte_count(self, first: int, stop: int) -> np.ndarray:
        """int64 [stop - first]: UTF-8 bytes of the tokens that each row predicts with weight 1."""
        batch = self.rows(first, stop)
        return np.sum(self._token_bytes[batch["token_BT"][:, 1:]] * (batch["weight_BL"] > 0), axis=1)


class Prefetcher:
    """The values of function(first), function(first + 1), ... in order, `prefetch` of them computed ahead in a thread.

    What the function raises, `next` raises in its place, and the prefetcher is closed. With prefetch=0 there is no
    thread. Use it in a `with`, or close it.
    """

    def __init__(self, function: Callable, first: int, prefetch: int):
        self._function = function
        self._step = first
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "prefetch") if prefetch else None
        self._pending = collections.deque()
        self._closed = False
        for _ in range(prefetch):
            self._submit()

    def next(self):
        assert not self._closed, "next() of a closed Prefetcher"
        try:
            if self._pool is None:
                self._step += 1
                return self._function(self._step - 1)
            self._submit()
            return self._pending.popleft().result()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Waits for the value being computed, drops those not begun."""
        self._closed = True
        self._pending.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "Prefetcher":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _submit(self) -> None:
        self._pending.append(self._pool.submit(self._function, self._step))
        self._step += 1


def _batch(tokens, start_B: np.ndarray, length: int, mask_documents: bool) -> Batch:
    """The rows that start at start_B. Beyond the last token they repeat it."""
    last = len(tokens.token) - 1
    start_B = np.minimum(start_B, last)
    index_BT = np.minimum(start_B[:, None] + np.arange(length + 1), last)
    batch = {"token_BT": np.asarray(tokens.token)[index_BT].astype(np.int32)}
    if not mask_documents:
        return batch | {"weight_BL": np.ones((len(start_B), length), np.float32)}
    document_BT = np.searchsorted(tokens.document_start, index_BT, side="right") - 1
    begin_BT = np.maximum(tokens.document_start[document_BT], start_B[:, None])
    return batch | {
        "weight_BL": (document_BT[:, 1:] == document_BT[:, :-1]).astype(np.float32),
        "segment_BT": (document_BT - document_BT[:, :1]).astype(np.int32),
        "position_BL": (index_BT - begin_BT)[:, :-1].astype(np.int32),
    }


_ROUNDS = 6
_OFFSET = _ROUNDS  # the stream of random numbers after those of the rounds


def _feistel(value: np.ndarray, keys: list[np.ndarray], half_bits: int) -> np.ndarray:
    """A bijection of [0, 4 ** half_bits), whatever the keys (uint64)."""
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = value >> shift, value & mask
    for key in keys:
        left, right = right, left ^ (mix(right ^ key) & mask)
    return (left << shift) | right


def _hash(seed: int, epoch: np.ndarray, stream: int) -> np.ndarray:
    """uint64, the shape of epoch."""
    x = mix(np.full(epoch.shape, seed, np.uint64))
    x = mix(x ^ epoch.astype(np.uint64))
    return mix(x ^ np.uint64(stream))


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: np.ndarray) -> np.ndarray:
    """A random-looking bijection of uint64: the output step of SplitMix64 (Steele, Lea and Flood, 2014)."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2 ** 64
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
