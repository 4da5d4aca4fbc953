"""The best of n answers by a reward: the policy that needs no training, and conversations for a fine-tuning on them.

Best-of-n buys reward for divergence from the model that it draws from, as reinforcement learning does, and is what that is
compared with (Gao et al. 2022). Axes: P prompts, N answers to each.
"""

import dataclasses
import math
import typing

import numpy as np

from gptjax.errors import UserError

RUN = "run:"  # --reward=run:DIR is a reward model


class Point(typing.NamedTuple):
    n: int
    kl: float  # nats, see `kl`
    reward: float  # mean over prompts of `expected_best`
    error: float | None  # its standard error over prompts; None: of one prompt


@dataclasses.dataclass(frozen=True)
class Best:
    """The answer to a prompt with the highest score, of ties the first."""

    prompt: tuple  # messages
    text: str
    score: float
    score_N: np.ndarray  # float32, of all answers in the order in which they were drawn

    def record(self) -> dict:
        """A line of jsonl, as `data.path` of a fine-tuning takes it."""
        messages = [{"role": each.role, "content": each.content} for each in self.prompt]
        return {"messages": [*messages, {"role": "assistant", "content": self.text}], "score": self.score}


def kl(n: int) -> float:
    """Nats: log n - (n - 1) / n, the divergence of best-of-n from what it draws from (Stiennon et al. 2020, appendix G.3).

    It holds where no two answers have the same score; with ties, or few different answers, it is an upper bound (Beirami et
    al. 2024)."""
    return math.log(n) - (n - 1) / n


def best_weights(count: int, n: int) -> np.ndarray:
    """[count] float64: how probable it is that of n answers drawn from `count` without replacement, the one of each rank, from
    the worst on, is the best: C(rank - 1, n - 1) / C(count, n)."""
    assert 1 <= n <= count
    return np.array([math.comb(rank, n - 1) / math.comb(count, n) for rank in range(count)])


def expected_best(score_N, n: int, judged_N=None) -> float:
    """The expected reward of the best of n answers, without bias, from N >= n answers (Nakano et al. 2021, appendix I).

    judged_N: another reward of the same answers, whose expectation is meant instead while score_N chooses, such as a gold
    reward and its proxy. Answers with equal scores are chosen with equal probability. Raises UserError: n is more than N.
    """
    score_N = np.asarray(score_N, np.float64)
    if not 1 <= n <= len(score_N):
        raise UserError(f"best-of-{n} of {len(score_N)} answers; n is from 1 to the number of answers.")
    judged_N = score_N if judged_N is None else np.asarray(judged_N, np.float64)
    _, tie_N = np.unique(score_N, return_inverse=True)
    mean_of_tie = np.bincount(tie_N, judged_N) / np.bincount(tie_N)
    return float(best_weights(len(score_N), n) @ mean_of_tie[np.sort(tie_N)])


def curve(score_PN, counts=None, judged_PN=None) -> list[Point]:
    """Reward against divergence for best-of-n, for each n of counts; None: powers of two up to N. Nothing is drawn again: each
    point is the estimate from all N answers of each prompt. judged_PN: see `expected_best`."""
    score_PN = np.asarray(score_PN)
    judged_PN = score_PN if judged_PN is None else np.asarray(judged_PN)
    counts = [2**i for i in range(score_PN.shape[1].bit_length())] if counts is None else counts
    points = []
    for n in counts:
        best_P = np.array([expected_best(score_N, n, judged_N) for score_N, judged_N in zip(score_PN, judged_PN)])
        error = float(best_P.std(ddof=1) / math.sqrt(len(best_P))) if len(best_P) > 1 else None
        points.append(Point(n, kl(n), float(best_P.mean()), error))
    return points


def answers(run, form, conversations, reward: str, n: int, **settings) -> list[Best]:
    """The best of n answers of a Run to each conversation, a tuple of messages. reward: of posttrain.rewards, or run:DIR.

    Raises UserError: no such reward, settings that don't go together."""
    completions = run.answers(conversations, form, num_return_sequences=n, **settings)
    prompts = [messages for messages in conversations for _ in range(n)]
    score_PN = scores(reward, prompts, completions, form.stop_ids(run.tokenizer)[0]).reshape(-1, n)
    best = []
    for p, (messages, score_N) in enumerate(zip(conversations, score_PN)):
        at = int(np.argmax(score_N))
        best.append(Best(messages, completions[p * n + at].text, float(score_N[at]), score_N))
    return best


def scores(reward: str, prompts, completions, end_id: int) -> np.ndarray:
    """float32 [answers]: of Completions, each to the messages of a prompt. end_id: the token that ends a turn, which a
    Completion is without."""
    from gptjax.posttrain.rewards import reward as rewards

    answered = []
    for prompt, made in zip(prompts, completions, strict=True):
        ended = made.finish_reason == "eot"
        token_L = np.append(made.tokens, end_id).astype(np.int32) if ended else made.tokens
        answered.append(rewards.Answer(prompt, made.text, token_L, ended))
    if reward.startswith(RUN):
        from gptjax.posttrain.rewards.model import Score

        return np.asarray(Score(reward.removeprefix(RUN)).many(answered), np.float32)
    return rewards.scored(answered, rewards.chosen({reward: 1.0}, "--reward")).total_B
