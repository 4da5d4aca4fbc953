"""What the train step takes in reinforcement learning: the answers to an iteration's prompts, made when a call is due.

    prompts of iteration i --the parameters of that moment--> answers --rewards--> scores --reference, critic--> advantages
        --passes, permuted--> arrays [S, B, ...] of one call

The next call needs the parameters after the one before, so nothing is made ahead. What an iteration learns from is a function
of the config, i, the parameters and the numbers in `Loop.carried`: a run that goes on from a checkpoint, which lies between
two calls, does what an undisturbed one does, sample for sample.
"""

import time
import typing

import jax
import numpy as np

from gptjax.config import rl_checks
from gptjax.parallel import placement
from gptjax.posttrain import advantages, minibatches, values
from gptjax.posttrain.answering import Answered, Answerer, joined
from gptjax.posttrain.judging_models import Judge, ReferenceJudge, logprobs
from gptjax.posttrain.policy_losses import sampling_of
from gptjax.posttrain.rollout_report import RolloutReport
from gptjax.posttrain.rollouts import difference
from gptjax.training import feed, losses


class RolloutFeed:
    """`next()` is the Inputs of one call after the other, with the parameters that the loop has then; None: the run was asked to
    stop meanwhile. Use it in a `with`."""

    def __init__(self, loop):
        """loop: a loop.Loop that has begun."""
        self._loop, self._training, self._session = loop, loop.training, loop.training.session
        config = self._config = self._session.config
        self._loss, self._advantage = losses.chosen(config.train.loss), advantages.of(config.rl.advantage)
        self._control = advantages.controller(config.rl.kl_control)
        self._answerer, sampling = Answerer.of(self._training), sampling_of(config)
        self._reference = None if config.rl.reference is None else ReferenceJudge(self._training, loop.step, sampling)
        self._logprobs = Judge(self._session.program, config, logprobs, sampling=sampling)
        self._values = Judge(self._session.program, config, values.values)
        self._text = None
        if config.rl.ptx is not None:
            from gptjax.posttrain.ptx import TextRows

            self._text = TextRows(self._session)
        self._report = RolloutReport(self._training, loop.step)

    def __enter__(self) -> "RolloutFeed":
        return self

    def __exit__(self, *error) -> None:
        """Nothing is ahead."""

    def next(self) -> feed.Inputs | None:
        config, loop = self._config, self._loop
        first_row = loop.rewinds.first_row(config, loop.step)
        iteration, rest = divmod(first_row, config.train.batch_size * config.train.steps_per_call)
        assert rest == 0, f"step {loop.step} is within an iteration"
        jax.block_until_ready(loop.state.step)  # the update before, which is no part of the time of sampling
        began = time.monotonic()
        answered, numbers = self._answers(iteration)
        if answered is None:
            return None
        with loop.recorder.throughput.paused("judging"), self._training.watchdog.doing("judging answers"):
            of_answers, further = self._learnt(answered)
        numbers |= further | {"seconds": time.monotonic() - began}
        self._report.write(loop.step + config.train.steps_per_call, answered, numbers)
        call = loop.step // config.train.steps_per_call
        batch = self._placed(of_answers, iteration)
        return feed.Inputs(batch, feed.learning_rates(config, call), *self._rows_read(first_row))

    # ---- answers

    def _answers(self, iteration: int) -> tuple[Answered | None, dict]:
        """(answers to learn from, numbers of them), with groups of equal rewards replaced as rl.redraws says."""
        rl, rows = self._config.rl, self._session.rows
        count = rl_checks.answers_of(self._config) // rl.group
        draw = first_draw(iteration, count)
        answered = self._answered(rows.prompts(draw.number_P), draw)
        if answered is None or rl.group == 1:
            return answered, {}
        kept, equal, rounds = *_apart(answered, rl), 0
        numbers = {"equal_groups": len(equal.texts) / len(answered.texts)}
        if not rl.redraws:
            return answered, numbers
        while len(equal.texts) and rounds < rl.redraws:
            draw = redraw(iteration, rounds, rl.redraws, count, len(equal.texts) // rl.group)
            further = self._answered(rows.further_prompts(draw.number_P), draw)
            if further is None:
                return None, {}
            taken, _ = _apart(further, rl)
            kept = joined([kept, taken])
            equal, rounds = equal.rows(np.arange(len(taken.texts), len(equal.texts))), rounds + 1
        return joined([kept, equal]), numbers | {"redraws": rounds}

    def _answered(self, prompts, draw: "Draw") -> Answered | None:
        config = self._config
        return self._answerer(
            self._loop.state.params,
            prompts,
            draw.number_P,
            group=config.rl.group,
            seed=config.train.seed,
            iteration=draw.key,
            paused=self._loop.recorder.throughput.paused,
        )

    # ---- what is learnt from them

    def _learnt(self, answered: Answered) -> tuple[dict, dict]:
        """(arrays [R, ...] of the batch that a policy loss takes, numbers)."""
        rollouts, rl, params = answered.rollouts, self._config.rl, self._loop.state.params
        drawn_BL = rollouts.weight_BL > 0
        judged = lambda judge, *of: np.where(drawn_BL, judge(*of, rollouts.token_BT), 0).astype(np.float32)  # noqa: E731
        arrays = {"token_BT": rollouts.token_BT, "weight_BL": rollouts.weight_BL, "logprob_BL": rollouts.logprob_BL}
        if self._reference is not None:
            arrays["reference_BL"] = judged(self._reference)
        of_sampler = {}
        if self._loss.corrects:
            arrays["old_BL"] = judged(self._logprobs, params)
            of_sampler = difference(rollouts.logprob_BL, arrays["old_BL"], rollouts.weight_BL)
        if self._loss.needs_critic:
            arrays["value_BL"] = judged(self._values, params)
        coef = self._loop.carried.get("kl_coef", rl.kl_coef)
        seen = judged_answers(answered, arrays, rl, coef)
        made = self._advantage(seen)
        arrays["advantage_BL"] = made.advantage_BL
        if made.return_BL is not None:
            arrays["return_BL"] = made.return_BL
        numbers = {name: value for name, value in made.numbers.items() if name != "equal_groups"} | of_sampler
        return arrays, numbers | self._divergence(seen, len(seen.score_B))

    def _divergence(self, seen: advantages.Answers, answers: int) -> dict[str, float]:
        """Numbers of the divergence from the reference, after which the next kl_coef is settled."""
        if seen.reference_BL is None:
            return {}
        k1_B = advantages.divergence(seen).sum(-1)
        tokens, kl = seen.weight_BL.sum(), float(k1_B.mean())
        if self._config.rl.kl_coef:
            self._loop.carried = {"kl_coef": self._control(seen.kl_coef, kl, answers)}
        return {
            "kl_coef": seen.kl_coef,
            "kl": kl,
            "kl_error": float(k1_B.std(ddof=1) / np.sqrt(answers)),
            "kl_k1": float(k1_B.sum() / tokens),
            "kl_k3": float(advantages.divergence(seen, "k3").sum() / tokens),
        }

    def _placed(self, of_answers: dict[str, np.ndarray], iteration: int) -> dict:
        """The arrays [S, B, ...] of the call, on the devices."""
        layout, batch_size = self._session.program.train_batch_sharding, self._config.train.batch_size
        batch = minibatches.arrays(of_answers, minibatches.order(self._config, iteration))
        placed = placement.device_batch(_part_of(batch), batch_size, layout, dim=1)
        if self._text is None:
            return placed
        weight_S = np.array([self._loss.weight(weight_BL) for weight_BL in batch["weight_BL"]])
        text = self._text.batch(iteration, weight_S)
        return placed | placement.device_batch(_part_of(text), self._text.size, layout, dim=1)

    def _rows_read(self, first_row: int) -> tuple[list[int], int]:
        """(hashes of the rows that this process answers for, of each step, how many they are)."""
        config, rows = self._config, self._session.rows
        own = placement.own_rows(config.train.batch_size, self._session.program.train_batch_sharding, dim=1)
        firsts = [first_row + step * config.train.batch_size for step in range(config.train.steps_per_call)]
        hash_S = [
            int(np.sum([rows.hashes(first + start, first + stop).sum() for start, stop in own], dtype=np.uint64))
            for first in firsts
        ]
        return hash_S, len(firsts) * sum(stop - start for start, stop in own)


class Draw(typing.NamedTuple):
    """The key and number that answers to prompts are drawn by: the same two draw the same tokens to the same prompt."""

    number_P: np.ndarray  # int64, of the prompts
    key: int  # even in first draws, odd in further ones


def first_draw(iteration: int, count: int) -> Draw:
    """The draw for the `count` prompts of an iteration."""
    return Draw(np.arange(iteration * count, (iteration + 1) * count), 2 * iteration)


def redraw(iteration: int, round_: int, rounds: int, count: int, missing: int) -> Draw:
    """The draw for `missing` further prompts, `count` at most, in one of an iteration's rounds."""
    return Draw((iteration * rounds + round_) * count + np.arange(missing), 2 * iteration + 1)


def judged_answers(answered: Answered, arrays: dict, rl, kl_coef: float) -> advantages.Answers:
    """What an estimator of advantages sees. arrays: reference_BL and value_BL, where there are judges."""
    rollouts = answered.rollouts
    return advantages.Answers(
        score_B=_penalised(answered, rl),
        weight_BL=rollouts.weight_BL,
        group=rl.group,
        logprob_BL=rollouts.logprob_BL,
        reference_BL=arrays.get("reference_BL"),
        value_BL=arrays.get("value_BL"),
        kl_coef=kl_coef,
    )


def _part_of(batch: dict[str, np.ndarray]):
    return lambda start, stop: {name: array[:, start:stop] for name, array in batch.items()}


def _penalised(answered: Answered, rl) -> np.ndarray:
    """float32 [B]: what is learnt from, the scores less rl.unended_penalty."""
    return advantages.with_end_penalty(answered.score_B, answered.rollouts.ended_B, rl.unended_penalty)


def _apart(answered: Answered, rl) -> tuple[Answered, Answered]:
    """(groups whose penalised scores differ, groups whose are equal)."""
    equal_B = np.repeat(advantages.has_equal_rewards(_penalised(answered, rl), rl.group), rl.group)
    return answered.rows(np.flatnonzero(~equal_B)), answered.rows(np.flatnonzero(equal_B))
