"""Losses of pairs of answers, one of which was preferred: DPO and its family, as train.loss="dpo(beta=0.1)".

In what follows c and r are the chosen and the rejected answer, log p(c) is the log-probability of one given its prompt,
h(c) its log-ratio to the reference, log p(c) - log p_ref(c), |c| its tokens, and s the logistic function. A loss is in nats
a pair.

`nll` adds that many times -log p(c)/|c|, which keeps the chosen answer likely (Pang et al. 2024, eq. 1). Of a ranking every
pair of two different scores is one, and an example counts once: the mean over its pairs. What is computed over a whole
batch, aot's order, is over that of a microbatch. Axes: B examples, K sequences of one, P pairs of one.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid, sigmoid

from gptjax.errors import UserError
from gptjax.posttrain import answers, preference_numbers
from gptjax.posttrain.answers import AnswerLogprobs

SURE = -1e-7  # mean log-probability above which odds are no number in float32


class Pairs(typing.NamedTuple):
    chosen: AnswerLogprobs  # float32 [B, P]
    rejected: AnswerLogprobs
    weight_BP: jax.Array  # sums to 1 over the pairs of an example, or to 0


def pairs_of(of_answers: AnswerLogprobs, batch: dict) -> Pairs:
    """Every two sequences of an example whose scores differ."""
    first_P, second_P = np.triu_indices(batch["token_BKT"].shape[1], 1)
    score_BK, there_BK = batch["score_BK"], batch["length_BK"] > 0
    better_BP = score_BK[:, first_P] >= score_BK[:, second_P]
    counts_BP = (score_BK[:, first_P] != score_BK[:, second_P]) & there_BK[:, first_P] & there_BK[:, second_P]
    weight_BP = counts_BP / jnp.maximum(counts_BP.sum(-1, keepdims=True), 1) * batch["weight_B"][:, None]
    sides = [(a_BK[:, first_P], a_BK[:, second_P]) for a_BK in of_answers]
    chosen = AnswerLogprobs(*(jnp.where(better_BP, first_BP, second_BP) for first_BP, second_BP in sides))
    return Pairs(chosen, AnswerLogprobs(*(jnp.where(better_BP, b, a) for a, b in sides)), weight_BP)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLoss:
    """beta: how strongly the reference holds, or a scale of the margin. nll: see above."""

    beta: float = 0.1
    nll: float = 0.0
    has_reference: typing.ClassVar[bool] = True
    preferences: typing.ClassVar[str] = "compared"

    def __post_init__(self):
        if self.beta <= 0:
            raise UserError(f"beta={self.beta} must be positive.")
        if self.nll < 0:
            raise UserError(f"nll={self.nll} must not be negative; use 0 for none.")

    def __call__(self, params, batch: dict, key, *, graph, config):
        """As training/losses.py has it; the weight is in examples."""
        functions = {"graph": graph, "config": config}
        made = answers.of_batch(params, batch, key, with_reference=self.has_reference, **functions)
        pairs = pairs_of(made, batch)
        loss_BP = self.of_pairs(pairs)
        if self.nll:
            loss_BP = loss_BP - self.nll * pairs.chosen.mean(pairs.chosen.logprob)
        loss_sum = jnp.sum(loss_BP * pairs.weight_BP)
        rewards = jax.lax.stop_gradient([self.reward(pairs.chosen), self.reward(pairs.rejected)])
        return loss_sum, ((loss_sum, pairs.weight_BP.sum()), preference_numbers.of_pairs(pairs, *rewards))

    def of_pairs(self, pairs: Pairs):
        """float32 [B, P]: the loss of each pair, without `nll`."""
        raise NotImplementedError

    def reward(self, side: AnswerLogprobs):
        """float32: the implicit reward of answers."""
        return self.beta * side.ratio

    def margin(self, pairs: Pairs):
        return self.reward(pairs.chosen) - self.reward(pairs.rejected)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Smoothed(PairLoss):
    """label_smoothing: the share of pairs that are taken to be the wrong way round."""

    label_smoothing: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"label_smoothing={self.label_smoothing} is not in [0, 0.5).")

    def of_margin(self, margin):
        """The loss of pairs with these margins."""
        smoothing = self.label_smoothing
        return -(1 - smoothing) * log_sigmoid(margin) - smoothing * log_sigmoid(-margin)


class Dpo(Smoothed):
    """-log s(beta (h(c) - h(r))) (Rafailov et al. 2023, eq. 7); with label_smoothing e, the pair the other way round counts e
    (cDPO, Mitchell 2023)."""

    def of_pairs(self, pairs):
        return self.of_margin(self.margin(pairs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Robust(Smoothed):
    """DPO's loss, unbiased where a share label_smoothing of the pairs is the wrong way round (Chowdhury et al. 2024)."""

    label_smoothing: float = 0.1

    def of_pairs(self, pairs):
        margin_BP, flipped = self.margin(pairs), self.label_smoothing
        sum_BP = -(1 - flipped) * log_sigmoid(margin_BP) + flipped * log_sigmoid(-margin_BP)
        return sum_BP / (1 - 2 * flipped)


