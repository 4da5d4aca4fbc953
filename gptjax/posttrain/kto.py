"""KTO: a loss of answers judged one by one, good or bad (Ethayarajh et al. 2024).

With h(y) the log-ratio of an answer to the reference and s the logistic function, of an example of

    a good answer    good_weight (1 - s(beta (h(y) - z)))
    a bad one        bad_weight  (1 - s(beta (z - h(y))))            z = max(0, mean of h(y') over the batch)

where y' is the answer to another prompt, whose gradient is not taken: z estimates the divergence from the reference (section
4.1). A batch has K = 2 sequences of each example: the answer, and y' behind the same prompt (mismatched.py makes it).
The mean of z is over a microbatch, on all devices together; that of other implementations is too.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from gptjax.errors import UserError
from gptjax.posttrain import answers
from gptjax.training.losses import Mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kto:
    """1 - s(beta (h(y) - z)) of a good answer, 1 - s(beta (z - h(y))) of a bad one (Ethayarajh et al. 2024, eq. 7).

    good_weight, bad_weight: of the two kinds of examples; the paper sets them so that good_weight times the number of
    good ones is 1 to 4/3 of bad_weight times that of bad ones (eq. 8).
    """

    beta: float = 0.1
    good_weight: float = 1.0
    bad_weight: float = 1.0
    has_reference: typing.ClassVar[bool] = True
    preferences: typing.ClassVar[str] = "judged"

    def __post_init__(self):
        for name in ("beta", "good_weight", "bad_weight"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name}={getattr(self, name)} must be positive.")

    def __call__(self, params, batch: dict, key, *, graph, config):
        """As training/losses.py has it; the weight is in examples."""
        functions = {"graph": graph, "config": config}
        matched, mismatched = (
            {name: array[:, k : k + 1] if "_BK" in name else array for name, array in batch.items()} for k in (0, 1)
        )
        of_answer = answers.of_batch(params, matched, key, with_reference=True, **functions)
        of_other = answers.of_batch(jax.lax.stop_gradient(params), mismatched, key, with_reference=True, **functions)
        weight_B, is_good_B = batch["weight_B"], batch["label_B"] > 0
        other_B = jax.lax.stop_gradient(of_other.ratio)[:, 0]
        divergence = jnp.maximum(jnp.sum(other_B * weight_B) / jnp.maximum(weight_B.sum(), 1), 0)
        ratio_B = of_answer.ratio[:, 0]
        sign_B = jnp.where(is_good_B, 1.0, -1.0)
        loss_B = 1 - jax.nn.sigmoid(self.beta * sign_B * (ratio_B - divergence))
        loss_sum = jnp.sum(loss_B * jnp.where(is_good_B, self.good_weight, self.bad_weight) * weight_B)
        numbers = self.numbers(of_answer, ratio_B, sign_B, weight_B)
        numbers["reference_divergence"] = Mean(divergence * weight_B.sum(), weight_B.sum())
        return loss_sum, ((loss_sum, weight_B.sum()), numbers)

    def reward(self, side: answers.AnswerLogprobs):
        """float32: the implicit reward of answers."""
        return self.beta * side.ratio

    def numbers(self, of_answer, ratio_B, sign_B, weight_B) -> dict:
        """Log-probabilities, nats of an answer and per token, and implicit rewards of good and bad answers apart."""
        ratio_B = jax.lax.stop_gradient(ratio_B)
        logprob_B, length_B = of_answer.logprob[:, 0], of_answer.length[:, 0]
        right_B = jnp.where(ratio_B == 0, 0.5, ratio_B * sign_B > 0)
        numbers = {"reward_accuracy": Mean(jnp.sum(right_B * weight_B), weight_B.sum())}
        for name, sign in (("good", 1.0), ("bad", -1.0)):
            of_kind_B = weight_B * (sign_B == sign)
            count, tokens = of_kind_B.sum(), jnp.sum(length_B * of_kind_B)
            numbers[f"reward_{name}"] = Mean(jnp.sum(self.beta * ratio_B * of_kind_B), count)
            numbers[f"logprob_{name}"] = Mean(jnp.sum(logprob_B * of_kind_B), count)
            numbers[f"token_logprob_{name}"] = Mean(jnp.sum(logprob_B * of_kind_B), tokens)
        return numbers
