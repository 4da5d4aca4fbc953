"""What an iteration of reinforcement learning leaves in the log: numbers of its answers, some of them as text, and alarms.

The numbers stand in metrics.jsonl and TensorBoard as rows of kind "rollout", at the step that the iteration leads to; so they
go, and come again, with the steps that a run takes anew. Numbers of the update are those of the steps ("train").
"""

import math

import numpy as np

from gptjax import schedule
from gptjax.posttrain.answering import Answered
from gptjax.posttrain.reward_evaluation import of_answers
from gptjax.rundir import metrics

WINDOW = 5  # iterations that alarms compare with as many before
NEGATIVE_ERRORS = 4.0  # standard errors below 0 at which a KL cannot be one
ROUNDING = 1e-3  # nats per answer: below 0 by less is float32, as where the policy still is the reference
LEAST_ENTROPY = 0.005  # nats per token: answers are as good as certain
LEAST_END_RATE = 0.5


class RolloutReport:
    """training: a loop.Training; step: where it stands."""

    def __init__(self, training, step: int):
        self._training, self._config = training, training.session.config
        file = training.directory.metrics
        is_logging = training.peers.index == 0 and file.exists()
        rows = metrics.read_metrics(file, "rollout") if is_logging else []
        self._rows = [row for row in rows if row["step"] <= step]
        self._sounding = set()  # alarms that were said, and hold on

    def write(self, step: int, answered: Answered, numbers: dict[str, float]) -> None:
        """step: that the iteration leads to. numbers: of it, beside those of its answers."""
        numbers = self.numbers(answered) | numbers
        tokens = int(answered.rollouts.drawn_tokens)
        numbers |= {"tokens": tokens, "tokens_per_second": tokens / max(numbers["seconds"], 1e-9)}
        row = {"step": step, **numbers}
        self._rows.append(row)
        self._alarm(step)
        eval = self._config.eval
        first, last = self._config.train.steps_per_call, schedule.total_steps(self._config)
        if step % self._config.train.log_every == 0 or step in (first, last):
            self._training.log.write("rollout", step, **numbers)
            self._training.progress.message(line(step, numbers))
        if eval.sample_every_steps is not None and step % eval.sample_every_steps == 0:
            self._show(step, answered)

    @staticmethod
    def numbers(answered: Answered) -> dict[str, float]:
        """Rewards, lengths, entropy. The entropy is -log p of the tokens that were drawn, whose mean is that of their
        distribution, in nats per token."""
        rollouts = answered.rollouts
        length_B = rollouts.weight_BL.sum(-1)
        return of_answers(answered) | {
            "reward_std": float(np.float64(answered.score_B).std()),
            "length_max": float(length_B.max()),
            "entropy": float(-np.float64(rollouts.logprob_BL).sum() / rollouts.weight_BL.sum()),
        }

    def _show(self, step: int, answered: Answered) -> None:
        """The first answers of as many prompts, as text."""
        group = self._config.rl.group
        for b in range(0, min(self._config.rl.shown * group, len(answered.texts)), group):
            asked, text, score = answered.prompts[b].messages[-1].content, answered.texts[b], float(answered.score_B[b])
            self._training.log.write("event", step, event="answer", prompt=asked, text=text, reward=score)
            self._training.progress.message(f"step {step:>7}  answer {asked!r} -> {text!r}  reward {score:.3f}")

    # ---- alarms

    def _alarm(self, step: int) -> None:
        """Says what begins to look wrong, once, as an event and on the terminal."""
        wrong = alarms(self._rows)
        for name, why in wrong.items():
            if name not in self._sounding:
                self._training.log.write("event", step, event="alarm", alarm=name, reason=why)
                self._training.progress.message(f"gptjax: step {step}: {why}")
        self._sounding = set(wrong)


def alarms(rows: list[dict]) -> dict[str, str]:
    """{name: what is wrong, for people} by the numbers of the iterations so far."""
    last, wrong = rows[-1], {}
    if last.get("kl", 0.0) < -ROUNDING and last["kl"] < -NEGATIVE_ERRORS * last["kl_error"]:
        wrong["negative_kl"] = (
            f"the KL to the reference is {last['kl']:.4f} +- {last['kl_error']:.4f} nats per answer, which none can be: answers"
            " were drawn from another distribution than the one that is judged, or far too few"
        )
    if last["entropy"] < LEAST_ENTROPY:
        wrong["collapsed_entropy"] = (
            f"the entropy is {last['entropy']:.2g} nats per token: all answers to a prompt are alike, and nothing more is learnt"
        )
    if len(rows) >= 2 * WINDOW:
        before, now = (
            {name: math.fsum(row[name] for row in part) / WINDOW for name in ("reward", "end_rate")}
            for part in (rows[-2 * WINDOW : -WINDOW], rows[-WINDOW:])
        )
        if now["end_rate"] < min(LEAST_END_RATE, before["end_rate"]) and now["reward"] > before["reward"]:
            wrong["reward_without_end"] = (
                f"the reward rises from {before['reward']:.3f} to {now['reward']:.3f} while fewer answers end"
                f" ({before['end_rate']:.1%}, now {now['end_rate']:.1%}); set rl.unended_penalty, or more rl.max_tokens"
            )
    return wrong


def line(step: int, numbers: dict[str, float]) -> str:
    """For the terminal."""
    kl = f"  KL {numbers['kl']:.3f}" if "kl" in numbers else ""
    return (
        f"step {step:>7}  reward {numbers['reward']:.4f} +- {numbers['reward_error']:.4f}{kl}  entropy"
        f" {numbers['entropy']:.3f}  ended {numbers['end_rate']:.0%}  {numbers['length']:.1f} tokens"
    )
