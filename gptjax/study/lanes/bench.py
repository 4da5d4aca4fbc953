"""What training runs together gains here: `gptjax bench --config=FILE --batched=R`.

Tokens per second of R runs together, of one run on one device as `gptjax train` trains it, and of one that has all
devices (data parallel): with the host's work, the text and the logs, without start, compilation, evaluation and
checkpoints. They take turns, a block of calls each, so that a machine's drift is in all of them; medians of blocks.
"""

import contextlib
import dataclasses
import pathlib
import statistics
import tempfile
import time

import jax

from gptjax import schedule, terminal
from gptjax.config.neutral import neutral
from gptjax.errors import UserError
from gptjax.hosts import watchdog
from gptjax.parallel import numerics
from gptjax.schedule import NO_REWINDS
from gptjax.study.lanes import grouping, together
from gptjax.study.running import layout
from gptjax.training import alone, session
from gptjax.training.feed import Feed

BLOCK_SECONDS = 0.5


@dataclasses.dataclass
class Contestant:
    advance: object  # trains one call
    drain: object  # waits for it
    tokens: int  # of a call, all runs together
    calls: int = 1  # of a block
    rates: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)  # CPU seconds a token

    def block(self) -> float:
        """Seconds of a block."""
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(self.calls):
            self.advance()
        self.drain()
        seconds, tokens = time.perf_counter() - start, self.calls * self.tokens
        self.rates.append(tokens / seconds)
        self.cpu.append((time.process_time() - cpu) / tokens)
        return seconds


def bench(config, runs: int, seconds: float) -> dict:
    """{"together", "alone": {devices: ...}} in tokens/s, and `ratio` of together to the fastest alone. Raises UserError:
    the config's runs cannot train together."""
    if runs < 2:
        raise UserError(f"--batched={runs} is too small; use at least 2 runs.")
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        config = _endless(config)
        dog = stack.enter_context(watchdog.Watchdog(folder, 0, config))
        contestants = {"together": _together(config, runs, folder / "study", dog, stack)}
        devices = jax.devices()
        for count in sorted({1, len(devices)}):
            if config.train.batch_size % count == 0:
                place = folder / f"alone-{count}"
                contestants[f"alone on {count}"] = _alone(config, devices[:count], place, dog, stack)
        for contestant in contestants.values():
            contestant.block()  # compiles
            contestant.calls = max(1, round(BLOCK_SECONDS / contestant.block()))
            contestant.rates, contestant.cpu = [], []
        deadline = time.perf_counter() + 3 * seconds
        while time.perf_counter() < deadline or len(contestants["together"].rates) < 3:
            for contestant in contestants.values():
                contestant.block()
    return _results(config, runs, contestants)


def _results(config, runs: int, contestants: dict[str, Contestant]) -> dict:
    rates = {name: statistics.median(c.rates) for name, c in contestants.items()}
    cpu = {name: statistics.median(c.cpu) for name, c in contestants.items()}
    alone = max(rate for name, rate in rates.items() if name != "together")
    return {
        "runs": runs,
        "devices": len(jax.devices()),
        "device": jax.devices()[0].device_kind,
        "flops_of_a_step": grouping.flops_of_a_step(config),
        "tokens_per_second": rates,
        "cpu_seconds_per_token": cpu,
        "ratio": rates["together"] / alone,
        "blocks": len(contestants["together"].rates),
    }


def _endless(config):
    """config with nothing to do but steps, and more of them than there is time for."""
    kept = {name: getattr(config.train, name) for name in ("batch_size", "microbatches", "steps_per_call", "log_every")}
    config = neutral(config, train=kept | {"steps": config.train.steps_per_call * 10**7, "tensorboard": False})
    opened = session.prepare(config, jax.devices()[:1])
    return opened.config


def _together(config, runs: int, folder: pathlib.Path, dog, stack) -> Contestant:
    study = layout.open_directory(str(folder))
    configs = {
        f"run{i}": config.replace(train={"seed": i}, optim={"peak_lr": config.optim.peak_lr / (1 + i)})
        for i in range(runs)
    }
    together.check(configs)
    joint = together.Together(study, configs, jax.devices()[:runs], stop=False, dog=dog)
    stack.enter_context(joint.opened(list(configs)))
    return Contestant(joint.advance, joint.drain, runs * _tokens_of_a_call(config))


def _alone(config, devices, folder: pathlib.Path, dog, stack) -> Contestant:
    config = config.replace(mesh={"replica": -1, "fsdp": 1})
    run_session = session.prepare(config, devices)
    mesh, loop = run_session.program.mesh, alone.open_loop(run_session, folder, dog, stack)
    feed = stack.enter_context(Feed(run_session, NO_REWINDS, 0))

    def advance():
        with numerics.on_mesh(mesh):
            loop.advance(feed.next())

    return Contestant(advance, loop.recorder.drain, _tokens_of_a_call(config))


def _tokens_of_a_call(config) -> int:
    return config.train.steps_per_call * schedule.batch_size(config, 0) * config.model.context_length


def table(results: dict) -> str:
    """bench() for a person."""
    cpu = results["cpu_seconds_per_token"]
    lines = [
        f"{name:<12} {terminal.si(rate):>7} tokens/s, {cpu[name] * 1e6:.2f} us of CPU a token"
        for name, rate in results["tokens_per_second"].items()
    ]
    return "\n".join(
        [
            f"{results['runs']} runs of {terminal.si(results['flops_of_a_step'])} FLOPs a step on {results['devices']} x"
            f" {results['device']}; medians of {results['blocks']} blocks that take turns",
            *lines,
            f"ratio        {results['ratio']:.2f} times the fastest alone",
        ]
    )
