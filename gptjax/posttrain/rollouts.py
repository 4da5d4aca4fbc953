"""Rollouts: answers that a policy draws to prompts, for reinforcement learning, with what a trainer needs to know of them.

    made = rollouts.sample(params, prompts, graph=graph, sampling=Sampling(temperature=0.7, max_tokens=64), ends=(eot_id,),
                           length=128, group=8, seed=config.train.seed, step=step)

Parameters come as they lie on the mesh in context; nothing goes to disk. Tokens go in and out, and are never made into text
and back. A row's key is a function of (seed, step, number of its prompt, number of its sample) alone: it draws the same tokens
in any company, slot and order, on any mesh, as far as float32 gives the same logits. Rows come and go in slots
(generation/slots.py); a prompt is read once for all samples of it.

Axes: B rows = prompts x group, where row = prompt * group + sample; T tokens of a row, L = T - 1.
"""

import dataclasses
import typing

import numpy as np

from gptjax.errors import UserError
from gptjax.generation import decoding
from gptjax.generation.engine import Engine, Row
from gptjax.generation.slots import Slots
from gptjax.parallel import numerics
from gptjax.posttrain.sampled import Sampling

OVERFLOW = ("refuse", "shorten")  # of a prompt that leaves no room for max_tokens
PLACES_UNIT = 16  # a cache has a multiple of so many places


class Rollouts(typing.NamedTuple):
    """NumPy arrays. A row is its prompt, then its answer, then zeros."""

    token_BT: np.ndarray  # int32
    prompt_length_B: np.ndarray  # int32
    length_B: np.ndarray  # int32, of prompt and answer, its end token included
    weight_BL: np.ndarray  # float32, 1 where the policy drew token t + 1: not a prompt's token, nor a tool's
    logprob_BL: np.ndarray  # float32, of token t + 1 under the distribution it was drawn from; 0 where weight is 0
    ended_B: np.ndarray  # bool, whether the answer has an end token

    @property
    def drawn_tokens(self) -> int:
        return int(self.weight_BL.sum())


@dataclasses.dataclass
class Answer(Row):
    """A row that keeps its end token, and takes turns with a tool."""

    respond: typing.Callable | None = None  # (tokens of the row) -> tokens that follow a turn, or None
    drawn: list[bool] = dataclasses.field(default_factory=list)  # of new: by the policy

    def take(self, token_L, logprob_L, watch=None) -> None:
        self._append(token_L.tolist(), logprob_L.tolist(), drawn=True)
        ended = len(token_L) > 0 and int(token_L[-1]) in self.ends
        reply = self.respond(self.tokens) if ended and self.respond is not None else None
        if ended and reply is None:
            self.finished = "eot"
        elif len(self.new) + len(reply or ()) >= self.settings.max_tokens:
            self.finished = "length"
        elif reply is not None:
            self._append([int(token) for token in reply], [0.0] * len(reply), drawn=False)
            self.altered = True

    def _append(self, tokens: list[int], logprobs: list[float], drawn: bool) -> None:
        self.new += tokens
        self.logprobs += logprobs
        self.drawn += [drawn] * len(tokens)


@numerics.settings()
def sample(
    params,
    prompts,
    *,
    graph,
    sampling: Sampling,
    ends: tuple[int, ...],
    length: int,
    group: int = 1,
    slots: int | None = None,
    seed: int = 0,
    step: int = 0,
    numbers=None,
    respond=None,
    overflow: str = "refuse",
    should_stop=lambda: False,
) -> Rollouts | None:
    """Answers to each prompt, `group` of them, [B, T = length]; None: should_stop(), which is asked now and then, said so.

    prompts: token ids, of unequal length. ends: tokens that end an answer, and are its last. slots: rows at a time; None:
    all. numbers: of the prompts, by which they draw; None: 0, 1, ... respond(tokens of a row) is asked when a row has ended
    its turn: the tokens that it returns follow, and the row goes on; None ends it. sampling.max_tokens counts them too.
    overflow: of a prompt that leaves no room for max_tokens in `length`: refuse, or shorten the answer to the room there is.

    Raises UserError: a prompt that is refused, or that leaves no room for a single token; `length` is beyond the context.
    """
    engine = Engine(graph, params, entries=sampling.entries)
    prompts = [np.asarray(prompt, np.int32) for prompt in prompts]
    check_room(prompts, sampling, length, engine.config.context_length, overflow)
    numbers = range(len(prompts)) if numbers is None else numbers
    rows = [
        _answer(prompt, (seed, step, number, i), sampling, ends, length, respond)
        for prompt, number in zip(prompts, numbers, strict=True)
        for i in range(group)
    ]
    is_whole = _run(engine, rows, min(slots or len(rows), len(rows)), length, should_stop)
    return _arrays(rows, length) if is_whole else None


