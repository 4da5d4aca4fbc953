"""The checkpoint of another run that a config field names, and what its parameters are: what starting.py and critic_start.py
take of runs. Raises UserError where it is not what is expected."""

from gptjax.checkpoints import base
from gptjax.config import bounds
from gptjax.errors import UserError
from gptjax.evaluation import judging
from gptjax.rundir import run_directory
from gptjax.storage import folder_kinds
from gptjax.training.branching import Origin

SHOWN = 5  # names of parameters in a line


def refused(origin: str, why: str, mend: str) -> UserError:
    return UserError(f"this run cannot start from {origin}: {why}; {mend}.")


def run_of(key: str, name: str) -> run_directory.RunDirectory:
    """The run that a config field names. Raises UserError: there is none."""
    run = run_directory.open_run(name)
    if folder_kinds.kind_of(run.path) != folder_kinds.RUN:
        raise UserError(
            f"{key}={name!r} is not a run directory: it is {folder_kinds.said(run.path)}; give that of"
            " a run, or of a model that gptjax import has made one of."
        )
    return run


def origin_of(key: str, name: str, step: str | None, directory) -> Origin:
    """The checkpoint of a run that a config field names. step: as train.start_step. Raises UserError: there is none."""
    if run_directory.open_run(name).path == directory.path:
        raise UserError(f"{key}={name!r} is --workdir itself; give another run, or None.")
    run = run_of(key, name)
    try:
        run.config()  # these files are of one run
        run.read_tokenizer()
    except UserError as error:
        raise refused(name, str(error).rstrip("."), "repair that run") from error
    steps = run.steps()
    if not steps:
        raise refused(name, "it has no checkpoint", "train it further, or give another run")
    if step is None:
        return Origin(run, steps[-1])
    if step == "best":
        return Origin(run, best_step(run, name))
    number = bounds.whole_number(step)
    if number not in steps:
        there = ", ".join(map(str, steps))
        raise refused(name, f"it has no checkpoint of train.start_step={number}", f"there are: {there}")
    return Origin(run, number)


def check_step(key: str, name: str, run: run_directory.RunDirectory, step: int | None) -> None:
    """Raises UserError: the run that a field names has no checkpoint, or none of this step; None: any."""
    steps = run.steps()
    if not steps or (step is not None and step not in steps):
        wanted = "" if step is None else f" of step {step}"
        there = f"; there are: {', '.join(map(str, steps))}" if steps else ""
        raise UserError(f"{key}={name!r} has no checkpoint{wanted}{there}; give another run or step.")


def best_step(run: run_directory.RunDirectory, name: str) -> int:
    """The step of the lowest held-out loss that was logged, or of the best by checkpoint.keep_best of that run, of those
    with a checkpoint. Raises UserError: none of them has one."""
    metric = run.best_metric()
    losses = run.held_out_losses(metric)
    if not losses:
        raise refused(
            name,
            "train.start_step='best' needs an evaluation on held-out text, and none of its checkpoints has one",
            "give a step, or None",
        )
    return judging.best_step(metric, losses)


def shapes_of(origin: Origin) -> dict[str, tuple[int, ...]]:
    """Of the other run's parameters; {}: its checkpoint is of schema 1, which does not say."""
    known = base.arrays(origin.run.checkpoints / str(origin.step)) or {}
    return {name.removeprefix("params/"): tuple(about["shape"]) for name, about in known.items() if _is_param(name)}


def _is_param(name: str) -> bool:
    return name.startswith("params/")


def listed(names: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
