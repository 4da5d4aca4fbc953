"""What a step does, as arithmetic on the host: its batch size, the rows it reads (also after a rollback), its learning rate.

Everything is a pure function of the config and the step number, in exact integers and float64, so that a resumed
run, a longer run and a test all agree. Steps count from 0; "after step s" means s + 1 steps are taken.
"""

import bisect
import dataclasses
import functools
import math
import typing

from gptjax.errors import Diverged, UserError, make_chosen, naming, written_call

# Of wsd: how far beyond its start rounding alone can put a position that is at the start of the cooldown: three halves
# of float64's epsilon. The square root would make 1e-8 of it, and a branch would leave its trunk before the cooldown.
# Of a run of fewer than 10^15 positions, every one behind the start is farther.
ROUNDING = 2.0**-51


@functools.lru_cache(maxsize=64)
def _stages_of(train, context_length: int) -> tuple[tuple[int, int, int], ...]:
    """(first step, first row, batch size) of every stage of the batch ramp; the last one has no end.

    The ramp is linear in tokens: each of its stages lasts an equal share of batch_ramp_tokens (GPT-3, section 2.3
    and App. B: from 32k tokens to the full batch over the first 4-12 billion tokens).
    """
    if not train.batch_ramp_start:
        return ((0, 0, train.batch_size),)
    batches = range(train.batch_ramp_start, train.batch_size, train.batch_ramp_increment)
    stages, step, row = [], 0, 0
    for i, batch in enumerate(batches):
        stages.append((step, row, batch))
        end_row = train.batch_ramp_tokens * (i + 1) / len(batches) / context_length
        steps = max(1, math.ceil((end_row - row) / batch))
        step, row = step + steps, row + steps * batch
    return (*stages, (step, row, train.batch_size))


def _stages(config) -> tuple[tuple[int, int, int], ...]:
    return _stages_of(config.train, config.model.context_length)


def _stage_of_step(config, step: int) -> tuple[int, int, int]:
    stages = _stages(config)
    return stages[bisect.bisect_right([first for first, _, _ in stages], step) - 1]


def batch_size(config, step: int) -> int:
    """Sequences in a step."""
    return _stage_of_step(config, step)[2]


def batch_sizes(config) -> set[int]:
    """Of all steps."""
    return {batch for _, _, batch in _stages(config)}


def rows_before(config, step: int) -> int:
    """Sequences read by all steps before this one: the index of its first row."""
    first_step, first_row, batch = _stage_of_step(config, step)
    return first_row + (step - first_step) * batch


def tokens_before(config, step: int) -> int:
    """Tokens trained on by all steps before this one."""
    return rows_before(config, step) * config.model.context_length


def total_steps(config) -> int:
    """Steps of the run, a multiple of train.steps_per_call; a run given in tokens ends when they are reached.

    Raises UserError: it is given in epochs, which are none of these before its text is read.
    """
    if config.train.steps:
        return config.train.steps
    if config.train.epochs is not None:
        raise UserError(
            f"train.epochs={config.train.epochs:g} is a length in epochs of the text, which is not read here; give"
            " train.steps or train.tokens instead."
        )
    return steps_of_rows(config, math.ceil(config.train.tokens / config.model.context_length))


