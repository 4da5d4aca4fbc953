"""What a critic says of each token (models/critic.py): for a rollout's advantages, and in the loss of its policy.

Axes: B rows, L tokens, T = L + 1. The value at a token is of what follows it, as its log-probabilities are of the next.
"""

from flax import nnx

from gptjax.errors import UserError
from gptjax.models import placed
from gptjax.parallel import sharding
from gptjax.posttrain import sampled


def values(params, batch: dict, *, graph, config):
    """float32 [B, L]: how much reward is still to come at each of the first L tokens. batch: token_BT. Raises UserError:
    there is no critic."""
    model = nnx.merge(graph, params)
    if config.model.critic is None:
        raise UserError("model.critic=None: this model says no values; use 'shared' or 'separate'.")
    reader = model if model.critic.model is None else model.critic.model
    value_BL, _ = reader.token_loss(
        **_inputs(batch), head=model.critic.head, schedule=sharding.pipeline_schedule(config.mesh)
    )
    return value_BL


def policy_and_critic(params, batch: dict, *, graph, config, sampling, with_critic: bool):
    """(log-probabilities, entropies, values) [B, L] float32 of one pass through the policy; values None without a critic."""
    if with_critic and nnx.merge(graph, params).critic.model is None:
        return _of_one_model(params, batch, graph, config, sampling)
    policy = sampled.token_logprobs(params, batch, graph=graph, config=config, sampling=sampling)
    return *policy, values(params, batch, graph=graph, config=config) if with_critic else None


def _of_one_model(params, batch: dict, graph, config, sampling):
    """The three where the critic reads the policy's activations."""
    critic = nnx.merge(graph, params).critic

    def head(x_BLD, *rest, **options):
        return *sampled.head(sampling)(x_BLD, *rest, **options), critic.value(x_BLD)

    rows = {name: batch[name] for name in sampled.INPUTS if name in batch}
    options = {"graph": graph, "mesh_config": config.mesh, "chunks": config.train.vocab_chunks, "head": head}
    return placed.token_loss(params, rows, **options)[:3]


def _inputs(batch: dict) -> dict:
    """What a model takes of a batch, with its tokens."""
    rows = {name: batch[name] for name in sampled.INPUTS if name in batch}
    return {"token_BT": batch["token_BT"], **placed.model_inputs(rows)}
