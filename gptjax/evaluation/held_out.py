"""Loss on held-out text: nats per token, perplexity, bits per byte, with their standard errors.

Axes: R rows (windows) of a text, C clusters of neighbouring rows.
"""

import dataclasses
import functools
import math
import typing

import jax
import numpy as np

from gptjax.parallel import placement, sharding

NORMAL_95 = 1.96  # standard errors on each side of an interval that holds the truth 95 times in 100


@dataclasses.dataclass(frozen=True)
class Evaluation:
    loss: float  # nats per token
    standard_error: float  # of loss, from the spread between windows
    bits_per_byte: float  # of the text itself, whatever the tokenizer
    bits_per_byte_error: float  # its standard error
    perplexity: float  # exp(loss), per token of this tokenizer
    tokens: int  # predicted
    bytes: int  # UTF-8, that those tokens spell
    words: int | None = None  # of the text as its data set has it, where a protocol counts them

    @property
    @np.errstate(over="ignore")  # infinite where the loss is hundreds of nats
    def perplexity_interval(self) -> tuple[float, float]:
        """That of 95%: exp of the loss and 1.96 standard errors on each side."""
        spread = NORMAL_95 * self.standard_error
        return float(np.exp(self.loss - spread)), float(np.exp(self.loss + spread))

    @property
    @np.errstate(over="ignore")
    def word_perplexity(self) -> float | None:
        """Per word of the data set but the first, whatever the tokenizer (Radford et al. 2019, section 3.1)."""
        return None if self.words is None else float(np.exp(self.loss * self.tokens / (self.words - 1)))

    def as_dict(self) -> dict:
        values = dataclasses.asdict(self)
        words = values.pop("words")
        return values if words is None else values | {"words": words, "word_perplexity": self.word_perplexity}

    def __str__(self) -> str:
        low, high = self.perplexity_interval
        per_word = (
            "" if self.words is None else f"  perplexity/word {_shown(self.word_perplexity)} ({self.words:,} words)"
        )
        return (
            f"loss {self.loss:.4f} +- {self.standard_error:.4f}  bits/byte {self.bits_per_byte:.4f} +-"
            f" {self.bits_per_byte_error:.4f}  perplexity {_shown(self.perplexity)} [{_shown(low)}, {_shown(high)}]"
            f"  ({self.tokens:,} tokens, {self.bytes:,} bytes){per_word}"
        )


def _shown(perplexity: float) -> str:
    """Two decimals; of a model that says next to nothing right, a power of ten."""
    return f"{perplexity:.2f}" if perplexity < 1e6 else f"{perplexity:.3g}"


class Sums(typing.NamedTuple):
    """What an evaluation is made of: of each row the loss (nats), the tokens, and the bytes they spell."""

    loss_R: np.ndarray
    weight_R: np.ndarray
    bytes_R: np.ndarray

    def clustered(self, rows: int) -> "Sums":
        """Of each `rows` neighbours together."""
        if rows == 1:
            return self
        first_C = np.arange(0, self.loss_R.shape[-1], rows)
        return Sums(*(np.add.reduceat(np.asarray(a, np.float64), first_C, axis=-1) for a in self))


@np.errstate(over="ignore")
def summarise(sums: Sums) -> Evaluation:
    """The standard errors are those of a ratio of means over rows (Cochran 1977, section 2.11): tokens of a row are
    correlated, rows are taken as independent. End-of-text tokens count as tokens and spell no bytes.
    """
    loss_R, weight_R, bytes_R = (np.float64(a) for a in sums)
    kept = weight_R > 0
    loss_R, weight_R, bytes_R = loss_R[kept], weight_R[kept], bytes_R[kept]
    loss, spread = ratio_of_means(loss_R, weight_R)
    nats_per_byte, byte_spread = ratio_of_means(loss_R, bytes_R)
    return Evaluation(
        loss=loss,
        standard_error=spread,
        bits_per_byte=nats_per_byte / math.log(2),
        bits_per_byte_error=byte_spread / math.log(2),
        perplexity=float(np.exp(loss)),
        tokens=int(weight_R.sum()),
        bytes=int(bytes_R.sum()),
    )


