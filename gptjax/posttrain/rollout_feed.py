"""What the train step takes in reinforcement learning: the answers to an iteration's prompts, made when a call is due.

    prompts of iteration i --the parameters of that moment--> answers --rewards--> scores --reference, critic--> advantages
        --passes, permuted--> arrays [S, B, ...] of one call

The next call needs the parameters after the one before, so nothing is made ahead. What an iteration learns from is a function
of the config, i, the parameters and the numbers in `Loop.carried`: a run that goes on from a checkpoint, which lies between
two calls, does what an undisturbed one does, sample for sample.
"""

import numpy as np

from gptjax.config import rl_checks
from gptjax.data.rows.hashing import hash_of
from gptjax.parallel import placement
from gptjax.posttrain import advantages, minibatches
from gptjax.posttrain.answering import Answered, Answerer, joined, sampling_of
from gptjax.posttrain.judging_models import Judge, Reference
from gptjax.training import feed, losses

REDRAW_STREAM = 0x72656472  # of the prompts that stand in for groups of equal rewards
NUMBERS_AHEAD = 2**40  # of the prompts of an iteration, more than a run has


class RolloutFeed:
    """`next()` is the Inputs of one call after the other, with the parameters that the loop has then; None: the run was asked to
    stop meanwhile. Use it in a `with`."""

    def __init__(self, loop):
        self._loop, self._training = loop, loop.training
        session = self._training.session
        self._session, self._config = session, session.config
        self._loss = losses.chosen(self._config.train.loss)
        self._advantage = advantages.of(self._config.rl.advantage)
        self._control = advantages.controller(self._config.rl.kl_control)
        self._answerer = Answerer.of(self._training)
        sampling = sampling_of(self._config)
        self._reference = None if self._config.rl.reference is None else Reference(self._training, sampling)
        size = self._config.train.batch_size // self._config.train.microbatches
        self._judge = Judge(session.program, self._config, sampling, size)

    def __enter__(self) -> "RolloutFeed":
        return self

    def __exit__(self, *error) -> None:
        """Nothing is ahead."""

    def next(self) -> feed.Inputs | None:
        first_row = self._loop.rewinds.first_row(self._config, self._loop.step)
        iteration = first_row // (self._config.train.batch_size * self._config.train.steps_per_call)
        answered = self._answered(iteration)
        if answered is None:
            return None
        of_answers, numbers = self._learnt(answered)
        batch = minibatches.arrays(of_answers, minibatches.order(self._config, iteration))
        read = lambda start, stop: {name: array[:, start:stop] for name, array in batch.items()}  # noqa: E731
        layout = self._session.program.train_batch_sharding
        placed = placement.device_batch(read, self._config.train.batch_size, layout, dim=1)
        call = self._loop.step // self._config.train.steps_per_call
        return feed.Inputs(placed, feed.learning_rates(self._config, call), *self._read(first_row))

    def _answered(self, iteration: int) -> Answered | None:
        config = self._config
        count = rl_checks.answers_of(config) // config.rl.group
        number_P = np.arange(iteration * count, (iteration + 1) * count)
        return self._answers(self._session.rows.prompts(number_P), number_P, iteration)

    def _answers(self, prompts, number_P, iteration: int) -> Answered | None:
        return self._answerer(
            self._loop.state.params,
            prompts,
            number_P,
            group=self._config.rl.group,
            seed=self._config.train.seed,
            iteration=iteration,
            paused=self._loop.recorder.throughput.paused,
        )

    def _learnt(self, answered: Answered) -> tuple[dict, dict]:
        rollouts, rl = answered.rollouts, self._config.rl
        token_BT = rollouts.token_BT
        logprob_BL = self._judge(self._loop.state.params, token_BT) * rollouts.weight_BL
        reference_BL = None if self._reference is None else self._reference(token_BT) * rollouts.weight_BL
        score_B = advantages.with_end_penalty(answered.score_B, rollouts.ended_B, rl.unended_penalty)
        coef = self._loop.carried.get("kl_coef", rl.kl_coef)
        seen = advantages.Answers(score_B, rollouts.weight_BL, rl.group, logprob_BL, reference_BL, None, coef)
        made = self._advantage(seen)
        of_answers = {
            "token_BT": token_BT,
            "weight_BL": rollouts.weight_BL,
            "logprob_BL": logprob_BL,
            "advantage_BL": made.advantage_BL,
        }
        if reference_BL is not None:
            of_answers["reference_BL"] = reference_BL
        numbers = {"reward": float(answered.score_B.mean()), "end_rate": float(rollouts.ended_B.mean())}
        self._training.log.write("rollout", self._loop.step + self._config.train.steps_per_call, **numbers)
        return of_answers, numbers

    def _read(self, first_row: int) -> tuple[list[int], int]:
        """(hashes of the rows that this process answers for, of each step, how many they are)."""
        config, layout = self._config, self._session.program.train_batch_sharding
        own = placement.own_rows(config.train.batch_size, layout, dim=1)
        firsts = [first_row + step * config.train.batch_size for step in range(config.train.steps_per_call)]
        hash_S = [
            int(np.sum([self._session.rows.hashes(first + a, first + b).sum() for a, b in own], dtype=np.uint64))
            for first in firsts
        ]
        return hash_S, len(firsts) * sum(b - a for a, b in own)
