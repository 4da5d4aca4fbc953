"""How likely a model finds texts that follow others: log-probabilities of continuations given their contexts.

Requests of any lengths go through few compiled programs: sorted by length, the longest first, cut into batches whose
rows are padded to a bucket (the context length, or a power of two times the shortest that the mesh can split), all of
about the same number of tokens. What stands behind a token changes nothing, so that a padded row scores as it does
alone. Equal requests are computed once. Axes: B rows, T = L + 1 tokens.
"""

import dataclasses
import functools
import math
import typing

import jax
import numpy as np
from flax import nnx

from gptjax.config.fields import MeshConfig
from gptjax.errors import UserError
from gptjax.hosts import compiling
from gptjax.models import attention, loss
from gptjax.parallel import numerics, placement, sharding

SHORTEST = 16  # tokens in the smallest bucket


class Request(typing.NamedTuple):
    """Token ids. Of the two together the last context_length + 1 count; the context has at least one."""

    context: typing.Sequence[int]
    continuation: typing.Sequence[int]


@dataclasses.dataclass(frozen=True)
class Score:
    """Of the tokens of a continuation."""

    log_probability_L: np.ndarray  # nats, float32
    likeliest_L: np.ndarray  # boolean: whether greedy decoding would have chosen it

    @property
    def log_likelihood(self) -> float:
        """Nats, summed in float64: a long text would lose digits in float32."""
        return float(self.log_probability_L.sum(dtype=np.float64))

    @property
    def greedy(self) -> bool:
        return bool(self.likeliest_L.all())


def score(
    graph,
    params,
    mesh,
    requests: typing.Sequence[Request],
    *,
    batch_size: int = 8,
    vocab_chunks: int = 1,
    should_stop=lambda: False,
    report=lambda done, total: None,
) -> list[Score] | None:
    """The Score of each request, in their order. None if should_stop() said so between two batches.

    batch_size: rows of the full context length that go through the model at once; of shorter ones as many tokens.
    vocab_chunks: see `loss.cross_entropy`. report: is told how many requests are done. On a mesh of several processes all call this with the same requests.

    Raises UserError: no context or continuation, or a continuation longer than the context length.
    """
    model = nnx.merge(graph, params)
    _check(requests, model.config.context_length)
    rows = [_row(request, model.config.context_length) for request in requests]
    ordered = sorted(set(rows), key=lambda row: (-len(row[0]), row))
    total = len(ordered)
    program = _program(graph, mesh, vocab_chunks)
    found, waiting = {}, []
    with numerics.on_mesh(mesh):
        shapes = Shapes.of(model, mesh, batch_size)
        while ordered:
            report(total - len(ordered), total)
            if should_stop():
                return None
            length, count = shapes.batch(len(ordered[0][0]) - 1, len(ordered))
            batch, ordered = ordered[:count], ordered[count:]
            waiting.append((batch, program(params, _on_mesh(batch, length, count, mesh))))
            if len(waiting) > 1:  # one batch late, so that the device has work while the host reads
                found |= _scores(*waiting.pop(0))
    for pair in waiting:
        found |= _scores(*pair)
    return [found[row] for row in rows]


def _check(requests, context_length: int) -> None:
    for context, continuation in requests:
        if len(context) == 0 or len(continuation) == 0:
            raise UserError(
                f"a request has {len(context)} tokens of context and {len(continuation)} to score; each needs at least 1."
            )
        if len(continuation) > context_length:
            raise UserError(
                f"{len(continuation)} tokens to score are more than model.context_length={context_length}; cut them into windows."
            )


def _row(request: Request, context_length: int) -> tuple[tuple[int, ...], int]:
    """(tokens, how many of the last are scored): cut from the left to what the model reads."""
    tokens = (*map(int, request.context), *map(int, request.continuation))
    return tokens[-(context_length + 1) :], len(request.continuation)


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Of the batches: a length is `shortest` times a power of two, or the longest; rows are a multiple of `unit`."""

    shortest: int
    longest: int
    unit: int
    tokens: int  # in a full batch, at most, if it has more rows than `unit`

    @classmethod
    def of(cls, model, mesh, batch_size: int) -> "Shapes":
        parts = mesh.shape["sequence"]
        chunks = 2 * parts if parts > 1 else 1
        shortest = math.lcm(chunks * attention.token_unit(model.kernel), SHORTEST)
        longest = model.config.context_length
        unit = mesh.shape["replica"] * mesh.shape["fsdp"] * MeshConfig().pipeline_parts(mesh.shape["stage"])
        return cls(min(shortest, longest), longest, unit, batch_size * longest)

    def batch(self, length: int, left: int) -> tuple[int, int]:
        """(length, rows) of a batch whose longest row has so many inputs, when so many rows are left to do."""
        bucket = self.shortest
        while bucket < length:
            bucket = min(2 * bucket, self.longest)
        most = max(1, self.tokens // (bucket * self.unit))
        needed = -(-left // self.unit)
        return bucket, self.unit * min(most, 1 << (needed - 1).bit_length())


@functools.lru_cache(maxsize=8)
def _program(graph, mesh, vocab_chunks: int):
    """(params, token_BT) -> log-probabilities [B, L] and whether each is the likeliest, both on every device."""

    def scores(params, token_BT):
        schedule = sharding.pipeline_schedule(MeshConfig())  # any gives the same numbers
        model = nnx.merge(graph, params)
        return model.token_loss(token_BT, chunks=vocab_chunks, schedule=schedule, head=loss.scores)[:2]

    return compiling.jit(scores, out_shardings=sharding.replicated(mesh))


def _on_mesh(batch, length: int, count: int, mesh):
    """Tokens [count, length + 1], zeros behind each row's own; rows that are missing are zeros too."""
    token_BT = np.zeros((count, length + 1), np.int32)
    for i, (tokens, _) in enumerate(batch):
        token_BT[i, : len(tokens)] = tokens
    read = lambda start, stop: {"token_BT": token_BT[start:stop]}  # noqa: E731
    return placement.device_batch(read, count, sharding.batch_sharding(mesh))["token_BT"]


def _scores(batch, on_device) -> dict:
    log_probability_BL, likeliest_BL = jax.device_get(on_device)
    scores = {}
    for i, (tokens, scored) in enumerate(batch):
        part = slice(len(tokens) - 1 - scored, len(tokens) - 1)
        scores[tokens, scored] = Score(log_probability_BL[i, part].copy(), likeliest_BL[i, part].copy())
    return scores
