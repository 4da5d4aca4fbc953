"""How much better an answer was than expected, token by token: estimators of the advantage by name (rl.advantage).

NumPy on the host, in float64 and handed on in float32: rewards of a few hundred answers are no work, and the same numbers on
any mesh. An estimator is a frozen dataclass that is called with Answers and gives Advantages; to add one, write it here, or
anywhere, and name it in ADVANTAGES.

The score of an answer is a reward at its last drawn token, its end token where it has one. The penalty for leaving the
reference model is a reward of each token, -kl_coef (log p - log p_reference): the k1 estimate of the divergence (Ziegler et
al. 2019, equation 2). Estimators of whole answers add it up over the tokens.

Axes: B answers, L tokens; answers to one prompt are neighbours.
"""

import dataclasses
import typing

import numpy as np

from gptjax.errors import UserError, make_chosen

EPSILON = 1e-4  # added to a standard deviation that rewards are divided by, as TRL does: equal rewards give 0, not NaN


class Answers(typing.NamedTuple):
    """What an estimator sees."""

    score_B: np.ndarray  # rewards of answers, penalties of the whole answer included
    weight_BL: np.ndarray  # 1 where the token at t + 1 was drawn by the policy
    group: int = 1  # answers to each prompt
    logprob_BL: np.ndarray | None = None  # of the policy that drew
    reference_BL: np.ndarray | None = None  # of the reference model; None: no penalty
    value_BL: np.ndarray | None = None  # of the critic, before the update
    kl_coef: float = 0.0


class Advantages(typing.NamedTuple):
    """What a policy loss takes, float32, 0 where no token was drawn."""

    advantage_BL: np.ndarray
    return_BL: np.ndarray | None  # what a critic should have said; None where there is none
    numbers: dict[str, float]  # to be logged


# ---- rewards


def with_end_penalty(score_B, ended_B, penalty: float | None):
    """float32 [B]: scores, less the penalty where an answer has no end token; None: none."""
    score_B = np.asarray(score_B, np.float32)
    return score_B if penalty is None else score_B - np.float32(penalty) * ~np.asarray(ended_B, bool)


def divergence(answers: Answers, estimate: str = "k1"):
    """float64 [B, L]: of policy from reference at each drawn token, in nats; 0 where there is no reference.

    k1 = log p - log p_reference has the right mean and may be negative; k3 = r - 1 - log r of r = p_reference / p has it too
    and is never negative (Schulman 2020, "Approximating KL divergence").
    """
    if answers.reference_BL is None:
        return np.zeros(np.shape(answers.weight_BL))
    k1_BL = np.where(answers.weight_BL > 0, np.float64(answers.logprob_BL) - np.float64(answers.reference_BL), 0.0)
    return k1_BL if estimate == "k1" else np.expm1(-k1_BL) + k1_BL


def token_rewards(answers: Answers, estimate: str = "k1"):
    """float64 [B, L]: the penalty of each drawn token, and the score on the last one of each answer.

    TRL's PPO puts the score behind the end token where padding follows (trl#3750), where no value is learnt.
    """
    reward_BL = -answers.kl_coef * divergence(answers, estimate)
    rows, last_B = np.arange(len(reward_BL)), last_drawn(answers.weight_BL)
    reward_BL[rows, last_B] += np.where(answers.weight_BL[rows, last_B] > 0, np.float64(answers.score_B), 0.0)
    return reward_BL


def answer_rewards(answers: Answers):
    """float64 [B]: the score less the penalty of all tokens."""
    return np.float64(answers.score_B) - answers.kl_coef * divergence(answers).sum(-1)


def last_drawn(weight_BL):
    """int [B]: the place of the last drawn token of each answer; 0 of one that has none."""
    length = weight_BL.shape[1]
    return np.where((weight_BL > 0).any(-1), length - 1 - np.argmax(weight_BL[:, ::-1] > 0, axis=-1), 0)


def whiten(value_BL, weight_BL, shift_mean: bool = True):
    """float64 [B, L]: drawn tokens' values with mean 0 (shift_mean=False: their own mean) and standard deviation 1; else 0.

    The variance has Bessel's correction and 1e-8 added, as TRL 1.12's masked_whiten. torchtune's has the mean where it says
    that it has not.
    """
    drawn_BL = weight_BL > 0
    values = np.float64(value_BL)[drawn_BL]
    if len(values) < 2:
        raise UserError(
            f"{len(values)} drawn tokens in a batch of rollouts have no standard deviation; draw more answers."
        )
    mean = values.mean()
    scaled = (values - mean) / np.sqrt(values.var(ddof=1) + 1e-8)
    whitened_BL = np.zeros(drawn_BL.shape)
    whitened_BL[drawn_BL] = scaled if shift_mean else scaled + mean
    return whitened_BL