def row_seed(seed: int, step: int, prompt: int, number: int) -> int:
    """64 bits: of the random numbers of a row. By NumPy's SeedSequence, whose numbers NumPy promises not to change."""
    return int(np.random.SeedSequence((seed, step, prompt, number)).generate_state(1, np.uint64)[0])


def room(prompts, sampling: Sampling, length: int) -> np.ndarray:
    """[prompts] bool: which leave room for max_tokens in rows of so many tokens."""
    return np.array([0 < len(prompt) <= length - sampling.max_tokens for prompt in prompts], bool)


def check_room(prompts, sampling: Sampling, length: int, context_length: int, overflow: str) -> None:
    """Raises UserError: rows are longer than the context, or a prompt leaves too little room."""
    if length > context_length:
        raise UserError(f"rows of {length} tokens are more than model.context_length={context_length}.")
    if overflow not in OVERFLOW:
        raise UserError(f"overflow={overflow!r} is none of: {', '.join(OVERFLOW)}.")
    longest = max((len(prompt) for prompt in prompts), default=1)
    if overflow == "refuse" and not room(prompts, sampling, length).all():
        too_long = int((~room(prompts, sampling, length)).sum())
        raise UserError(
            f"{too_long} of {len(prompts)} prompts leave no room for max_tokens={sampling.max_tokens} in rows of {length}"
            f" tokens (the longest has {longest}); leave them out, or use less of max_tokens."
        )
    if longest >= length:
        raise UserError(f"a prompt of {longest} tokens leaves no room for an answer in rows of {length}; leave it out.")


def difference(logprob_BL, trainer_logprob_BL, weight_BL) -> dict[str, float]:
    """How far the trainer's log-probabilities are from those of the rollout, over the tokens that were drawn, in nats.

    float32 gives 1e-5 at most; bfloat16 rounds logits in the order of its sums, which decode and trainer have not in common.
    logprob_gap and logprob_gap_max: mean and largest distance. sampler_kl: mean of (r - 1) - log r with r = p_trainer /
    p_rollout, an estimate of KL(rollout || trainer) that is never negative (Schulman 2020, k3).
    """
    drawn_BL = np.asarray(weight_BL) > 0
    gap_N = (np.asarray(trainer_logprob_BL, np.float64) - np.asarray(logprob_BL, np.float64))[drawn_BL]
    return {
        "logprob_gap": float(np.abs(gap_N).mean()),
        "logprob_gap_max": float(np.abs(gap_N).max()),
        "sampler_kl": float((np.expm1(gap_N) - gap_N).mean()),
    }


def _answer(prompt, key: tuple[int, ...], sampling: Sampling, ends, length: int, respond) -> Answer:
    limit = min(sampling.max_tokens, length - len(prompt))
    settings = dataclasses.replace(sampling, max_tokens=limit).settings()
    return Answer(prompt, row_seed(*key), settings, stop_ids=tuple(ends), respond=respond)


def _run(engine: Engine, rows: list[Answer], count: int, length: int, should_stop) -> bool:
    """Whether all rows were finished; False: should_stop() said so before. Rows are admitted a quarter of the slots at a time,
    so that many prompts are read by one call, and the host is asked as seldom."""
    places = min(-(-length // PLACES_UNIT) * PLACES_UNIT, engine.config.context_length)
    slots = Slots(engine, count, places=places, logprobs=decoding.DRAWN, penalises=False)
    waiting, quantum = list(reversed(rows)), max(1, count // 4)
    while waiting or slots.rows:
        if waiting and slots.free >= min(quantum, len(waiting)):
            slots.admit(*(waiting.pop() for _ in range(min(slots.free, len(waiting)))))
        slots.step(decoding.COLUMNS, until_free=min(quantum, len(waiting)) if waiting else None)
        if should_stop():
            return False
    return True


def _arrays(rows: list[Answer], length: int) -> Rollouts:
    token_BT = np.zeros((len(rows), length), np.int32)
    weight_BL, logprob_BL = np.zeros((2, len(rows), length - 1), np.float32)
    for b, row in enumerate(rows):
        first, end = len(row.prompt), len(row.tokens)
        token_BT[b, :end] = row.tokens
        weight_BL[b, first - 1 : end - 1] = row.drawn
        logprob_BL[b, first - 1 : end - 1] = row.logprobs
    return Rollouts(
        token_BT=token_BT,
        prompt_length_B=np.array([len(row.prompt) for row in rows], np.int32),
        length_B=np.array([len(row.tokens) for row in rows], np.int32),
        weight_BL=weight_BL,
        logprob_BL=logprob_BL,
        ended_B=np.array([row.finished == "eot" for row in rows]),
    )