def ratio_of_means(value_R: np.ndarray, size_R: np.ndarray) -> tuple[float, float]:
    """The sum of value_R over that of size_R, and its standard error over R independent rows. NaN where undefined."""
    size, rows = size_R.sum(), len(size_R)
    if not size:
        return math.nan, math.nan
    ratio = value_R.sum() / size
    residual_R = value_R - ratio * size_R
    spread = math.sqrt(np.square(residual_R).sum() * rows / (rows - 1)) / size if rows > 1 else math.nan
    return float(ratio), float(spread)


def pool(sums: typing.Iterable[Sums]) -> Sums:
    """Of several sources as one text."""
    return Sums(*(np.concatenate(parts) for parts in zip(*sums)))


def _silent(name: str, num_rows: int, rows_done: int, nats: float, tokens: float) -> None: ...


def evaluate_sources(
    program, params, rows: dict, batch_size: int, should_stop=lambda: False, report=_silent
) -> dict | None:
    """{source: Evaluation} of {source: EvalRows}, and of several also "all": their text taken as one. None: as `evaluate`."""
    sums = sums_of_sources(program, params, rows, batch_size, should_stop, report)
    return None if sums is None else summarise_sources(sums)


def sums_of_sources(
    program, params, rows: dict, batch_size: int, should_stop=lambda: False, report=_silent
) -> dict[str, Sums] | None:
    """{source: Sums}. None: as `evaluate` says.

    Rows that overlap are taken together where they predict as much as a window, so that the errors are those of windows.
    """
    sums = {}
    for name, source in rows.items():
        tell = functools.partial(report, name, source.num_rows)
        found = evaluate(program, params, source, batch_size, should_stop, tell)
        if found is None:
            return None
        sums[name] = found.clustered(source.rows_per_window)
    return sums


def summarise_sources(sums: dict[str, Sums]) -> dict[str, Evaluation]:
    """Of each source, and of several also "all"."""
    pooled = {"all": pool(sums.values())} if len(sums) > 1 else {}
    return {name: summarise(values) for name, values in (pooled | sums).items()}


def logged(prefix: str, results: dict[str, Evaluation]) -> dict[str, float]:
    """An evaluation in metrics.jsonl: of all held-out text, and of each source if there are several as loss/NAME."""
    return {
        f"{prefix}{name}" + f"/{source}" * (i > 0): value
        for i, (source, result) in enumerate(results.items())
        for name, value in result.as_dict().items()
    }


def logged_names(prefix: str, sources: list[str]) -> list[str]:
    """The names in `logged` of an evaluation of these sources, but those of a protocol that counts words."""
    texts = ["", *([f"/{source}" for source in sources] if len(sources) > 1 else [])]
    fields = [field.name for field in dataclasses.fields(Evaluation) if field.name != "words"]
    return [f"{prefix}{name}{text}" for text in texts for name in fields]


def evaluate(
    program, params, rows, batch_size: int, should_stop=lambda: False, report=lambda rows_done, nats, tokens: None
) -> Sums | None:
    """Of params on EvalRows, batch_size rows at a time. None if should_stop() said so between two batches.

    report(rows done, nats, tokens) of the batches read so far.
    """
    results, nats, tokens = [], 0.0, 0.0
    for first in range(0, rows.num_rows, batch_size):
        if should_stop():
            return None
        batch = placement.device_batch(
            functools.partial(_padded_rows, rows, first), batch_size, program.eval_batch_sharding
        )
        bytes_B = sharding.everywhere(program.mesh)(batch.pop("bytes_B"))
        results.append((*program.evaluate(params, batch), bytes_B))
        results[-2:-1] = jax.device_get(results[-2:-1])  # one batch late, so that few wait on the device
        if len(results) > 1:
            nats, tokens = nats + results[-2][0].sum(dtype=np.float64), tokens + results[-2][1].sum(dtype=np.float64)
            report(first, nats, tokens)
    return Sums(*(np.concatenate(parts, axis=-1) for parts in zip(*jax.device_get(results))))


def _padded_rows(rows, first: int, start: int, stop: int) -> dict:
    return rows.rows(first + start, first + stop)