# ---- groups


def has_equal_rewards(reward_B, group: int):
    """bool, of each prompt: whether its answers all have the same reward, so that they teach a group's estimator nothing."""
    reward_PG = np.asarray(reward_B).reshape(-1, group)
    return (reward_PG == reward_PG[:, :1]).all(-1)


def check_group(group: int, least: int) -> None:
    """Raises UserError: groups are too small."""
    if group < least:
        raise UserError(
            f"rl.group={group}: answers to a prompt are compared with one another; use at least rl.group={least}."
        )


def _in_groups(answers: Answers, least: int):
    """(rewards [P, G], {"equal_groups": share of the prompts}) of P prompts. Raises UserError: groups are too small."""
    check_group(answers.group, least)
    reward_B = answer_rewards(answers)
    return reward_B.reshape(-1, answers.group), {
        "equal_groups": float(has_equal_rewards(answers.score_B, answers.group).mean())
    }


def _of_tokens(advantage_B, answers: Answers, numbers: dict) -> Advantages:
    """The same for all drawn tokens of an answer."""
    drawn_BL = answers.weight_BL > 0
    return Advantages((np.reshape(advantage_B, (-1, 1)) * drawn_BL).astype(np.float32), None, numbers)


# ---- estimators


@dataclasses.dataclass(frozen=True)
class GAE:
    """Generalised advantage estimation with a critic (Schulman et al. 2016, equations 11 and 16); without discount and with
    lam=0.95 as Ziegler et al. 2019. InstructGPT does not publish its lam.

    whiten: advantages, over all drawn tokens of the batch. whiten_rewards: rewards to standard deviation 1 with their mean
    left as it is (Ziegler's released code). kl: the estimate in the reward, k1 or k3. An answer that was cut short counts as
    ended: nothing is expected behind its last token.
    """

    gamma: float = 1.0
    lam: float = 0.95
    whiten: bool = True
    whiten_rewards: bool = False
    kl: str = "k1"
    needs_critic: typing.ClassVar[bool] = True
    least_group: typing.ClassVar[int] = 1

    def __post_init__(self):
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} is not in [0, 1].")
        if self.kl not in ("k1", "k3"):
            raise UserError(f"kl={self.kl!r} is not known; expected one of: k1, k3.")

    def __call__(self, answers: Answers) -> Advantages:
        reward_BL = token_rewards(answers, self.kl)
        if self.whiten_rewards:
            reward_BL = whiten(reward_BL, answers.weight_BL, shift_mean=False)
        drawn_BL, value_BL = answers.weight_BL > 0, np.float64(answers.value_BL)
        advantage_BL = self.estimate(reward_BL, value_BL, drawn_BL)
        return_BL = np.where(drawn_BL, advantage_BL + value_BL, 0.0)
        if self.whiten:
            advantage_BL = whiten(advantage_BL, answers.weight_BL)
        return Advantages(advantage_BL.astype(np.float32), return_BL.astype(np.float32), {})

    def estimate(self, reward_BL, value_BL, drawn_BL):
        """float64 [B, L], 0 where no token was drawn. Such tokens, as of a tool's answer, are no steps: what follows the token
        before them is the next drawn one."""
        next_value_B = advantage_B = np.zeros(len(reward_BL))
        advantage_BL = np.zeros(reward_BL.shape)
        for t in reversed(range(reward_BL.shape[1])):
            error_B = reward_BL[:, t] + self.gamma * next_value_B - value_BL[:, t]
            advantage_B = np.where(drawn_BL[:, t], error_B + self.gamma * self.lam * advantage_B, advantage_B)
            next_value_B = np.where(drawn_BL[:, t], value_BL[:, t], next_value_B)
            advantage_BL[:, t] = np.where(drawn_BL[:, t], advantage_B, 0.0)
        return advantage_BL