def steps_of_rows(config, rows: int) -> int:
    """Steps that read so many rows or, the last ones, more: a multiple of train.steps_per_call."""
    stages = _stages(config)
    first_step, first_row, batch = stages[max(0, bisect.bisect_left([row for _, row, _ in stages], rows) - 1)]
    steps = first_step + math.ceil((rows - first_row) / batch)
    return -(-steps // config.train.steps_per_call) * config.train.steps_per_call


def run_tokens(config) -> int:
    """Tokens the whole run trains on."""
    return tokens_before(config, total_steps(config))


# ---- learning rates


class Position(typing.NamedTuple):
    """Where an update stands after the warmup."""

    elapsed: float  # part of the whole span, warmup included; 1 from its end on
    progress: float  # part of what follows the warmup, likewise
    warmups: float  # steps or tokens in units of those of the warmup


class Schedule:
    """A learning rate after the warmup. One that is a dataclass has its fields as parameters, which a config gives in
    brackets: optim.schedule="power(exponent=2)". What several schedules have in common are fields of OptimConfig.
    """

    def check(self, optim) -> None:
        """Raises UserError: the rest of an OptimConfig is not what the schedule needs."""

    def fraction(self, at: Position, optim) -> float:
        """Of the peak."""
        raise NotImplementedError


class Constant(Schedule):
    def fraction(self, at: Position, optim) -> float:
        return 1.0


class Cosine(Schedule):
    """Loshchilov and Hutter 2017, without restarts."""

    def fraction(self, at: Position, optim) -> float:
        return _between(0.5 * (1 + math.cos(math.pi * at.progress)), optim)


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    whole: bool = (
        False  # down from the start of the run, not from the end of the warmup, as GPT-1's fine-tuning code has it
    )

    def fraction(self, at: Position, optim) -> float:
        return _between(1 - (at.elapsed if self.whole else at.progress), optim)


class Rsqrt(Schedule):
    """Vaswani et al. 2017, section 5.3: 1/sqrt(steps), equal to the peak at the end of the warmup."""

    def check(self, optim) -> None:
        if not optim.warmup_steps and not optim.warmup_tokens:
            raise UserError("it starts at the end of the warmup; set optim.warmup_steps or optim.warmup_tokens.")

    def fraction(self, at: Position, optim) -> float:
        return max(optim.final_lr_fraction, 1 / math.sqrt(at.warmups))


class Wsd(Schedule):
    """Warmup, stable, decay (Hu et al. 2024), with the 1 - sqrt cooldown of Hägele et al. 2024."""

    def fraction(self, at: Position, optim) -> float:
        past = at.elapsed - (1 - optim.cooldown_fraction)
        if past <= ROUNDING:
            return 1.0
        return _between(1 - math.sqrt(past / optim.cooldown_fraction if at.elapsed < 1 else 1.0), optim)


def _between(shape: float, optim) -> float:
    return optim.final_lr_fraction + (1 - optim.final_lr_fraction) * shape


SCHEDULES = {"constant": Constant, "cosine": Cosine, "linear": Linear, "rsqrt": Rsqrt, "wsd": Wsd}


def check(optim) -> None:
    """Raises UserError: optim.schedule cannot be read, gives a schedule what it does not take, or lacks what it needs.

    A name that is not in the table is said where a rate is asked for: who reads a run needs none.
    """
    if written_call(optim.schedule, SCHEDULES, "optim.schedule")[0] in SCHEDULES:
        with naming(optim.schedule, "optim.schedule"):
            of(optim.schedule).check(optim)


def of(text: str) -> Schedule:
    """The schedule that optim.schedule names. Raises UserError: there is none of the name, or it takes no such parameter."""
    return make_chosen(text, SCHEDULES, "optim.schedule")


def learning_rate(config, step: int) -> float:
    """Of the update that a step makes: the schedule at the position after it, so that no update has rate 0.

    Positions count steps, or tokens if the warmup or the decay is given in tokens.
    Raises UserError for an unknown schedule.
    """
    optim = config.optim
    schedule = of(optim.schedule)
    in_tokens = optim.warmup_tokens is not None or optim.decay_tokens is not None
    position, warmup, end = _positions(config, step + 1, in_tokens)
    if position < warmup:
        return optim.peak_lr * position / warmup
    elapsed = min(1.0, position / end)
    progress = min(1.0, (position - warmup) / (end - warmup)) if end > warmup else 1.0
    return optim.peak_lr * schedule.fraction(Position(elapsed, progress, position / max(warmup, 1)), optim)


def _positions(config, steps_taken: int, in_tokens: bool) -> tuple[int, int, int]:
    """(position, end of the warmup, end of the decay) in steps or in tokens."""
    optim = config.optim
    if not in_tokens:
        return steps_taken, optim.warmup_steps or 0, optim.decay_steps or total_steps(config)
    warmup = optim.warmup_tokens if optim.warmup_tokens is not None else tokens_before(config, optim.warmup_steps or 0)
    decay_steps = optim.decay_steps or total_steps(config)
    end = optim.decay_tokens if optim.decay_tokens is not None else tokens_before(config, decay_steps)
    return tokens_before(config, steps_taken), warmup, end


@dataclasses.dataclass(frozen=True)
class Rewinds:
    """How often a run went back, and the rows of text it left out: windows of (step that goes on behind them, rows)."""

    count: int = 0
    windows: tuple[tuple[int, int], ...] = ()

    def first_row(self, config, step: int) -> int:
        """The first row of text that a step reads."""
        return rows_before(config, step) + sum(rows for first, rows in self.windows if first <= step)

    def read_before(self, config, step: int) -> list[tuple[int, int]]:
        """(first, stop) of all rows that the steps before this one have read."""
        edges = [0, *(first for first, _ in self.windows if 0 < first < step), step]
        pairs = [(self.first_row(config, a), rows_before(config, b) - rows_before(config, a))
                 for a, b in zip(edges, edges[1:])]  # fmt: skip
        return [(first, first + rows) for first, rows in pairs]

    def said(self, config, step: int, error: Diverged) -> str:
        """Of the last rollback, for people."""
        return (
            f"gptjax: {error.why} at step {error.step}: rollback {self.count} of {config.train.max_rollbacks}, to step"
            f" {step}; the next {self.windows[-1][1]:,} rows of text are skipped"
        )

    def as_dict(self) -> dict:
        """For a manifest, or the log; nothing for a run that never went back."""
        return {"rollbacks": self.count, "skipped_rows": [list(w) for w in self.windows]} if self.count else {}

    @classmethod
    def from_dict(cls, data: dict) -> "Rewinds":
        return cls(data.get("rollbacks", 0), tuple((step, rows) for step, rows in data.get("skipped_rows", ())))


NO_REWINDS = Rewinds()
