"""Loss on held-out text: nats per token with its standard error, perplexity, bits per byte."""

import dataclasses
import functools
import math
import typing

import jax
import numpy as np

from gptjax import data


@dataclasses.dataclass(frozen=True)
class Evaluation:
    loss: float  # nats per token
    standard_error: float  # of loss, from the spread between rows
    bits_per_byte: float  # of the text itself, whatever the tokenizer
    perplexity: float
    tokens: int

    def as_dict(self) -> dict:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.4f} +- {self.standard_error:.4f}  bits/byte {self.bits_per_byte:.4f}"
            f"  perplexity {self.perplexity:.2f}  ({self.tokens:,} tokens)"
        )


class Sums(typing.NamedTuple):
    """What an evaluation is made of: of each row the loss (nats) and the tokens, and the bytes all of them spell."""

    loss_R: np.ndarray
    weight_R: np.ndarray
    n_bytes: int


def summarise(sums: Sums) -> Evaluation:
    """The standard error is that of a ratio of means over rows (Cochran 1977, section 2.11): tokens of a row are
    correlated, rows are taken as independent. End-of-text tokens count as tokens and spell no bytes.
    """
    loss_R, weight_R = np.float64(sums.loss_R), np.float64(sums.weight_R)
    kept = weight_R > 0
    loss_R, weight_R = loss_R[kept], weight_R[kept]
    nats, tokens, rows = loss_R.sum(), weight_R.sum(), len(loss_R)
    loss = nats / tokens
    residual_R = loss_R - loss * weight_R
    spread = math.sqrt(np.square(residual_R).sum() * rows / (rows - 1)) / tokens if rows > 1 else math.nan
    return Evaluation(
        loss=float(loss),
        standard_error=float(spread),
        bits_per_byte=float(nats / math.log(2) / sums.n_bytes) if sums.n_bytes else math.nan,
        perplexity=float(np.exp(loss)),
        tokens=int(tokens),
    )


def pool(sums: typing.Iterable[Sums]) -> Sums:
    """Of several sources as one text."""
    loss, weight, n_bytes = zip(*sums)
    return Sums(np.concatenate(loss), np.concatenate(weight), sum(n_bytes))


def held_out_rows(config, store, objective) -> dict[str, data.EvalRows]:
    """The held-out text of each source. Raises UserError: one has none, by its name."""
    said = {name: "the held-out text" + f" of {name!r}" * (len(store.sources) > 1) for name in store.sources}
    return {
        name: data.EvalRows(
            source.val,
            store.tokenizer,
            config.model.context_length,
            config.data,
            objective,
            max_tokens=config.eval.max_tokens,
            name=said[name],
        )
        for name, source in store.sources.items()
    }


def evaluate_sources(program, params, rows: dict[str, data.EvalRows], batch_size: int, **options) -> dict | None:
    """{source: Evaluation}, and of several sources also "all": their held-out text taken as one. options: of `evaluate`."""
    sums = {name: evaluate(program, params, rows[name], batch_size, **options) for name in rows}
    if None in sums.values():
        return None
    pooled = {"all": pool(sums.values())} if len(sums) > 1 else {}
    return {name: summarise(values) for name, values in (pooled | sums).items()}


def evaluate(program, params, rows, batch_size: int, should_stop=lambda: False, total=lambda name, n: n) -> Sums | None:
    """Of params on EvalRows, batch_size rows at a time. None if should_stop() said so between two batches.

    total: of `Alone` or `Peers`. A process counts the bytes of its own rows.
    """
    results, n_bytes = [], 0
    for first in range(0, rows.num_rows, batch_size):
        if should_stop():
            return None
        batch = device_batch(functools.partial(_padded_rows, rows, first), batch_size, program.eval_batch_sharding)
        results.append(program.evaluate(params, batch))
        results[-2:-1] = jax.device_get(results[-2:-1])  # one batch late, so that few wait on the device
        for start, stop in own_rows(batch_size, program.eval_batch_sharding):
            n_bytes += int(rows.byte_count(first + start, first + stop).sum())
    n_bytes = total("eval_bytes", n_bytes)
    return Sums(*(np.concatenate(parts) for parts in zip(*jax.device_get(results))), n_bytes)


def _padded_rows(rows, first: int, start: int, stop: int) -> dict:
    return rows.rows(first + start, first + stop)


def device_batch(read, batch_size: int, batch_sharding, dim: int = 0) -> dict[str, jax.Array]:
    """A batch laid out over the mesh. read(start, stop) gives arrays whose dimension `dim` holds those rows of it.

    A process reads only the rows that its own devices hold, each once.
    """
    read = functools.lru_cache(maxsize=None)(read)
    shape = [1] * dim + [batch_size]
    index = next(iter(batch_sharding.addressable_devices_indices_map(tuple(shape)).values()))
    sample = read(*index[dim].indices(batch_size)[:2])

    def array(name):
        local = sample[name]
        whole = (*local.shape[:dim], batch_size, *local.shape[dim + 1 :])
        return jax.make_array_from_callback(
            whole, batch_sharding, lambda index: read(*index[dim].indices(batch_size)[:2])[name]
        )

    return {name: array(name) for name in sample}


def local_rows(batch_size: int, batch_sharding, dim: int = 0) -> tuple[tuple[int, int], ...]:
    """The (start, stop) of a batch that this process's devices hold."""
    held = batch_sharding.addressable_devices_indices_map((*[1] * dim, batch_size)).values()
    return tuple(sorted({index[dim].indices(batch_size)[:2] for index in held}))


@functools.lru_cache(maxsize=64)
def own_rows(batch_size: int, batch_sharding, dim: int = 0) -> tuple[tuple[int, int], ...]:
    """The (start, stop) of a batch that this process answers for: every row is one process's, the first to hold it."""
    owner = {}
    for device, index in batch_sharding.devices_indices_map((*[1] * dim, batch_size)).items():
        rows = index[dim].indices(batch_size)[:2]
        owner[rows] = min(owner.get(rows, device), device, key=lambda d: d.id)
    here = jax.process_index()
    return tuple(sorted(rows for rows, device in owner.items() if device.process_index == here))
