"""Losses of reinforcement learning: clipped policy gradients, a critic's loss beside them, and text that is not forgotten.

A batch holds, beside token_BT, arrays [B, L] of predicting the token at t + 1:

    weight_BL      1 where the policy drew it          logprob_BL     when it was drawn, of the distribution it is from
    advantage_BL   posttrain/advantages.py             reference_BL   of the reference model, for a divergence from it
    old_BL         logprob_BL as this program has it, before the first update: where a sampler's numbers are corrected
    value_BL       of the critic before the first update                return_BL      what it should have said
    ptx_token_BT, ptx_weight_BL, ...   rows of text, of any number that microbatches and devices divide (ptx_weights), with
                   whatever else a batch of pretraining has, such as ptx_segment_BT

Everything is a sum with a weight, so that losses don't depend on microbatches and meshes. What the mean is over is `aggregate`:

    sequence   the mean of each answer's tokens, then of the answers (Shao et al. 2024: GRPO)
    token      all tokens of the step (Yu et al. 2025: DAPO; TRL's bnpo is this of a microbatch)
    constant   the sum of an answer's tokens over `length` (None: rl.max_tokens), then the mean of the answers (Liu et al.
               2025: Dr.GRPO)

Axes: B answers, L tokens, T = L + 1.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from gptjax.errors import UserError
from gptjax.posttrain import sampled, values
from gptjax.training import losses
from gptjax.training.losses import Largest, Mean

AGGREGATES = ("sequence", "token", "constant")
LEVELS = ("token", "sequence_mean", "sequence")  # what a ratio is of: a token, an answer's geometric mean, an answer
CORRECTIONS = ("none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
DIVERGENCES = ("k1", "k2", "k3")


class ExplainedVariance(typing.NamedTuple):
    """1 - Var(return - value) / Var(return) of drawn tokens: 1 of a perfect critic, 0 of a constant one."""

    moments: jax.Array  # [..., 5]: weight, sums of return, its square, error, its square

    def merged(self) -> "ExplainedVariance":
        """The sums of the whole, from parts along the first axis."""
        return ExplainedVariance(self.moments.sum(axis=0))

    @property
    def value(self) -> jax.Array:
        weight, return_sum, return_square, error_sum, error_square = jnp.moveaxis(self.moments, -1, 0)
        return 1 - (error_square - error_sum**2 / weight) / (return_square - return_sum**2 / weight)


def explained_variance(value_BL, return_BL, weight_BL) -> ExplainedVariance:
    """The sums for the predictions that a critic made before an update."""
    error_BL = return_BL - value_BL
    parts = (jnp.ones_like(error_BL), return_BL, jnp.square(return_BL), error_BL, jnp.square(error_BL))
    return ExplainedVariance(jnp.stack([jnp.sum(part_BL * weight_BL) for part_BL in parts]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """What all of them share: the gradient of the clipped ratio times the advantage (Schulman et al. 2017, equation 7).

    clip, clip_high: the ratio counts from 1 - clip to 1 + clip_high (None: clip; DAPO has 0.28). dual_clip: of a negative
    advantage at most so large a ratio (Ye et al. 2020); TRL's delta. beta, kl: weight of the divergence from the reference
    in the loss and its estimate (Schulman 2020); kl_ratio: times the ratio, so that its gradient has the right mean
    (TRL's use_bias_correction_kl). level: what a ratio is of. correction, cap: of tokens that a sampler drew with other
    numbers than old_BL, exp(old - logprob) is a weight: at most `cap` (truncate; Yao et al. 2025) or 0 above it (mask).
    """

    clip: float = 0.2
    clip_high: float | None = None
    dual_clip: float | None = None
    beta: float = 0.0
    kl: str = "k3"
    kl_ratio: bool = False
    aggregate: str = "token"
    length: int | None = None
    level: str = "token"
    correction: str = "none"
    cap: float = 3.0
    ptx_coef: float = 0.0
    needs_critic: typing.ClassVar[bool] = False

    def __post_init__(self):
        for name, choices in {
            "aggregate": AGGREGATES,
            "level": LEVELS,
            "correction": CORRECTIONS,
            "kl": DIVERGENCES,
        }.items():
            if getattr(self, name) not in choices:
                expected = ", ".join(choices)
                raise UserError(f"{name}={getattr(self, name)!r} is not known; expected one of: {expected}.")
        for name in ("clip", "clip_high", "beta", "cap", "ptx_coef"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"{name}={getattr(self, name)} is negative; use 0 or more.")
        if self.dual_clip is not None and self.dual_clip <= 1 + self.high:
            raise UserError(
                f"dual_clip={self.dual_clip} cuts ratios that clip lets pass; use more than {1 + self.high}."
            )
        if self.length is not None and (self.aggregate != "constant" or self.length < 1):
            raise UserError(
                f"length={self.length} with aggregate={self.aggregate!r}: it is what aggregate='constant' divides by; give a"
                " positive number with that, or leave it out."
            )

    def check(self, config) -> None:
        """Raises UserError: a Config has what this loss has no use for, or has not what it needs."""
        critic, loss = config.model.critic, config.train.loss
        if self.needs_critic != (critic is not None):
            mend = (
                "set model.critic='shared' or 'separate'" if critic is None else "leave it out, or use train.loss='ppo'"
            )
            raise UserError(f"model.critic={critic!r} with train.loss={loss!r}; {mend}.")
        if config.model.max_dropout:
            raise UserError(
                f"train.loss={loss!r} is of what was sampled, which is done without dropout; set every dropout of model to 0."
            )

    @property
    def high(self) -> float:
        return self.clip if self.clip_high is None else self.clip_high

    @property
    def corrects(self) -> bool:
        """Whether a batch has old_BL."""
        return self.correction != "none"

    def __call__(self, params, batch: dict, key, *, graph, config):
        sampling = sampling_of(config)
        logprob_BL, entropy_BL, value_BL = values.policy_and_critic(
            params, batch, graph=graph, config=config, sampling=sampling, with_critic=self.needs_critic
        )
        weight_BL, length = batch["weight_BL"], self.length or sampling.max_tokens
        policy_BL, numbers = self.of_tokens(logprob_BL, batch)
        loss_sum, weight = self.total(policy_BL, weight_BL, length), self.weight(weight_BL)
        numbers |= {"entropy": _mean(entropy_BL, weight_BL), "length": Mean(weight_BL.sum(), _rows(weight_BL))}
        if sampling.cuts:
            numbers["cut"] = _mean(logprob_BL <= sampled.CUT_LOGPROB, weight_BL)
        objective = loss_sum
        if self.needs_critic:
            critic_BL, of_critic = self.of_values(value_BL, batch)
            objective = objective + self.value_coef * self.total(critic_BL, weight_BL, length)
            numbers |= of_critic
        if self.ptx_coef:
            ptx_sum, ptx_weight = ptx(params, batch, key, graph=graph, config=config)
            objective = objective + self.ptx_coef * ptx_sum
            numbers["ptx_loss"] = Mean(ptx_sum, ptx_weight)
        return objective, ((loss_sum, weight), numbers)

    def of_tokens(self, logprob_BL, batch: dict):
        """(loss of each token without its weight, float32 [B, L], numbers)."""
        weight_BL, advantage_BL = batch["weight_BL"], batch["advantage_BL"]
        difference_BL = jnp.where(weight_BL > 0, logprob_BL - self.before(batch), 0)
        ratio_BL = jnp.exp(self.at_level(difference_BL, weight_BL))
        loss_BL, numbers = self.surrogate(ratio_BL, logprob_BL, advantage_BL, weight_BL)
        if self.corrects:
            correction_BL, of_sampler = self.corrections(batch)
            loss_BL, numbers = loss_BL * correction_BL, numbers | of_sampler
        if "reference_BL" in batch:
            kl_BL, of_reference = self.divergences(logprob_BL, batch)
            numbers |= of_reference
            if self.beta:
                loss_BL = loss_BL + self.beta * (kl_BL * ratio_BL if self.kl_ratio else kl_BL)
        elif self.beta:
            raise UserError(f"beta={self.beta} is of a reference model, and the batch has no log-probabilities of one.")
        moved_BL = jnp.where(_can_be_drawn(logprob_BL, weight_BL), difference_BL, 0)
        numbers |= {
            "approx_kl": _mean(jnp.expm1(moved_BL) - moved_BL, weight_BL),
            "ratio_mean": _mean(ratio_BL, weight_BL),
            "ratio_max": Largest(jnp.max(jnp.where(weight_BL > 0, ratio_BL, 0))),
        }
        return loss_BL, numbers

    def before(self, batch: dict):
        """Log-probabilities of the policy before the first update, as this program has them where it was asked for them."""
        return batch["old_BL"] if self.corrects else batch["logprob_BL"]

    def at_level(self, difference_BL, weight_BL):
        """Log-ratios, the same for all tokens of an answer where they are of answers."""
        if self.level == "token":
            return difference_BL
        sum_B1 = jnp.sum(difference_BL * weight_BL, -1, keepdims=True)
        count_B1 = jnp.maximum(weight_BL.sum(-1, keepdims=True), 1)
        return jnp.broadcast_to(sum_B1 / count_B1 if self.level == "sequence_mean" else sum_B1, difference_BL.shape)

    def surrogate(self, ratio_BL, logprob_BL, advantage_BL, weight_BL):
        """(minus the clipped objective, the shares of the tokens whose ratio was below and above the clip, to no gain)."""
        clipped_BL = jnp.clip(ratio_BL, 1 - self.clip, 1 + self.high)
        counted_BL = ratio_BL if self.dual_clip is None else jnp.minimum(ratio_BL, self.dual_clip)
        low_BL = (ratio_BL < 1 - self.clip) & (advantage_BL < 0)
        high_BL = (ratio_BL > 1 + self.high) & (advantage_BL > 0)
        return -jnp.minimum(counted_BL * advantage_BL, clipped_BL * advantage_BL), {
            "clip_low": _mean(low_BL, weight_BL),
            "clip_high": _mean(high_BL, weight_BL),
        }

    def corrections(self, batch: dict):
        """(importance weights of what a sampler drew, numbers)."""
        weight_BL = batch["weight_BL"]
        difference_BL = jnp.where(weight_BL > 0, batch["old_BL"] - batch["logprob_BL"], 0)
        of_answer_B1 = jnp.sum(difference_BL * weight_BL, -1, keepdims=True)
        level, _, how = self.correction.partition("_")
        ratio = jnp.exp(of_answer_B1 if level == "sequence" else difference_BL)
        ratio_BL = jnp.broadcast_to(ratio, weight_BL.shape)
        kept_BL = jnp.minimum(ratio_BL, self.cap) if how == "truncate" else jnp.where(ratio_BL > self.cap, 0, ratio_BL)
        return kept_BL, {
            "sampler_ratio_mean": _mean(ratio_BL, weight_BL),
            "sampler_ratio_max": Largest(jnp.max(jnp.where(weight_BL > 0, ratio_BL, 0))),
            "sampler_difference": Largest(jnp.max(jnp.abs(difference_BL))),
        }

    def divergences(self, logprob_BL, batch: dict):
        """(the estimate in the loss, of each token, in nats; numbers)."""
        weight_BL = batch["weight_BL"]
        k1_BL = jnp.where(_can_be_drawn(logprob_BL, weight_BL), logprob_BL - batch["reference_BL"], 0)
        estimates = {"k1": k1_BL, "k2": jnp.square(k1_BL) / 2, "k3": jnp.expm1(-k1_BL) + k1_BL}
        logged = {f"kl_{name}": _mean(estimates[name], weight_BL) for name in ("k1", "k3")}
        return estimates[self.kl], logged

    def total(self, loss_BL, weight_BL, length: int):
        """The sum that `weight` divides. length: of aggregate="constant"."""
        if self.aggregate == "token":
            return jnp.sum(loss_BL * weight_BL)
        tokens_B = jnp.maximum(weight_BL.sum(-1), 1) if self.aggregate == "sequence" else length
        return jnp.sum(jnp.sum(loss_BL * weight_BL, -1) / tokens_B)

    def weight(self, weight_BL):
        """What the sums of a step are divided by: tokens, or answers, also those of which no token was drawn."""
        return weight_BL.sum() if self.aggregate == "token" else _rows(weight_BL)


def sampling_of(config) -> sampled.Sampling:
    """The distribution that a Config's answers are drawn from."""
    rl = config.rl
    return sampled.Sampling(rl.temperature, rl.top_k, rl.top_p, max_tokens=rl.max_tokens)


def _can_be_drawn(logprob_BL, weight_BL):
    """bool [B, L]: drawn tokens that today's policy has. What it cuts, as by top-p, it never draws: its log-probability stands
    for minus infinity, and is no part of a divergence; `cut` counts it."""
    return (weight_BL > 0) & (logprob_BL > sampled.CUT_LOGPROB)


def _rows(weight_BL):
    return jnp.full((), weight_BL.shape[0], jnp.float32)


def _mean(value_BL, weight_BL) -> Mean:
    return Mean(jnp.sum(value_BL * weight_BL), weight_BL.sum())


# ---- text beside the rollouts


def ptx_weights(weight_BL, policy_weight: float):
    """float32: weights of tokens of text that sum to the weight of the policy's loss in the same step, so that the two losses
    of the step are means of their own. Called on the host, where all of a step's rows are."""
    return (weight_BL * (policy_weight / weight_BL.sum())).astype("float32")


def ptx(params, batch: dict, key, *, graph, config):
    """(sum, weight) of the loss of the next token of text (Ouyang et al. 2022, equation 2: gamma = ptx_coef is 27.8)."""
    rows = {name.removeprefix("ptx_"): array for name, array in batch.items() if name.startswith("ptx_")}
    return losses.next_token(params, rows, key, graph=graph, config=config, is_text=True)[1][0]


# ---- choices


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPO(PolicyLoss):
    """Shao et al. 2024, equation 3."""

    aggregate: str = "sequence"


@dataclasses.dataclass(frozen=True, kw_only=True)
class DAPO(PolicyLoss):
    """Yu et al. 2025, equation 8: clip-higher, and the mean over all tokens."""

    clip_high: float | None = 0.28


@dataclasses.dataclass(frozen=True, kw_only=True)
class GSPO(PolicyLoss):
    """Zheng et al. 2025, equation 5: the ratio of a whole answer, as a geometric mean over its tokens. Their section 5.1 has
    these clips."""

    clip: float = 3e-4
    clip_high: float | None = 4e-4
    aggregate: str = "sequence"
    level: str = "sequence_mean"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLOO(PolicyLoss):
    """Ahmadian et al. 2024: an answer is one action, with the probability of all of its tokens. Clipped as in TRL."""

    aggregate: str = "sequence"
    level: str = "sequence"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reinforce(PolicyLoss):
    """Williams 1992: -advantage log p. No ratio, so it is meant for one update with each rollout; clips change nothing."""

    def surrogate(self, ratio_BL, logprob_BL, advantage_BL, weight_BL):
        return -advantage_BL * logprob_BL, {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPO(PolicyLoss):
    """Schulman et al. 2017 with a critic whose change is clipped too: half the larger of the squared errors of the value and
    of the value kept within value_clip of that before the update (Ziegler et al. 2019's released code). value_clip=None:
    half the squared error. Its divergence from the reference is in the reward (advantages.GAE), beta is beside it."""

    value_clip: float | None = 0.2
    value_coef: float = 0.1
    needs_critic: typing.ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        for name in ("value_clip", "value_coef"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"{name}={getattr(self, name)} is negative; use 0 or more.")

    def of_values(self, value_BL, batch: dict):
        """(loss of each value without its weight, float32 [B, L]; numbers)."""
        weight_BL, return_BL, old_BL = batch["weight_BL"], batch["return_BL"], batch["value_BL"]
        error_BL = jnp.square(value_BL - return_BL)
        clipped_BL = jnp.zeros_like(error_BL)
        if self.value_clip is not None:
            near_BL = jnp.clip(value_BL, old_BL - self.value_clip, old_BL + self.value_clip)
            clipped_BL = jnp.square(near_BL - return_BL)
        loss_BL = jnp.maximum(error_BL, clipped_BL) / 2
        return loss_BL, {
            "value_loss": _mean(loss_BL, weight_BL),
            "value_clip": _mean(clipped_BL > error_BL, weight_BL),
            "explained_variance": explained_variance(old_BL, return_BL, weight_BL),
        }
