"""What training minimises: losses by name (train.loss), each one function of parameters and a batch.

    loss(params, batch, key, *, graph, config) -> (objective, ((loss, weight), numbers))

params      the model's, in the dtype of the matmuls; nnx.merge(graph, params) is the model
batch       arrays [B, ...] of the rows at hand, whatever the data makes of them; B is a microbatch's
key         of this microbatch's random numbers; graph, config: the model's graph and the run's Config
objective   float32 scalar, summed over the rows: its gradient is taken
loss        float32 scalar, summed over the rows: what is logged as `loss`, without regularisation
weight      float32 scalar: how many tokens (or pairs, or rows) that sum is of
numbers     {name: Largest | RootMeanSquare | Mean}: logged beside the loss, each saying how parts of a batch make one

Everything is a sum over rows. The step adds up microbatches, XLA the devices, and gradient and loss are divided once, by
the sum of the weights: so they don't depend on how a batch was split. A mean taken inside a loss would.

To add a loss, write such a function in any module and name it in LOSSES, as "module:function"; the module is imported when
the loss is chosen. A loss with parameters, train.loss="dpo(beta=0.1)", is a frozen dataclass whose instances are such
functions; it may have check(config), which raises UserError. Held-out text is judged by the loss of its tokens whatever is
minimised (models/placed).
"""

import functools
import typing

import jax
import jax.numpy as jnp

from gptjax.config import catalogue
from gptjax.errors import UserError, choose, imported, make_chosen, written_call
from gptjax.models import loss, placed

PAIR_LOSSES = {
    **{"dpo": "Dpo", "robust": "Robust", "hinge": "Hinge", "ipo": "Ipo", "sigmoid_norm": "SigmoidNorm"},
    **{"exo_pair": "Exo", "nca": "Nca", "bco": "Bco", "sppo_hard": "Sppo", "aot": "Aot", "apo_zero": "ApoZero"},
    **{"apo_down": "ApoDown", "discopop": "DiscoPop", "simpo": "SimPo", "cpo": "Cpo", "orpo": "Orpo"},
}
LOSSES = {"next_token": "gptjax.training.losses:next_token"}
POLICY_LOSSES = {"ppo": "PPO", "grpo": "GRPO", "dapo": "DAPO", "gspo": "GSPO", "rloo": "RLOO", "reinforce": "Reinforce"}
LOSSES |= {name: f"gptjax.posttrain.policy_losses:{kind}" for name, kind in POLICY_LOSSES.items()}
LOSSES |= {name: f"gptjax.training.task_losses:{name}" for name in ("classify", "choice", "tag", "span", "regress")}
LOSSES |= {name: f"gptjax.posttrain.preference_losses:{kind}" for name, kind in PAIR_LOSSES.items()}
LOSSES |= {"reward": "gptjax.posttrain.reward:Reward", "kto": "gptjax.posttrain.kto:Kto"}


class Largest(typing.NamedTuple):
    """A number of which a batch has the largest of its parts'."""

    value: jax.Array

    def merged(self) -> "Largest":
        """Of the whole, from parts along the first axis."""
        return Largest(self.value.max(axis=0))


class RootMeanSquare(typing.NamedTuple):
    """A root mean square over entries of which each part of a batch has equally many."""

    value: jax.Array

    def merged(self) -> "RootMeanSquare":
        """Of the whole, from parts along the first axis."""
        return RootMeanSquare(jnp.sqrt(jnp.mean(jnp.square(self.value), axis=0)))


class Mean(typing.NamedTuple):
    """A mean: a sum over rows, divided once by a weight that is summed too. NaN where nothing counts."""

    sum: jax.Array
    weight: jax.Array

    def merged(self) -> "Mean":
        """Of the whole, from parts along the first axis."""
        return Mean(self.sum.sum(axis=0), self.weight.sum(axis=0))

    @property
    def value(self) -> jax.Array:
        return self.sum / self.weight


OF_LAYERS = {"activation_rms": RootMeanSquare, "max_attention_logit": Largest}  # numbers that models give, [N]


def of(config) -> typing.Callable:
    """The loss function of a Config. Raises UserError for an unknown name, for parameters that it does not take, and for an
    entry that leads nowhere."""
    function = chosen(config.train.loss)
    if hasattr(function, "check"):
        function.check(config)
    return function if config.model.adapter is None else with_penalty(function, catalogue.adapter(config.model.adapter))


def chosen(text: str) -> typing.Callable:
    """The loss that train.loss names, without what an adapter adds to it."""
    name, arguments = written_call(text, LOSSES, "train.loss")
    function = imported(choose(LOSSES, name, "train.loss"), f"train.loss={text!r}")
    if isinstance(function, type):
        return make_chosen(text, LOSSES, "train.loss")
    if arguments:
        raise UserError(f"train.loss={text!r}: {name} has no parameters; write train.loss={name!r}.")
    return function


def with_penalty(loss_of, adapter):
    """A loss with the penalty that an adapter has, if it has one, for each token (or pair, or row) of the mean."""
    if not adapter.penalty_weight:
        return loss_of

    def penalised(params, batch: dict, key, *, graph, config):
        objective, (sums, numbers) = loss_of(params, batch, key, graph=graph, config=config)
        penalty = sums[1] * adapter.penalty(params)
        return objective + adapter.penalty_weight * penalty, (
            sums,
            numbers | {"penalty": Mean(penalty, sums[1])},
        )

    return penalised


def next_token(params, batch: dict, key, *, graph, config, is_text: bool = False):
    """Cross-entropy of the next token, or of what the objective has predicted instead, train.z_loss (Chowdhery et al.
    2022, section 5) and train.label_smoothing; weighed by weight_BL. is_text: all tokens are learnt, whatever data.chat says
    of others: no logits can be spared, and no branch is compiled for it."""
    train, weight_BL, options = config.train, batch["weight_BL"], {}
    if train.label_smoothing or train.neftune_alpha:
        from gptjax.training import regularisation

        options = regularisation.options(batch, key, config)
    sums = functools.partial(token_sums, train)
    answers_alone = config.data.chat is not None and not is_text
    if answers_alone:
        from gptjax.training import target_logits

        answers_alone = target_logits.apply_to(config)
        if answers_alone:
            options["head"] = target_logits.head(weight_BL, sums, options.get("head", loss.cross_entropy))
    *made, numbers = placed.token_loss(
        params,
        batch,
        graph=graph,
        mesh_config=config.mesh,
        chunks=train.vocab_chunks,
        key=key if config.model.max_dropout else None,
        log_activations=train.log_activations,
        **options,
    )
    objective, loss_sum = made if answers_alone else sums(weight_BL, *made)
    return objective, ((loss_sum, weight_BL.sum()), {name: OF_LAYERS[name](value) for name, value in numbers.items()})


def token_sums(train, weight, loss_of_token, log_normaliser, *above_mean):
    """(objective, loss sum) of tokens, with train.z_loss and label smoothing in the objective."""
    loss_sum = jnp.sum(loss_of_token * weight)
    objective = loss_sum
    if train.z_loss:
        objective = objective + train.z_loss * jnp.sum(jnp.square(log_normaliser) * weight)
    for array in above_mean:
        objective = objective + train.label_smoothing * jnp.sum(array * weight)
    return objective, loss_sum
