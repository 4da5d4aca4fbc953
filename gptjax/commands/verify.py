"""`gptjax verify`: whether what a run directory holds is what was written into it. Exit code 1 if anything is not."""

import dataclasses
import json
import os

from gptjax import start
from gptjax.commands import flags
from gptjax.config import bounds
from gptjax.errors import UserError


def add_flags(parser) -> None:
    flags.add_run_flag(parser)
    parser.add_argument(
        "--step", default="all", metavar="N", help="check the checkpoint of this step only (default: all)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> int:
    """0: all is well; 1: something is damaged, unfinished or missing.

    On the CPU, whatever else is there: another process may have the accelerator.
    """
    start.refuse_several("verify")
    os.environ["JAX_PLATFORMS"] = "cpu"
    start.start_jax()
    step = None if args.step == "all" else _number(args.step)
    from gptjax.rundir import run_directory, verification

    directory = run_directory.open_run(args.workdir)
    outcomes = verification.verify(directory, step, report=lambda o: None if args.json else print(_line(o), flush=True))
    good = all(outcome.good for outcome in outcomes)
    if args.json:
        found = [dataclasses.asdict(outcome) | {"good": outcome.good} for outcome in outcomes]
        print(json.dumps({"workdir": args.workdir, "good": good, "found": found}, indent=2))
    else:
        print(_verdict(outcomes))
    return 0 if good else 1


def _number(text: str) -> int:
    number = bounds.whole_number(text)
    if number is None:
        raise UserError(f"--step={text} is not a step; give a number, or all.")
    return number


def _line(outcome) -> str:
    name = outcome.name if outcome.step is None else f"step {outcome.name}"
    size = f"{outcome.checked_bytes / 1e6:,.1f} MB of arrays" if outcome.checked_bytes else ""
    return f"{name:<20} {outcome.state:<11} {'; '.join(filter(None, [*outcome.reasons, size]))}".rstrip()


def _verdict(outcomes) -> str:
    bad = [outcome.name for outcome in outcomes if not outcome.good]
    steps = [outcome for outcome in outcomes if outcome.step is not None]
    newest = max((outcome.step for outcome in steps if outcome.good), default=None)
    said = f"these are not as they were written: {', '.join(bad)}" if bad else "all files are as they were written"
    if not bad and any(outcome.state == "unverified" for outcome in steps):
        said = "no fault was found, but steps without checksums cannot be verified"
    return f"{said}; " + (
        "no checkpoint is valid" if newest is None else f"the newest valid checkpoint is that of step {newest}"
    )
