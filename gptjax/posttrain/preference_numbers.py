"""What losses of pairs log beside themselves, so that a run is judged by more than its margin.

    reward_accuracy         share of the pairs whose chosen answer has the higher implicit reward; a tie is one half
    reward_margin           implicit reward of the chosen answer less that of the rejected
    reward_chosen, reward_rejected
    logprob_chosen, logprob_rejected                nats of an answer: where both fall, the model unlearns what it prefers
    token_logprob_chosen, token_logprob_rejected    nats per token
    length_correlation      of the margin with how many tokens longer the chosen answer is: where it is near 1, length is
                            what is learnt

Implicit rewards are those of the loss, such as beta times the log-ratio to the reference (Rafailov et al. 2023, section 5).
"""

import typing

import jax
import jax.numpy as jnp

from gptjax.training.losses import Mean


class Correlation(typing.NamedTuple):
    """Pearson's correlation of two numbers, from weighted sums of them and their products. NaN where one does not vary."""

    weight: jax.Array
    x: jax.Array
    y: jax.Array
    xx: jax.Array
    yy: jax.Array
    xy: jax.Array

    @classmethod
    def of(cls, x, y, weight) -> "Correlation":
        """Of arrays of one shape."""
        return cls(*(jnp.sum(weight * product) for product in (1.0, x, y, x * x, y * y, x * y)))

    def merged(self) -> "Correlation":
        """Of the whole, from parts along the first axis."""
        return Correlation(*(part.sum(axis=0) for part in self))

    @property
    def value(self) -> jax.Array:
        covariance = self.weight * self.xy - self.x * self.y
        variances = (self.weight * self.xx - self.x**2) * (self.weight * self.yy - self.y**2)
        return covariance / jnp.sqrt(variances)


def of_pairs(pairs, reward_chosen_BP, reward_rejected_BP) -> dict:
    """The numbers above. pairs: a preference_losses.Pairs."""
    chosen, rejected, weight_BP = pairs
    margin_BP = reward_chosen_BP - reward_rejected_BP
    right_BP = jnp.where(margin_BP == 0, 0.5, margin_BP > 0)
    means = {
        "reward_accuracy": right_BP,
        "reward_margin": margin_BP,
        "reward_chosen": reward_chosen_BP,
        "reward_rejected": reward_rejected_BP,
        "logprob_chosen": chosen.logprob,
        "logprob_rejected": rejected.logprob,
    }
    return {
        **{name: _mean(array_BP, weight_BP) for name, array_BP in means.items()},
        "token_logprob_chosen": _mean(chosen.logprob, weight_BP, chosen.length),
        "token_logprob_rejected": _mean(rejected.logprob, weight_BP, rejected.length),
        "length_correlation": Correlation.of(margin_BP, chosen.length - rejected.length, weight_BP),
    }


def _mean(array, weight, length=1.0) -> Mean:
    """Mean of an array that stands for `length` things in each entry."""
    return Mean(jnp.sum(array * weight), jnp.sum(length * weight))