class Hinge(PairLoss):
    """max(0, 1 - beta (h(c) - h(r))) (Zhao et al. 2023, SLiC; Liu et al. 2023, RSO)."""

    def of_pairs(self, pairs):
        return jax.nn.relu(1 - self.margin(pairs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ipo(PairLoss):
    """(h(c)/|c| - h(r)/|r| - 1/(2 beta))^2 (Azar et al. 2023, eq. 17).

    per_token: whether log-ratios are means over tokens, as the authors' own results have it; else sums, as printed.
    """

    per_token: bool = True

    def of_pairs(self, pairs):
        distance_BP = self.measured(pairs.chosen) - self.measured(pairs.rejected)
        return jnp.square(distance_BP - 1 / (2 * self.beta))

    def measured(self, side):
        return side.mean(side.ratio) if self.per_token else side.ratio

    def reward(self, side):
        return self.beta * self.measured(side)


class SigmoidNorm(Smoothed):
    """-log s(beta (h(c)/|c| - h(r)/|r|)): DPO by the token (Lambert et al. 2024, Tulu 3)."""

    def of_pairs(self, pairs):
        return self.of_margin(self.margin(pairs))

    def reward(self, side):
        return self.beta * side.mean(side.ratio)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exo(Smoothed):
    """The divergence KL(q || p) of q = s(beta (h(c) - h(r))) from p = 1 - label_smoothing (Ji et al. 2024, eq. 16)."""

    label_smoothing: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        if not self.label_smoothing:
            raise UserError("label_smoothing=0.0 makes the divergence infinite; use 0.001, as its authors do.")

    def of_pairs(self, pairs):
        margin_BP, wrong = self.margin(pairs), self.label_smoothing
        of_right_BP = sigmoid(margin_BP) * (log_sigmoid(margin_BP) - np.log1p(-wrong))
        return of_right_BP + sigmoid(-margin_BP) * (log_sigmoid(-margin_BP) - np.log(wrong))


class Nca(PairLoss):
    """-log s(beta h(c)) - (log s(-beta h(c)) + log s(-beta h(r))) / 2 (Chen et al. 2024)."""

    def of_pairs(self, pairs):
        chosen_BP, rejected_BP = self.reward(pairs.chosen), self.reward(pairs.rejected)
        return -log_sigmoid(chosen_BP) - 0.5 * log_sigmoid(-chosen_BP) - 0.5 * log_sigmoid(-rejected_BP)


class Bco(PairLoss):
    """-log s(beta h(c)) - log s(-beta h(r)) (Jung et al. 2024, without their shift of the reward)."""

    def of_pairs(self, pairs):
        return -log_sigmoid(self.reward(pairs.chosen)) - log_sigmoid(-self.reward(pairs.rejected))


class Sppo(PairLoss):
    """(h(c) - 1/(2 beta))^2 + (h(r) + 1/(2 beta))^2 (Wu et al. 2024, eq. 4.7, of wins that are certain)."""

    def of_pairs(self, pairs):
        aim = 0.5 / self.beta
        return jnp.square(pairs.chosen.ratio - aim) + jnp.square(pairs.rejected.ratio + aim)


class Aot(Smoothed):
    """-log s(beta d), d between log p(c) - log p(r), sorted over the batch, and the reference's, sorted (Melnyk et al. 2024)."""

    def of_pairs(self, pairs):
        """The mean over the pairs, for each: those that do not count are sorted behind the others."""
        counts = pairs.weight_BP.ravel() > 0
        chosen, rejected = pairs.chosen, pairs.rejected
        of_model, of_reference = (
            jnp.sort(jnp.where(counts, difference_BP.ravel(), jnp.finfo(jnp.float32).max))
            for difference_BP in (chosen.logprob - rejected.logprob, chosen.reference - rejected.reference)
        )
        is_counted = jnp.arange(len(counts)) < counts.sum()
        distance = jnp.where(is_counted, of_model - of_reference, 0.0)
        loss = self.of_margin(self.beta * distance)
        weight = pairs.weight_BP.ravel()
        # So that the sum is weighed alike.
        share = jnp.where(is_counted, weight.sum() / jnp.maximum(counts.sum(), 1), 0.0)
        loss = jnp.where(counts, jnp.sum(loss * share) / jnp.maximum(weight.sum(), 1e-30), 0.0)
        return loss.reshape(pairs.weight_BP.shape)


class ApoZero(PairLoss):
    """1 - s(beta h(c)) + s(beta h(r)): for chosen answers better than the model's own (D'Oosterlinck et al. 2024, eq. 7)."""

    def of_pairs(self, pairs):
        return 1 - sigmoid(self.reward(pairs.chosen)) + sigmoid(self.reward(pairs.rejected))


class ApoDown(PairLoss):
    """s(beta h(c)) + 1 - s(beta (h(c) - h(r))): for chosen answers worse than the model's own (the same, eq. 8)."""

    def of_pairs(self, pairs):
        return sigmoid(self.reward(pairs.chosen)) + 1 - sigmoid(self.margin(pairs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscoPop(PairLoss):
    """A blend of DPO's loss and exp(-beta (h(c) - h(r))) (Lu et al. 2024, eq. 5).

    tau: temperature of the blend.
    """

    tau: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        if self.tau <= 0:
            raise UserError(f"tau={self.tau} must be positive.")

    def of_pairs(self, pairs):
        margin_BP = self.margin(pairs)
        share_BP = sigmoid(margin_BP / self.tau)
        return -log_sigmoid(margin_BP) * (1 - share_BP) + jnp.exp(-margin_BP) * share_BP


# ---- without a reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimPo(Smoothed):
    """-log s(beta (log p(c)/|c| - log p(r)/|r|) - gamma); no reference (Meng et al. 2024, eq. 6).

    Its authors set beta to 2 and more, and gamma to about half of it.
    """

    beta: float = 2.0
    gamma: float = 1.0
    has_reference = False

    def of_pairs(self, pairs):
        return self.of_margin(self.margin(pairs) - self.gamma)

    def reward(self, side):
        return self.beta * side.mean(side.logprob)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cpo(Smoothed):
    """-log s(beta (log p(c) - log p(r))) beside nll's; no reference (Xu et al. 2024)."""

    nll: float = 1.0
    has_reference = False

    def of_pairs(self, pairs):
        return self.of_margin(self.margin(pairs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Orpo(PairLoss):
    """-log p(c)/|c| - beta log s(log odds of c less those of r); no reference (Hong et al. 2024, eq. 6)."""

    nll: float = 1.0
    has_reference = False

    def of_pairs(self, pairs):
        return -self.beta * log_sigmoid(log_odds(pairs.chosen) - log_odds(pairs.rejected))

    def reward(self, side):
        return self.beta * side.mean(side.logprob)


def log_odds(side: AnswerLogprobs):
    """log(p / (1 - p)) of p, the geometric mean of an answer's probabilities (Hong et al. 2024, eq. 3)."""
    mean_BP = jnp.minimum(side.mean(side.logprob), SURE)
    return mean_BP - jnp.log(-jnp.expm1(mean_BP))