@dataclasses.dataclass(frozen=True)
class Group:
    """A reward less the mean of its group (Shao et al. 2024, section 4.1.2: GRPO), over a standard deviation.

    scale: std (of the group: GRPO) | batch (of all rewards) | none (Liu et al. 2025: Dr.GRPO). Standard deviations have
    Bessel's correction and 1e-4 added, as in TRL: a group of equal rewards has advantage 0.
    """

    scale: str = "std"
    needs_critic: typing.ClassVar[bool] = False
    least_group: typing.ClassVar[int] = 2

    def __post_init__(self):
        if self.scale not in ("std", "batch", "none"):
            raise UserError(f"scale={self.scale!r} is not known; expected one of: std, batch, none.")

    def __call__(self, answers: Answers) -> Advantages:
        reward_PG, numbers = _in_groups(answers, self.least_group)
        advantage_PG = reward_PG - reward_PG.mean(-1, keepdims=True)
        if self.scale != "none":
            over = {"axis": -1, "keepdims": True} if self.scale == "std" else {}
            advantage_PG = advantage_PG / (reward_PG.std(ddof=1, **over) + EPSILON)
        return _of_tokens(advantage_PG, answers, numbers)


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """A reward less the mean of the other answers to the prompt (Kool et al. 2019; Ahmadian et al. 2024: RLOO).

    normalize: over all answers, to mean 0 and standard deviation 1 (TRL's normalize_advantages)."""

    normalize: bool = False
    needs_critic: typing.ClassVar[bool] = False
    least_group: typing.ClassVar[int] = 2

    def __call__(self, answers: Answers) -> Advantages:
        reward_PG, numbers = _in_groups(answers, self.least_group)
        others_PG = (reward_PG.sum(-1, keepdims=True) - reward_PG) / (answers.group - 1)
        advantage_PG = reward_PG - others_PG
        if self.normalize:
            advantage_PG = (advantage_PG - advantage_PG.mean()) / (advantage_PG.std(ddof=1) + EPSILON)
        return _of_tokens(advantage_PG, answers, numbers)


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A reward less the mean of the batch (Williams 1992, section 6). scale: none | batch (over their standard deviation)."""

    scale: str = "none"
    needs_critic: typing.ClassVar[bool] = False
    least_group: typing.ClassVar[int] = 1

    def __post_init__(self):
        if self.scale not in ("batch", "none"):
            raise UserError(f"scale={self.scale!r} is not known; expected one of: batch, none.")

    def __call__(self, answers: Answers) -> Advantages:
        reward_PG, numbers = _in_groups(answers, self.least_group)
        if reward_PG.size < 2:
            raise UserError("one answer in a batch is its own baseline, and its advantage 0; draw more answers.")
        advantage_PG = reward_PG - reward_PG.mean()
        if self.scale == "batch":
            advantage_PG = advantage_PG / (reward_PG.std(ddof=1) + EPSILON)
        return _of_tokens(advantage_PG, answers, numbers if answers.group > 1 else {})


ADVANTAGES = {"gae": GAE, "group": Group, "leave_one_out": LeaveOneOut, "baseline": Baseline}


def of(text: str):
    """The estimator that rl.advantage names. Raises UserError: there is none, or it takes no such parameter."""
    return make_chosen(text, ADVANTAGES, "rl.advantage")


# ---- the coefficient of the penalty


@dataclasses.dataclass(frozen=True)
class Fixed:
    """The coefficient stays as it is."""

    def __call__(self, coef: float, kl: float, answers: int) -> float:
        return coef


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """The coefficient grows while the divergence of an answer, in nats, is above target, and shrinks below it (Ziegler et al.
    2019, section 2.2). Books: target=6, horizon=10000 (their released code).

    The coefficient after an iteration is a function of that before it and of two numbers that were logged: a Python float,
    which a checkpoint's JSON gives back to the bit.
    """

    target: float = 6.0
    horizon: int = 10000  # an error of e changes the coefficient by e / horizon with each answer
    largest_error: typing.ClassVar[float] = 0.2

    def __post_init__(self):
        if self.target <= 0 or self.horizon < 1:
            raise UserError(f"target={self.target}, horizon={self.horizon}: both must be positive.")

    def __call__(self, coef: float, kl: float, answers: int) -> float:
        """The next coefficient. kl: mean over the answers of an iteration, of each the sum of its tokens' k1."""
        error = min(max(kl / self.target - 1, -self.largest_error), self.largest_error)
        return coef * (1 + error * answers / self.horizon)


CONTROLLERS = {"fixed": Fixed, "adaptive": Adaptive}


def controller(text: str):
    """What rl.kl_control names. Raises UserError: there is none, or it takes no such parameter."""
    return make_chosen(text, CONTROLLERS, "rl.kl_control")
