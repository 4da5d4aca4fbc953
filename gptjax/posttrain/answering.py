"""Prompts answered by the model in training, and the answers scored: what an iteration learns from, and what evaluations judge.

All processes of a run sample the same answers together; process 0 scores them, for all. What is drawn is a function of
(seed, iteration, number of the prompt, sample) and of the parameters alone.

Axes: B answers, L tokens, T = L + 1.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Callable

import jax
import numpy as np

from gptjax.config import rl_checks
from gptjax.generation.engine import Engine, Row
from gptjax.posttrain.policy_losses import sampling_of
from gptjax.posttrain.prompts import Prompt
from gptjax.posttrain.rewards import reward


class Rollouts(typing.NamedTuple):
    token_BT: np.ndarray
    prompt_length_B: np.ndarray
    length_B: np.ndarray
    weight_BL: np.ndarray
    logprob_BL: np.ndarray
    ended_B: np.ndarray


class Answered(typing.NamedTuple):
    """Answers to prompts; those to one prompt are neighbours."""

    prompts: list[Prompt]  # of each answer
    texts: list[str]
    rollouts: Rollouts
    reward_B: dict[str, np.ndarray]  # float32, of each reward by name, before its weight
    score_B: np.ndarray  # float32: their weighted sum

    def rows(self, index_B) -> "Answered":
        """Some of them."""
        index_B = np.asarray(index_B)
        return Answered(
            [self.prompts[i] for i in index_B],
            [self.texts[i] for i in index_B],
            Rollouts(*(array[index_B] for array in self.rollouts)),
            {name: value_B[index_B] for name, value_B in self.reward_B.items()},
            self.score_B[index_B],
        )


def joined(parts: list[Answered]) -> Answered:
    """Answers of several, in order."""
    if len(parts) == 1:
        return parts[0]
    return Answered(
        [prompt for part in parts for prompt in part.prompts],
        [text for part in parts for text in part.texts],
        Rollouts(*(np.concatenate(arrays) for arrays in zip(*(part.rollouts for part in parts)))),
        {name: np.concatenate([part.reward_B[name] for part in parts]) for name in parts[0].reward_B},
        np.concatenate([part.score_B for part in parts]),
    )


@dataclasses.dataclass(frozen=True)
class Answerer:
    """Answers prompts with the parameters it is given. training: a loop.Training. row_tokens: T of what it gives."""

    training: typing.Any
    row_tokens: int
    rewards: tuple[reward.Weighted, ...]

    @classmethod
    def of(cls, training) -> "Answerer":
        """Of a run. Raises UserError: a reward that there is not."""
        session = training.session
        config = session.config
        length = min(config.model.context_length, session.store.longest + config.rl.max_tokens)
        return cls(training, length + 1, reward.chosen(rl_checks.reward_weights(config.rl.rewards)))

    def __call__(
        self,
        params,
        prompts: list[Prompt],
        number_P,
        *,
        group: int,
        seed: int,
        iteration: int,
        paused: Callable = lambda what: contextlib.nullcontext(),
    ) -> Answered | None:
        """group answers to each prompt; None: asked to stop meanwhile. number_P: of the prompts in the run. paused(what): a
        `with` for what takes time."""
        with paused("rollouts"), self.training.watchdog.doing("sampling answers"):
            rollouts = self._sampled(params, prompts, number_P, group, seed, iteration)
        if rollouts is None:
            return None
        of_each = [prompt for prompt in prompts for _ in range(group)]
        with paused("scoring"), self.training.watchdog.doing("scoring"):
            return self._scored(of_each, rollouts)

    def _sampled(self, params, prompts, number_P, group: int, seed: int, iteration: int) -> Rollouts | None:
        session = self.training.session
        config, store = session.config, session.store
        engine = Engine(session.program.graph, params, entries=store.tokenizer.vocab_size)
        sampling = sampling_of(config)
        rows = [
            Row(prompt.token_L, _seed(seed, iteration, number, sample), sampling.settings(), None, store.stop_ids)
            for prompt, number in zip(prompts, number_P)
            for sample in range(group)
        ]
        engine.run(rows)
        return _as_rollouts(rows, self.row_tokens, store.stop_ids[0])

    def _scored(self, prompts: list[Prompt], rollouts: Rollouts) -> Answered:
        store, peers = self.training.session.store, self.training.peers
        texts = [text_of(rollouts, b, store) for b in range(len(prompts))]
        values = None
        if peers.index == 0:
            answers = [_answer(prompt, text, rollouts, b) for b, (prompt, text) in enumerate(zip(prompts, texts))]
            scores = reward.scored(answers, self.rewards)
            values = [{name: value_B.tolist() for name, value_B in scores.by_name.items()}, scores.total_B.tolist()]
        by_name, total = peers.tell("rewards", values)  # float32 in JSON, to the bit
        return Answered(
            prompts,
            texts,
            rollouts,
            {name: np.array(value, np.float32) for name, value in by_name.items()},
            np.array(total, np.float32),
        )


def text_of(rollouts: Rollouts, row: int, store) -> str:
    """An answer without the token that ended it."""
    first, stop = rollouts.prompt_length_B[row], rollouts.length_B[row] - bool(rollouts.ended_B[row])
    return store.tokenizer.decode(rollouts.token_BT[row, first:stop])


def _answer(prompt: Prompt, text: str, rollouts: Rollouts, row: int) -> reward.Answer:
    fields = {name: value for name, value in prompt.record.items() if name not in ("prompt", "messages")}
    token_L = rollouts.token_BT[row, rollouts.prompt_length_B[row] : rollouts.length_B[row]]
    return reward.Answer(prompt.messages, text, token_L, bool(rollouts.ended_B[row]), fields, prompt.where)


def _seed(*numbers: int) -> int:
    from gptjax.data.rows.hashing import draw

    return int(draw(np.zeros(1, np.uint64), *numbers)[0] % 2**32)


def _as_rollouts(rows, row_tokens: int, end_id: int) -> Rollouts:
    B, L = len(rows), row_tokens - 1
    token_BT, weight_BL = np.zeros((B, L + 1), np.int32), np.zeros((B, L), np.float32)
    length_B, prompt_B, ended_B = np.zeros(B, np.int32), np.zeros(B, np.int32), np.zeros(B, bool)
    for b, row in enumerate(rows):
        ended_B[b] = row.finished == "eot"
        ids = np.concatenate([row.tokens, [end_id] * int(ended_B[b])])
        token_BT[b, : len(ids)], length_B[b], prompt_B[b] = ids, len(ids), len(row.prompt)
        weight_BL[b, prompt_B[b] - 1 : length_B[b] - 1] = 1
    return Rollouts(token_BT, prompt_B, length_B, weight_BL, np.zeros((B, L), np.float32), ended_B)
