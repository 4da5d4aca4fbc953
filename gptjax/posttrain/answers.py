"""Log-probabilities of the answers of a preference batch, under the model that is trained and under its reference.

A batch holds, of B examples with K sequences each, every one a prompt and an answer:

    token_BKT    ids, padded behind their end         length_BK    tokens of each sequence; 0: there is no such one
    weight_BKL   1 where the token at t + 1 is the answer's, its end token included
    score_BK     higher is better; equal: a tie       weight_B     1 of an example, 0 of padding
    reference_BK log-probability of each answer under the reference, where it was computed before (reference.py)

Axes: B examples, K sequences of one, T = L + 1 tokens, L targets.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from gptjax.config import catalogue
from gptjax.models import architectures, int8, placed


class AnswerLogprobs(typing.NamedTuple):
    """Log-probabilities of answers, float32 arrays of one shape, such as [B, K]."""

    logprob: jax.Array  # nats, summed over tokens
    reference: jax.Array  # the same under the reference; 0 for a loss without one
    length: jax.Array  # tokens, the end token included

    @property
    def ratio(self):
        """Nats: how much likelier than under the reference."""
        return self.logprob - self.reference

    def mean(self, total):
        """Per token of each answer."""
        return total / jnp.maximum(self.length, 1)


def of_batch(params, batch: dict, key, *, graph, config, with_reference: bool) -> AnswerLogprobs:
    """The AnswerLogprobs of a batch. All its sequences go through the model at once.

    key: of dropout. The reference's are those of the batch; of a batch without, those of the model with its adapter off.
    """
    functions = {"graph": graph, "config": config}
    logprob_BK = logprobs(params, batch, key=key if config.model.max_dropout else None, **functions)
    if not with_reference:
        reference_BK = jnp.zeros_like(logprob_BK)
    elif "reference_BK" in batch:
        reference_BK = batch["reference_BK"]
    else:
        reference_BK = without_adapter(params, batch, **functions)
    return AnswerLogprobs(logprob_BK, jax.lax.stop_gradient(reference_BK), batch["weight_BKL"].sum(-1))


def logprobs(params, batch: dict, *, graph, config, key=None):
    """float32 [B, K]: the log-probability of each answer given its prompt, nats, summed over its tokens."""
    token_BKT, weight_BKL = batch["token_BKT"], batch["weight_BKL"]
    rows = {"token_BT": token_BKT.reshape(-1, token_BKT.shape[-1])}
    options = {"mesh_config": config.mesh, "chunks": config.train.vocab_chunks, "key": key}
    loss_BL, _, _ = placed.token_loss(params, rows, graph=graph, **options)
    return -jnp.sum(loss_BL.reshape(weight_BKL.shape) * weight_BKL, -1)


def without_adapter(params, batch: dict, *, graph, config):
    """`logprobs` of the model below its adapter (model.adapter). No gradient, no dropout."""
    graph, base = base_model(params, graph, config)
    return logprobs(jax.lax.stop_gradient(base), batch, graph=graph, config=config)


def base_model(params, graph, config) -> tuple:
    """(graph, parameters) of the model below the adapter of a Config. Nothing is copied."""
    assert config.model.adapter is not None, "only a model with an adapter has another below it"
    model = nnx.merge(graph, params)
    plain = dataclasses.replace(model.config, adapter=None)
    base_graph, abstract_params, _ = architectures.abstract(plain, model.kernel)
    if catalogue.adapter(config.model.adapter).in_bytes:
        base_graph, _, _ = int8.parts(plain, base_graph, abstract_params)
    leaves = flatten_dict(params)
    return base_graph, unflatten_dict({path: leaf for path, leaf in leaves.items() if "adapter" not in path})
