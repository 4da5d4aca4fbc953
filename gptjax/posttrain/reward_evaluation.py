"""Evaluation in reinforcement learning: the mean reward of answers to held-out prompts, sampled as in training.

Always with the same random numbers, so that two evaluations differ by the parameters alone.
"""

import math

import numpy as np

from gptjax.posttrain import compatibility
from gptjax.posttrain.answering import Answered, Answerer
from gptjax.training.hooks import HeldOut

SEED_OFFSET = 0x6576616C  # apart from training's draws


class HeldOutReward(HeldOut):
    """One answer to each held-out prompt (rl.eval_prompts: the first of them), of the parameters and of their average."""

    doing = "evaluating"

    def check(self, session) -> None:
        """Raises UserError: what section rl asks for does not go together."""
        compatibility.check(session.config, session.batch_unit)
        compatibility.check_others(session)
        self._prompts = session.store.examples.val.prompts[: self.config.rl.eval_prompts]

    def _prefixes(self) -> tuple[str, ...]:
        return super()._prefixes() if self._prompts else ()

    def metrics_of(self, session) -> list[str]:
        from gptjax.config import rl_checks
        from gptjax.posttrain.rewards import reward

        names = [f"reward/{each.name}" for each in reward.chosen(rl_checks.reward_weights(self.config.rl.rewards))]
        numbers = ("reward", "reward_error", "end_rate", "length", *names)
        return [f"{prefix}{name}" for prefix in super()._prefixes() for name in numbers]

    def _is_logged(self, step: int) -> bool:
        from gptjax.rundir import metrics

        file, name = self.training.directory.metrics, f"{super()._prefixes()[-1]}reward"
        rows = metrics.read_metrics(file, "eval") if file.exists() else []
        return any(row["step"] == step and name in row for row in rows)

    def evaluation(self, state, prefix: str, should_stop) -> Answered | None:
        answerer = Answerer.of(self.training)
        seed = (self.config.train.seed + SEED_OFFSET) % 2**32
        params, numbers = state.ema if prefix else state.params, np.arange(len(self._prompts))
        return answerer(params, list(self._prompts), numbers, group=1, seed=seed, iteration=0)

    def _log(self, prefix: str, step: int, results: Answered) -> None:
        numbers = of_answers(results)
        self.training.progress.message(
            f"step {step:>7}  {prefix}eval reward {numbers['reward']:.4f} +- {numbers['reward_error']:.4f}, ended"
            f" {numbers['end_rate']:.1%}, {numbers['length']:.1f} tokens, {len(results.texts):,} prompts"
        )
        self.training.log.write("eval", step, **{f"{prefix}{name}": value for name, value in numbers.items()})


def of_answers(answered: Answered) -> dict[str, float]:
    """Mean reward and its standard error, the mean of each reward, the share that ended, tokens of an answer."""
    score_B, count = np.float64(answered.score_B), len(answered.score_B)
    error = score_B.std(ddof=1) / math.sqrt(count) if count > 1 else math.nan
    return {
        "reward": float(score_B.mean()),
        "reward_error": float(error),
        **{f"reward/{name}": float(np.float64(value_B).mean()) for name, value_B in answered.reward_B.items()},
        "end_rate": float(answered.rollouts.ended_B.mean()),
        "length": float(answered.rollouts.weight_BL.sum(-1).mean()),
    }
