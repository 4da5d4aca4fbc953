"""`gptjax compare A B`: two runs, or two steps of one, on the same text. The arithmetic is in evaluation/compare.py."""

import json
import sys

from gptjax import errors, start, terminal
from gptjax.commands import reading
from gptjax.errors import UserError
from gptjax.hosts import interrupt


def add_flags(parser) -> None:
    parser.add_argument("a", metavar="A", help="a run directory")
    parser.add_argument("b", metavar="B", help="another run directory, or the same with another --step_b")
    for side in ("a", "b"):
        parser.add_argument(
            f"--step_{side}",
            metavar="N|best",
            help=f"the checkpoint of {side.upper()}: a step, or best (default: the newest)",
        )
    reading.add_flags(parser)
    parser.add_argument("--ema", action="store_true", help="use the averaged parameters of both")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> int:
    """The exit code: 0, or SAVED_AND_STOPPED after SIGTERM or Ctrl-C."""
    start.refuse_several("compare")
    start.start_jax()
    reading.check_flags(args)
    if args.protocol == "lambada":
        raise UserError(
            "a comparison needs the losses of tokens, which --protocol=lambada does not give; leave it out."
        )
    with interrupt.StopRequest("stopping after this batch") as stop:  # before jax has threads that a signal could hit
        (run_a, why_a), (run_b, why_b) = _load(args, args.a, args.step_a), _load(args, args.b, args.step_b)
        from gptjax.evaluation import compare

        with reading.Watch(stop) as watch:
            found = compare.compare(
                run_a,
                run_b,
                args.data,
                batch_size=args.batch_size,
                should_stop=watch.should_stop,
                report=watch.report,
                **reading.settings(args),
            )
        if found is None:
            print(f"gptjax: {stop.name}: stopped before the comparison was done", file=sys.stderr)
            return errors.SAVED_AND_STOPPED
    if args.json:
        sides = {"a": {"workdir": args.a, "step": run_a.step}, "b": {"workdir": args.b, "step": run_b.step}}
        print(json.dumps(terminal.finite(sides | found.as_dict()), indent=2))
    else:
        print(f"A: {args.a}, step {run_a.step} ({why_a})\nB: {args.b}, step {run_b.step} ({why_b})")
        print(found)
    return 0


def _load(args, workdir: str, step: str | None):
    """The Run, and why it is of this step."""
    from gptjax.config import config_file
    from gptjax.run import run
    from gptjax.rundir import run_directory

    if step == "all":
        raise UserError("gptjax compare takes one step of each run; give a number or best.")
    [number], why = reading.chosen_steps(run_directory.open_run(workdir), step, args.ema)
    mesh = config_file.parse_mesh(args.mesh or reading.COPIES)
    return run.read(workdir, number, dtype=args.dtype, mesh=mesh, ema=args.ema), why
