"""Prompts answered by the model in training, and the answers scored: what an iteration learns from, and what evaluations judge.

All processes of a run sample the same answers together; process 0 scores them, for all. What is drawn is a function of
(seed, iteration, number of the prompt, sample) and of the parameters alone.

Axes: B answers, L tokens, T = L + 1.
"""

import contextlib
import dataclasses
import typing
from collections.abc import Callable

import numpy as np

from gptjax.config import rl_checks
from gptjax.models import labelled
from gptjax.posttrain.policy_losses import sampling_of
from gptjax.posttrain.prompts import Prompt
from gptjax.posttrain.rewards import reward
from gptjax.posttrain.rollouts import Rollouts, sample

SLOTS = 64  # answers that are sampled at a time, where rl.slots does not say


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
    """Answers prompts with the parameters it is given. training: a loop.Training. length: tokens of prompt and answer at most;
    row_tokens: T of what it gives, of which the first L fill whole tiles of the attention kernel."""

    training: typing.Any
    length: int
    row_tokens: int
    rewards: tuple[reward.Weighted, ...]
    respond: Callable | None = None  # to an answer that calls a tool

    @classmethod
    def of(cls, training) -> "Answerer":
        """Of a run. Raises UserError: a reward that there is not."""
        session, config = training.session, training.session.config
        length = session.store.longest + config.rl.max_tokens
        unit = labelled.length_unit(session.program.kernel, session.program.mesh)
        row_tokens = -(-(length - 1) // unit) * unit + 1
        rewards = reward.chosen(rl_checks.reward_weights(config.rl.rewards))
        return cls(training, length, row_tokens, rewards, responder(config, session.store.tokenizer))

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
        session, rl = self.training.session, self.training.session.config.rl
        made = sample(
            params,
            [prompt.token_L for prompt in prompts],
            graph=session.program.graph,
            sampling=sampling_of(session.config),
            ends=session.store.stop_ids,
            length=self.length,
            group=group,
            slots=min(rl.slots or SLOTS, group * len(prompts)),
            seed=seed,
            step=iteration,
            numbers=[int(number) for number in number_P],
            respond=self.respond,
            should_stop=self.training.should_stop,
        )
        if made is None:
            return None
        more = ((0, 0), (0, self.row_tokens - self.length))
        wider = {name: np.pad(getattr(made, name), more) for name in ("token_BT", "weight_BL", "logprob_BL")}
        return made._replace(**wider)

    def _scored(self, prompts: list[Prompt], rollouts: Rollouts) -> Answered:
        store, peers = self.training.session.store, self.training.peers
        texts = [text_of(rollouts, b, store) for b in range(len(prompts))]
        values, needs_all = None, any(getattr(each.reward, "reads_model", False) for each in self.rewards)
        if peers.index == 0 or needs_all:
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


def responder(config, tokenizer):
    """Of rl.tools; None: there are none. Raises UserError: no such tool."""
    if config.rl.tools is None:
        return None
    from gptjax.data.chat import chat_format
    from gptjax.posttrain import tools

    names = [name.strip() for name in config.rl.tools.split(",")]
    return tools.responder(names, chat_format(config.data.chat), tokenizer)


def text_of(rollouts: Rollouts, row: int, store) -> str:
    """What the model said last, without the token that ended it: an answer, or where a tool was called, what follows that."""
    stop = rollouts.length_B[row] - bool(rollouts.ended_B[row])
    others_L = np.flatnonzero(rollouts.weight_BL[row, : rollouts.length_B[row] - 1] == 0)  # of the prompt, of tools
    first = others_L[-1] + 2 if len(others_L) else 1
    return store.tokenizer.decode(rollouts.token_BT[row, first:stop])


def _answer(prompt: Prompt, text: str, rollouts: Rollouts, row: int) -> reward.Answer:
    fields = {name: value for name, value in prompt.record.items() if name not in ("prompt", "messages")}
    token_L = rollouts.token_BT[row, rollouts.prompt_length_B[row] : rollouts.length_B[row]]
    return reward.Answer(prompt.messages, text, token_L, bool(rollouts.ended_B[row]), fields, prompt.where)
