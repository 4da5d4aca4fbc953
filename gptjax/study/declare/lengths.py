"""How long the runs of a study are: tokens from a budget with exact FLOPs, whole steps, trunks and their branches."""

import dataclasses
import math

from gptjax import flops, schedule
from gptjax.errors import UserError, choose
from gptjax.study.declare.recipes import Facts

TOLERANCE = 0.01  # of a budget that a run's FLOPs may miss it by


def facts(study, config, length: dict) -> Facts:
    """What a run may spend. length: {"budget": FLOPs} or {"tokens": ...} or {"tokens_per_param": ...}."""
    per_token = choose(flops.flops_per_token(config.model), study.flops, "flops of a study")
    if "budget" in length:
        return Facts(config, length["budget"], length["budget"] / per_token)
    tokens = length.get("tokens") or length["tokens_per_param"] * flops.parameters(config.model).total
    return Facts(config, tokens * per_token, tokens)


def with_length(study, config, wanted: Facts):
    """config with the whole steps nearest to what is wanted, and evaluations and checkpoints that fall between calls.

    train.steps_per_call becomes a divisor of itself where a run would else miss its budget; in reinforcement learning, where
    it is an iteration, it stays. Raises UserError where single steps are too long for that.
    """
    given = config.train.steps_per_call
    for per_call in _divisors(given) if config.rl.prompts is None else [given]:
        steps = _steps(config, wanted.tokens, per_call)
        timed = _with_cadence(study, config, steps, per_call)
        tokens = schedule.run_tokens(timed)
        if abs(tokens / wanted.tokens - 1) <= TOLERANCE:
            return timed
    # per_call is 1 here, or an iteration.
    enough = 0.5 / TOLERANCE * per_call * config.tokens_per_step * wanted.flops / wanted.tokens
    raise UserError(
        f"{wanted.flops:.3g} FLOPs are {wanted.tokens:,.0f} tokens of a model of {wanted.params:,} parameters, which no"
        f" number of steps of {config.tokens_per_step:,} tokens meets within {TOLERANCE:.0%} (the nearest are"
        f" {tokens:,}); use a smaller batch, or a larger budget: {_rounded_up(enough)} FLOPs or more do for this model."
    )


def _rounded_up(value: float) -> str:
    """To two digits, never to less."""
    unit = 10 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / unit) * unit:.2g}"


def _divisors(n: int) -> list[int]:
    """Largest first."""
    return [k for k in range(n, 0, -1) if n % k == 0]


def _steps(config, tokens: float, per_call: int) -> int:
    """The multiple of per_call nearest to `tokens`, at least one."""
    if config.rl.prompts is not None:  # whose batches all have one size
        return max(1, round(tokens / config.tokens_per_step / per_call)) * per_call
    single = config.replace(train={"steps": None, "tokens": max(1, round(tokens)), "steps_per_call": 1})
    upper = schedule.total_steps(single)
    below = schedule.tokens_before(config, upper - 1)
    exact = upper - 1 + (tokens - below) / (schedule.tokens_before(config, upper) - below)
    return max(1, round(exact / per_call)) * per_call


def _with_cadence(study, config, steps: int, per_call: int):
    def whole(value):
        return None if value is None else -(-value // per_call) * per_call

    every = None if study.evaluations == 1 else whole(-(-steps // study.evaluations))
    return config.replace(
        train={
            "steps": steps,
            "tokens": None,
            "steps_per_call": per_call,
            "log_every": whole(config.train.log_every),
        },
        checkpoint={"every_steps": whole(config.checkpoint.every_steps)},
        eval={"every_steps": every},
    )


def branched(runs: list, cooldown: float, branch) -> list:
    """A trunk and the runs as its branches: each the last `cooldown` of its steps, from the trunk's checkpoint on.

    Raises UserError: their batches, warmups or learning rates differ.
    """
    if not runs:
        return []
    _check_alike(runs)
    per_call = min(run.outline.train.steps_per_call for run in runs)
    calls = [run.outline.train.steps // per_call for run in runs]
    cooled = [max(1, round(cooldown * n)) * per_call for n in calls]
    starts = [n * per_call - k for n, k in zip(calls, cooled)]
    trunk = _trunk(runs, starts, per_call)
    branches = [
        dataclasses.replace(_with_outline(run, _cooled(run.outline, k, per_call)), branch=branch(trunk.name, start))
        for run, k, start in zip(runs, cooled, starts)
    ]
    return [trunk, *branches]


def _trunk(runs: list, starts: list[int], per_call: int):
    """The longest of the runs, at a constant rate until its branch leaves."""
    longest = max(runs, key=lambda run: run.outline.train.steps)
    config = _with_schedule(longest.outline, max(starts), per_call, schedule="constant")
    config = config.replace(checkpoint={"keep_steps": tuple(sorted(set(starts)))}, eval={"every_steps": None})
    factors = longest.factors | {"stage": "trunk"}
    trunk = dataclasses.replace(longest, name=f"trunk-{longest.name}", stage="trunk", factors=factors)
    return _with_outline(trunk, config)


def _with_outline(run, config):
    return dataclasses.replace(run, outline=config, config=None if run.config is None else config)


def _cooled(config, cooldown_steps: int, per_call: int):
    steps = config.train.steps // per_call * per_call
    return _with_schedule(config, steps, per_call, schedule="wsd", cooldown_fraction=cooldown_steps / steps)


def _with_schedule(config, steps: int, per_call: int, **optim):
    optim |= {"decay_steps": None, "decay_tokens": None}
    return config.replace(train={"steps": steps, "steps_per_call": per_call}, optim=optim)


def _check_alike(runs: list) -> None:
    for key in ("train.batch_size", "optim.peak_lr", "optim.warmup_steps"):
        section, _, field = key.partition(".")
        values = {run.name: getattr(getattr(run.outline, section), field) for run in runs}
        if len(set(values.values())) > 1:
            raise UserError(
                f"branches of one trunk need one {key}, but the study's rules give {values}; use rules that do not"
                " depend on the budget, or cooldown=None."
            )
