"""`gptjax eval`: a run judged on its held-out text or on others. What is computed is in run_loss.py; here is how it is
asked for, and what is said."""

import dataclasses
import json
import sys

from gptjax import errors, start, terminal
from gptjax.commands import flags, reading, task_tables
from gptjax.errors import UserError
from gptjax.hosts import interrupt


def add_flags(parser) -> None:
    flags.add_run_flag(parser)
    parser.add_argument(
        "--step",
        metavar="N|all|best",
        help="the checkpoint: a step, all, or best, which has the lowest logged loss (default: the newest)",
    )
    reading.add_flags(parser)
    parser.add_argument("--ema", action="store_true", help="use the averaged parameters")
    parser.add_argument(
        "--catch_up",
        action="store_true",
        help="compute evaluations that training missed, and add them to metrics.jsonl",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    task_tables.add_flags(parser)


def run(args) -> int:
    """The exit code: 0, or SAVED_AND_STOPPED after SIGTERM or Ctrl-C."""
    from gptjax.rundir import run_directory

    start.refuse_several("eval")
    start.start_jax(run_directory.open_run(args.workdir).config() if args.catch_up else None)  # as the training did
    with interrupt.StopRequest("stopping after this batch") as stop:  # before jax has threads that a signal could hit
        try:
            _checked(args)
            if args.catch_up:
                _catch_up(args, stop)
            elif args.tasks is not None:
                _evaluate_tasks(args, stop)
            else:
                _evaluate(args, stop)
        except Stopped as error:
            print(f"gptjax: {stop.name}: stopped; {error}", file=sys.stderr)
            return errors.SAVED_AND_STOPPED
    return 0


class Stopped(Exception):
    """The user asked to stop; says what is left of the work."""


def _checked(args) -> None:
    """Raises UserError: flags that do not go together."""
    task_tables.check_flags(args)
    reading.check_flags(args)
    if args.catch_up:
        changing = ("step", "data", "protocol", "stride", "batch_size", "max_tokens", "dtype", "mesh", "ema")
        given = [name for name in changing if getattr(args, name)]
        if given:
            raise UserError(f"--catch_up evaluates as training does; leave out --{given[0]}.")


# ---- evaluating


def _evaluate(args, stop) -> None:
    from gptjax.rundir import run_directory

    steps, why = reading.chosen_steps(run_directory.open_run(args.workdir), args.step, args.ema)
    facts = {"workdir": args.workdir, "chosen": why, "parameters": "ema" if args.ema else "params", "steps": []}
    shared = Shared(args, stop)
    for number in steps:
        results, convention = shared.evaluate(number)
        if not facts["steps"]:
            facts["convention"] = convention
            if not args.json:
                print("\n".join(_explained(args, facts, steps)))
        facts["steps"].append({"step": number, **_as_json(results)})
        if not args.json:
            for name, result in results.items():
                print(f"step {number:>7}  {name + '  ' if len(results) > 1 else ''}{result}", flush=True)
    if args.json:
        only = facts.pop("steps") if len(steps) == 1 and args.step != "all" else None
        print(json.dumps(terminal.finite(facts | (only[0] if only else {})), indent=2))


def _evaluate_tasks(args, stop) -> None:
    from gptjax.rundir import run_directory

    steps, why = reading.chosen_steps(run_directory.open_run(args.workdir), args.step, args.ema)
    left = task_tables.run(args, steps, why, Shared(args, stop).load, lambda: bool(stop))
    if left is not None:
        raise Stopped(f"step {left} is not evaluated")


class Shared:
    """The text and the compiled program, which all steps of a run have in common."""

    def __init__(self, args, stop):
        self._args, self._stop, self._program, self._reading = args, stop, None, None

    def evaluate(self, number: int) -> tuple[dict, dict]:
        """({name: Evaluation or LastWords}, convention) of a step. Raises Stopped."""
        from gptjax.evaluation import run_loss

        args, loaded = self._args, self.load(number)
        data = loaded.config.data
        is_labelled = data.task is not None or data.preferences is not None
        units = reading.EXAMPLE_UNITS if is_labelled else reading.TEXT_UNITS
        with reading.Watch(self._stop, number, units) as watch:
            if args.protocol == "lambada":
                convention = {"protocol": "lambada", "window": loaded.config.model.context_length, "text": args.data}
                results = run_loss.last_words(
                    loaded,
                    args.data,
                    batch_size=args.batch_size,
                    should_stop=watch.should_stop,
                    **reading.how_read(args),
                )
            else:
                if self._reading is None:
                    self._reading = run_loss.reading_of(loaded, args.data, **reading.settings(args))
                convention = self._reading.convention(loaded) | {"protocol": args.protocol}
                options = {"should_stop": watch.should_stop, "report": watch.report}
                results = run_loss.evaluate_on(loaded, self._reading, args.batch_size, **options)
        if results is None:
            raise Stopped(f"step {number} is not evaluated")
        return results, convention

    def load(self, number: int):
        from gptjax.config import config_file
        from gptjax.run import run

        mesh = config_file.parse_mesh(self._args.mesh or reading.COPIES)
        loaded = run.read(self._args.workdir, number, dtype=self._args.dtype, mesh=mesh, ema=self._args.ema)
        self._program = self._program or loaded.program
        return dataclasses.replace(loaded, program=self._program)


# ---- what is said


def _explained(args, facts: dict, steps: list[int]) -> list[str]:
    """What the numbers below are."""
    which = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps"
    averaged = ", averaged parameters" if args.ema else ""
    return [f"{args.workdir}: {which} ({facts['chosen']}){averaged}", *convention_lines(facts["convention"])]


def convention_lines(convention: dict) -> list[str]:
    if "task" in convention:
        sets = "; ".join(f"{name}: {said}" for name, said in convention["examples"].items())
        return [
            f"{sets} ({convention['task']})",
            f"loss in {convention['loss']}; +- is a standard error: {convention['standard_error']}",
        ]
    if convention["protocol"] == "lambada":
        return [
            "predicting the last word of each passage from the text before it (at most the context of"
            f" {convention['window']} tokens); loss in nats/word; +- is a standard error, [] a 95% interval"
        ]
    text = "; ".join(f"{name}: {said}" for name, said in convention["text"].items())
    kind = f"{convention['tokenizer']} tokenizer of {convention['vocab_size']:,}"
    apart = ", documents apart" if convention["documents_apart"] else ""
    rows, of = f"windows of {convention['window']} tokens, stride {convention['stride']}{apart}", "windows"
    if "conversations" in convention:
        rows, of = f"targets of whole conversations, in rows of {convention['window']} tokens", "rows"
    return [text, f"loss in nats/token ({kind}); {rows}; +- is the standard error over {of}, [] a 95% interval"]


def _as_json(results: dict) -> dict:
    """All texts as one, and each of them."""
    whole = results[next(iter(results))].as_dict() if len(results) == 1 or "all" in results else {}
    return whole | {"sources": {name: result.as_dict() for name, result in results.items() if name != "all"}}


# ---- what training missed


def _catch_up(args, stop) -> None:
    from gptjax.rundir import run_directory
    from gptjax.training import catch_up

    directory = run_directory.open_run(args.workdir)
    done = []

    def tell(step: int, prefix: str, results: dict) -> None:
        done.append({"step": step, "parameters": "ema" if prefix else "params", **_as_json(results)})
        if not args.json:
            for name, result in results.items():
                print(f"step {step:>7}  {prefix}{name + '  ' if len(results) > 1 else ''}{result}", flush=True)

    with reading.Watch(stop) as watch:
        found = catch_up.catch_up(directory, tell, watch.should_stop, watch.report)
    if args.json:
        print(json.dumps(terminal.finite({"workdir": args.workdir, "made_up": done, **found._asdict()}), indent=2))
    else:
        print("\n".join(catch_up.said(found)))
    if found.left:
        raise Stopped(f"{len(found.left)} evaluations are still missing; run the same command again to compute them")
