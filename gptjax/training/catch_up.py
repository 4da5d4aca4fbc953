"""Evaluations that training should have made and did not, because it was preempted then: found, and made up.

Due are the multiples of eval.every_steps up to the newest checkpoint, and the last step of a run that has ended. What is
not in metrics.jsonl is computed as training does it, by the same program on the same rows, and put where it belongs. It
takes a checkpoint of that step: without one the evaluation is lost. Steps after the newest checkpoint are not due: a run
that goes on takes them again. Steps that a branch took over from its trunk were the trunk's to evaluate.
"""

import dataclasses
import typing

import jax

from gptjax import schedule
from gptjax.errors import UserError
from gptjax.evaluation import held_out, run_loss
from gptjax.parallel import numerics
from gptjax.run import run
from gptjax.rundir import metrics, run_directory, runlock
from gptjax.training import branching, program


class Missing(typing.NamedTuple):
    """Pairs of a step and the prefix of its numbers: "", or "ema_" of the averaged parameters."""

    made: list[tuple[int, str]]
    left: list[tuple[int, str]]  # to be made
    lost: list[tuple[int, str]]  # no checkpoint
    differs: str | None = None  # how the machine is another than the run's


def find(directory: run_directory.RunDirectory) -> Missing:
    """What is missing now."""
    config, steps = directory.config(), directory.steps()
    rows = metrics.read_metrics(directory.metrics, "eval") if directory.metrics.exists() else []
    prefixes = [""] if config.optim.ema_decay is None else ["", "ema_"]
    logged = {(row["step"], prefix) for row in rows for prefix in prefixes if f"{prefix}loss" in row}
    first, _ = branching.own_steps(directory)
    due = [step for step in due_steps(config, steps) if step >= first]
    missing = [(step, prefix) for step in due for prefix in prefixes if (step, prefix) not in logged]
    left = [pair for pair in missing if pair[0] in steps]
    return Missing([], left, [pair for pair in missing if pair[0] not in steps])


def due_steps(config, steps: list[int]) -> list[int]:
    """Steps at which a run that has these checkpoints has had to evaluate."""
    reached, last, every = max(steps, default=0), schedule.total_steps(config), config.eval.every_steps
    due = set() if every is None else set(range(every, min(reached, last) + 1, every))
    return sorted(due | ({last} if reached >= last else set()))


def catch_up(directory, tell=lambda step, prefix, results: None, should_stop=lambda: False, report=None) -> Missing:
    """Makes up what is missing and has a checkpoint, until should_stop(). tell(step, prefix, results) of each.

    Each is written when it is made: whoever is stopped goes on with the next one. Raises UserError: the run is being
    trained, or its text cannot be had.
    """
    with runlock.hold(directory.path):
        found = find(directory)
        if not found.left:
            return found
        session = _Session(directory)
        options = {"should_stop": should_stop} | ({} if report is None else {"report": report})
        made = []
        for number, prefix in found.left:
            results = session.evaluate(number, prefix, options)
            if results is None:
                break
            metrics.insert(directory.metrics, "eval", number, **held_out.logged(prefix, results), made_up=True)
            made.append((number, prefix))
            tell(number, prefix, results)
    return Missing(made, found.left[len(made) :], found.lost, session.differs)


class _Session:
    """The program that the run's training evaluates with, and its held-out rows."""

    def __init__(self, directory):
        self._directory, self._rows, self.differs = directory, None, None
        self._config = directory.config()
        try:
            self._program = program.of(self._config)
        except UserError:
            self._program, n = None, len(jax.devices())
            self.differs = f"the run's mesh does not fit the {n} device{'s' * (n > 1)} here"

    def evaluate(self, number: int, prefix: str, options: dict) -> dict | None:
        """As training would have logged it. None if should_stop() said so."""
        sizes = {"replica": -1} if self._program is None else dict(self._program.mesh.shape)
        loaded = run.read(self._directory.path, number, mesh=sizes, ema=bool(prefix))
        if self._program is None:
            self._program = loaded.program
        if self._rows is None:
            self._rows = run_loss.reading_of(loaded).rows
        params = jax.device_put(loaded.params, self._program.param_sharding)
        loaded = dataclasses.replace(loaded, program=self._program, params=params)
        batch = run_loss.batch_rows(loaded, None) if self.differs else self._config.eval_batch_size
        with numerics.on_mesh(loaded.mesh):
            return run_loss.evaluator(self._config.data)(loaded.program, params, self._rows, batch, **options)


def said(found: Missing) -> list[str]:
    """Lines for the user."""
    if not (found.made or found.left or found.lost):
        return ["metrics.jsonl has every evaluation that was due"]
    lines = []
    if found.made:
        lines.append(f"computed and added to metrics.jsonl: {_steps(found.made)}")
    if found.differs:
        lines.append(f"{found.differs}: these numbers may differ from those of training in their last digits")
    if found.left:
        lines.append(f"still missing: {_steps(found.left)}")
    if found.lost:
        lines.append(f"cannot be computed, because the checkpoint is gone: {_steps(found.lost)}")
    return lines


def _steps(pairs) -> str:
    return ", ".join(f"step {step}{' (ema)' * bool(prefix)}" for step, prefix in pairs)
