"""`gptjax bench --rl`: iterations of GRPO, beside TRL's GRPOTrainer on torch and, with --tunix, tunix's GRPOLearner.

All sides have the same shape, float32, the same prompts, answers of the same distribution of lengths (random parameters of
their own, which end an answer as rarely), groups, updates and AdamW, and take turns, an iteration each: answers to the
prompts, rewards, advantages, updates. Ours is the loop of a run with its log; a reward that costs nothing is that of all.
A first iteration of each, which compiles, is left out. Only ratios mean something on a shared machine.
"""

import contextlib
import dataclasses
import pathlib
import statistics
import tempfile
import time
import typing

import jax

from gptjax.config import rl_checks
from gptjax.config.fields import CheckpointConfig, EvalConfig, TrainConfig
from gptjax.errors import UserError
from gptjax.hosts import watchdog
from gptjax.parallel import numerics
from gptjax.training import alone, losses, session

KEPT = ("batch_size", "microbatches", "steps_per_call", "loss", "vocab_chunks", "seed")  # of train
PROMPTS = 512  # of a run, which the other sides go through again and again


class Iteration(typing.NamedTuple):
    seconds: float
    of_answers: float | None  # seconds of it; None: the side does not tell


def resolved(config):
    """The config that is measured: as given, but in float32, without dropout, from random parameters, and with nothing beside
    its iterations. Raises UserError: it is no GRPO."""
    if config.rl.prompts is None or not config.train.loss.startswith("grpo") or config.rl.advantage != "group":
        raise UserError(
            "--rl measures GRPO; give a config with rl.prompts, train.loss='grpo' and rl.advantage='group', such as"
            " configs/grpo_quickstart.py."
        )
    kept = {name: getattr(config.train, name) for name in KEPT}
    dropouts = dict.fromkeys(("embed_dropout", "attention_dropout", "residual_dropout"), 0.0)
    of_run = {"steps": config.train.steps_per_call * 10**7, "log_every": config.train.steps_per_call}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype="float32", **dropouts),
        optim=dataclasses.replace(config.optim, schedule="constant", warmup_steps=None, warmup_tokens=None),
        train=TrainConfig(**kept, **of_run, tensorboard=False),
        checkpoint=CheckpointConfig(every_steps=None),
        eval=EvalConfig(every_steps=None),
    )


class Ours:
    """Iterations of a run. `step` returns the seconds that the answers took."""

    def __init__(self, config, stack: contextlib.ExitStack):
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dog = stack.enter_context(watchdog.Watchdog(folder, 0, config))
        self.session = session.prepare(config)
        self._loop = alone.open_loop(self.session, folder / "run", dog, stack)
        with numerics.on_mesh(self.session.program.mesh):
            self._feed = stack.enter_context(self.session.feed(self._loop))

    def step(self) -> float:
        with numerics.on_mesh(self.session.program.mesh):
            self._loop.recorder.throughput.take()
            inputs = self._feed.next()
            _, seconds = self._loop.recorder.throughput.take()
            self._loop.advance(inputs)
            jax.block_until_ready(self._loop.state)
        return seconds["seconds/rollouts"]

    def prompt_ids(self) -> list[list[int]]:
        return [prompt.token_L.tolist() for prompt in self.session.store.examples.train.prompts[:PROMPTS]]


def bench(config, seconds: float, tunix: str | None = None) -> dict:
    """Seconds of an iteration and of its answers on each side, and their ratios to ours. tunix: a Python that has google-tunix.

    Raises UserError: config is no GRPO, a library is missing, or has no such model.
    """
    config = resolved(config)
    with contextlib.ExitStack() as stack:
        ours = Ours(config, stack)
        config = ours.session.config
        sides = {"ours": ours, "TRL": _theirs(config, ours, stack)}
        if tunix is not None:
            sides["tunix"] = _tunix(config, ours, tunix, stack)
        taken = _in_turn(sides, seconds)
    return {
        "answers": rl_checks.answers_of(config),
        "max_tokens": config.rl.max_tokens,
        "steps": config.train.steps_per_call,
        "iterations": len(taken["ours"]),
        "sides": {name: _summary(taken["ours"], iterations) for name, iterations in taken.items()},
    }


def _summary(ours: list[Iteration], theirs: list[Iteration]) -> dict[str, float | None]:
    """Medians of a side's seconds, and of the ratios of neighbouring iterations to ours; None: it does not tell."""
    seconds = statistics.median(each.seconds for each in theirs)
    values = {"seconds": seconds, "ratio": statistics.median(b.seconds / a.seconds for a, b in zip(ours, theirs))}
    if theirs[0].of_answers is None:
        return values | {"seconds_of_answers": None, "ratio_of_answers": None}
    return values | {
        "seconds_of_answers": statistics.median(each.of_answers for each in theirs),
        "ratio_of_answers": statistics.median(b.of_answers / a.of_answers for a, b in zip(ours, theirs)),
    }


def _theirs(config, ours: Ours, stack: contextlib.ExitStack):
    from gptjax.diagnostics import bench_rl_trl

    side = bench_rl_trl.Theirs(
        config, ours.prompt_ids(), losses.chosen(config.train.loss), ours.session.store.stop_ids[0]
    )
    stack.callback(side.close)
    return side


def _tunix(config, ours: Ours, python: str, stack: contextlib.ExitStack):
    from gptjax.diagnostics import bench_rl_tunix

    side = bench_rl_tunix.Theirs(
        config, ours.prompt_ids(), losses.chosen(config.train.loss), ours.session.store.stop_ids[0], python
    )
    stack.callback(side.close)
    return side


def _in_turn(sides: dict, seconds: float) -> dict[str, list[Iteration]]:
    """Iterations of each side, one after the other, at least three of each."""
    for side in sides.values():
        side.step()
    taken, deadline = {name: [] for name in sides}, time.perf_counter() + seconds
    while len(taken["ours"]) < 3 or time.perf_counter() < deadline:
        for name, side in sides.items():
            began = time.perf_counter()
            of_answers = side.step()
            taken[name].append(Iteration(time.perf_counter() - began, of_answers))
    return taken


def table(results: dict) -> str:
    """bench() for a person."""
    lines = [
        f"GRPO, {results['answers']} answers of up to {results['max_tokens']} tokens and {results['steps']} updates an iteration,"
        f" float32; medians of {results['iterations']} iterations that take turns"
    ]
    for name, side in results["sides"].items():
        line = f"{name:<6} {side['seconds'] * 1e3:8.1f} ms an iteration"
        if side["seconds_of_answers"] is not None:
            line += f", {side['seconds_of_answers'] * 1e3:.1f} ms of them the answers"
        if name != "ours":
            line += f"; ours is {side['ratio']:.2f} times as fast"
            if side["ratio_of_answers"] is not None:
                line += f", its answers {side['ratio_of_answers']:.2f} times"
        lines.append(line)
    return "\n".join(lines)
