"""The scores that a model gives to answers: of a reward model its head's, of any other how likely it says them.

Axes: B prompts, K answers, L length.
"""

import functools

import numpy as np

from gptjax.config import task_heads
from gptjax.config.fields import MeshConfig
from gptjax.data.chat import Conversation, Message, parse_messages
from gptjax.data.examples.rows import row_length
from gptjax.data.pairs.encoding import last_target
from gptjax.errors import UserError
from gptjax.evaluation import run_loss
from gptjax.evaluation.labelled import head_of
from gptjax.hosts import compiling
from gptjax.models import labelled, placed
from gptjax.models import scores as model_scores
from gptjax.parallel import numerics, placement, sharding


@functools.partial(compiling.jit, static_argnums=0)
def of_head(graph, params, batch):
    """float32 [B, K] of a batch of data/pairs/rows.py."""
    return model_scores.of_batch(params, batch, graph=graph, mesh_config=MeshConfig(), head=head_of(graph, params))


@functools.partial(compiling.jit, static_argnums=0)
def rewards(graph, params, token_BL, length_B):
    """float32 [B]: the score of each sequence by the reward model (graph, params), compiled once for each shape."""
    head = head_of(graph, params)
    return model_scores.of_rows(params, token_BL, length_B, graph=graph, mesh_config=MeshConfig(), head=head)


@functools.partial(compiling.jit, static_argnums=0)
def of_likelihood(graph, params, batch):
    """float32 [B, K]: the log-probability of each answer, less that of a reference where the batch has reference_BK."""
    B, K, T = batch["token_BKT"].shape
    rows = {"token_BT": batch["token_BKT"].reshape(B * K, T), "weight_BL": batch["weight_BKL"].reshape(B * K, T - 1)}
    loss_BL = placed.weighted_loss(params, rows, graph=graph, mesh_config=MeshConfig(), vocab_chunks=1)
    logprob_BK = -loss_BL.sum(-1).reshape(B, K)
    return logprob_BK - batch["reference_BK"] if "reference_BK" in batch else logprob_BK


# ---- conversations


def score(run, conversations, batch_size: int) -> np.ndarray:
    """float32: what the reward model of a Run gives to each conversation, a list of messages that ends with an answer; so many
    go through the model at once, a multiple of the devices.

    Raises UserError: a run without such a head, what is no conversation, one that is longer than the context."""
    if not task_heads.scores_answers(run.config.model):
        raise UserError("run.score: this model gives no scores; use a run with model.task_head='score'.")
    form, length = run.chat_format(), run.config.model.context_length
    sequences = [
        _sequence(form, run.tokenizer, one, f"conversation {i}", length) for i, one in enumerate(conversations)
    ]
    return score_tokens(run, sequences, batch_size)


def score_tokens(run, sequences: list[np.ndarray], batch_size: int | None = None) -> np.ndarray:
    """float32: what the reward model of a Run gives to sequences of tokens at the last of each. batch_size: None: as many as
    the run was evaluated with. Raises UserError: one is longer than the context."""
    length = run.config.model.context_length
    if not sequences:
        return np.zeros(0, np.float32)
    if max(map(len, sequences)) > length:
        raise UserError(
            f"a conversation of {max(map(len, sequences)):,} tokens is longer than the reward model's context of {length:,};"
            " use shorter ones."
        )
    batch_size = run_loss.batch_rows(run, None) if batch_size is None else batch_size
    longest, unit = max(map(len, sequences)), labelled.length_unit(run.model.kernel, run.mesh)
    rows, parts = _Rows(sequences, row_length(longest, length, unit)), []
    with numerics.on_mesh(run.mesh):
        for first in range(0, len(sequences), batch_size):
            batch = placement.device_batch(
                lambda start, stop, first=first: rows(first + start, first + stop),
                batch_size,
                run.program.eval_batch_sharding,
            )
            parts.append(sharding.on_host(rewards(run.graph, run.params, batch["token_BL"], batch["length_B"])))
    return np.concatenate(parts)[: len(sequences)]


def _sequence(form, tokenizer, conversation, where: str, context_length: int) -> np.ndarray:
    values = [conversation] if isinstance(conversation, dict | Message) else conversation
    messages = parse_messages(values, where)
    if messages[-1].role != "assistant":
        raise UserError(f"{where} ends with a message of the {messages[-1].role}; expected one of the assistant.")
    spoken = tuple(message._replace(weight=None) for message in messages)
    token_T, weight_T = form.render(Conversation(spoken, where), tokenizer)
    token_T = token_T[: last_target(weight_T > 0, where) + 1]
    if len(token_T) > context_length:
        raise UserError(
            f"{where} has {len(token_T):,} tokens, more than the context of {context_length:,}; shorten it."
        )
    return token_T


class _Rows:
    """Sequences in rows of one length; beyond the last one they are empty."""

    def __init__(self, sequences: list[np.ndarray], length: int):
        self._sequences, self._length = sequences, length

    def __call__(self, first: int, stop: int) -> dict[str, np.ndarray]:
        token_BL, length_B = np.zeros((stop - first, self._length), np.int32), np.zeros(stop - first, np.int32)
        for b, ids in enumerate(self._sequences[first:stop]):
            token_BL[b, : len(ids)], length_B[b] = ids, len(ids)
        return {"token_BL": token_BL, "length_B": length_B}
