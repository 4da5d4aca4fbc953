"""`gptjax eval`: a run judged on its held-out text or on others. What is computed is in run_loss.py; here is how it is
asked for, and what is said."""

import dataclasses
import json
import math
import sys
import time

from gptjax import errors, terminal
from gptjax.commands import task_tables
from gptjax.config import bounds
from gptjax.errors import UserError
from gptjax.hosts import interrupt
from gptjax.rundir import metrics

QUIET_SECONDS = 2.0  # of an evaluation, before a progress line is shown
COPIES = "replica=-1"  # the mesh where no other is given: the model on each device


def add_flags(parser) -> None:
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run directory, local or gs://")
    parser.add_argument(
        "--step",
        metavar="N|all|best",
        help="of the checkpoint: a number, all, or the best evaluated (default: the newest)",
    )
    add_reading_flags(parser)
    parser.add_argument("--ema", action="store_true", help="use the averaged parameters")
    parser.add_argument(
        "--catch_up", action="store_true", help="make up evaluations that training missed, into metrics.jsonl"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable")
    task_tables.add_flags(parser)


def add_reading_flags(parser) -> None:
    """What `gptjax compare` takes too."""
    parser.add_argument(
        "--data",
        action="append",
        metavar="[NAME=]SPEC",
        help="instead of the run's held-out text: KIND:PATH (text, jsonl, parquet ...), a prepared folder (its held-out"
        " split), hf:NAME@SPLIT; may be given several times",
    )
    parser.add_argument("--protocol", metavar="NAME", help="of --data: wikitext2, wikitext103, ptb, lambada")
    parser.add_argument(
        "--stride", type=int, metavar="N", help="tokens between two windows' starts (default: the context length)"
    )
    parser.add_argument("--batch_size", type=int, metavar="N", help="windows at once (default: as in training)")
    parser.add_argument(
        "--max_tokens", metavar="N|all", help="of each text (default: all; of the run's own text eval.max_tokens)"
    )
    parser.add_argument("--dtype", metavar="NAME", help="float32 or bfloat16 (default: as in training)")
    parser.add_argument("--mesh", metavar="AXES", help="such as fsdp=4,tensor=2 (default: a copy on each device)")
    parser.add_argument("--text_field", metavar="NAME", help="of jsonl, Parquet, TFDS: holds the text")
    parser.add_argument("--separator", metavar="LINE", help="a line between the documents of a text file")


def config_to_start_with(args):
    """What JAX has to know of the run before it starts, so that an evaluation made up is the one that was missed."""
    from gptjax.rundir import run_directory

    return run_directory.open_run(args.workdir).config() if args.catch_up else None


def run(args) -> int:
    """The exit code: 0, or SAVED_AND_STOPPED after SIGTERM or Ctrl-C."""
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
    check_reading_flags(args)
    if args.catch_up:
        changing = ("step", "data", "protocol", "stride", "batch_size", "max_tokens", "dtype", "mesh", "ema")
        given = [name for name in changing if getattr(args, name)]
        if given:
            raise UserError(f"--catch_up evaluates as training would have; leave out --{given[0]}.")


def check_reading_flags(args) -> None:
    from gptjax.evaluation import run_loss

    run_loss.check_protocol(args.protocol)
    for name in ("batch_size", "stride"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)} is too small; use at least 1.")
    if (args.text_field or args.separator) and not args.data:
        raise UserError(f"--{'text_field' if args.text_field else 'separator'} says how --data is read; give both.")
    if args.protocol == "lambada" and (args.stride or args.max_tokens):
        raise UserError("--protocol=lambada scores last words; leave out --stride and --max_tokens.")
    if args.protocol is not None and not args.data:
        raise UserError(f"--protocol={args.protocol} is for a data set; give it with --data.")


# ---- what is read


def reading_settings(args) -> dict:
    """Of evaluation.reading_of."""
    settings = {"protocol": args.protocol, "stride": args.stride, **how_read(args)}
    if args.max_tokens is None:
        return settings
    if args.max_tokens == "all":
        return settings | {"max_tokens": None}
    number = bounds.whole_number(args.max_tokens)
    if not number:
        raise UserError(f"--max_tokens={args.max_tokens}: expected a number of tokens, or all.")
    return settings | {"max_tokens": number}


def how_read(args) -> dict:
    return {name: getattr(args, name) for name in ("text_field", "separator") if getattr(args, name) is not None}


def chosen_steps(directory, which: str | None, ema: bool) -> tuple[list[int], str]:
    """Steps, and why they are: of --step. Raises UserError: there is no such step."""
    directory.config()  # says what is wrong with a path that is none of a run
    steps = directory.steps()
    if not steps:
        raise UserError(f"--workdir={directory.path} has no checkpoint yet; train it further.")
    if which is None:
        return steps[-1:], "the newest"
    if which == "all":
        return steps, "all with a checkpoint"
    if which == "best":
        return _best(directory, steps, "ema_loss" if ema else "loss")
    if (number := bounds.whole_number(which)) is None:
        raise UserError(f"--step={which}: expected a number, all or best.")
    if number not in steps:
        raise UserError(
            f"--workdir={directory.path} has no checkpoint of step {which}; there are: {', '.join(map(str, steps))}."
        )
    return [number], "as asked"


def _best(directory, steps: list[int], name: str) -> tuple[list[int], str]:
    rows = metrics.read_metrics(directory.metrics, "eval") if directory.metrics.exists() else []
    losses = {row["step"]: float(row[name]) for row in rows if name in row and row["step"] in steps}
    losses = {step: loss for step, loss in losses.items() if math.isfinite(loss)}
    if not losses:
        raise UserError(
            f"--step=best: metrics.jsonl has no {name} of a step with a checkpoint ({', '.join(map(str, steps))});"
            " give a step, or make evaluations up with --catch_up."
        )
    best = min(losses, key=lambda step: (losses[step], step))
    among = f"of {len(losses)} evaluated {'steps' if len(losses) > 1 else 'step'} with a checkpoint"
    return [best], f"the lowest held-out {name} in metrics.jsonl, {losses[best]:.4f}, {among}"


# ---- evaluating


def _evaluate(args, stop) -> None:
    from gptjax.rundir import run_directory

    steps, why = chosen_steps(run_directory.open_run(args.workdir), args.step, args.ema)
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

    steps, why = chosen_steps(run_directory.open_run(args.workdir), args.step, args.ema)
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
        with Watch(self._stop, number) as watch:
            if args.protocol == "lambada":
                convention = {"protocol": "lambada", "window": loaded.config.model.context_length, "text": args.data}
                results = run_loss.last_words(
                    loaded, args.data, batch_size=args.batch_size, should_stop=watch.should_stop, **how_read(args)
                )
            else:
                if self._reading is None:
                    self._reading = run_loss.reading_of(loaded, args.data, **reading_settings(args))
                convention = self._reading.convention(loaded) | {"protocol": args.protocol}
                options = {"should_stop": watch.should_stop, "report": watch.report}
                results = run_loss.evaluate_on(loaded, self._reading, args.batch_size, **options)
        if results is None:
            raise Stopped(f"step {number} is not evaluated")
        return results, convention

    def load(self, number: int):
        from gptjax.config import config_file
        from gptjax.run import run

        mesh = config_file.parse_mesh(self._args.mesh or COPIES)
        loaded = run.load(self._args.workdir, number, dtype=self._args.dtype, mesh=mesh, ema=self._args.ema)
        self._program = self._program or loaded.program
        return dataclasses.replace(loaded, program=self._program)


class Watch:
    """The progress line of an evaluation, on stderr, and the wish to stop. Used in a `with`."""

    def __init__(self, stop, step: int | None = None):
        self._stop, self._began, self._step = stop, time.monotonic(), step
        self._progress = terminal.Progress(sys.stderr)
        self._since = {}  # of each text: when its first batch was done, and what was in it

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *error) -> None:
        self._progress.close()

    def should_stop(self) -> bool:
        return bool(self._stop)

    def report(self, name: str, num_rows: int, rows_done: int, nats: float, tokens: float) -> None:
        now = time.monotonic()
        began, rows_before, tokens_before = self._since.setdefault(name, (now, rows_done, tokens))
        if now - self._began < QUIET_SECONDS or not tokens:
            return
        line = progress_line(name, num_rows, rows_done, nats, tokens, (now - began, rows_before, tokens_before))
        self._progress.update(line if self._step is None else f"step {self._step}  {line}")


def progress_line(name: str, num_rows: int, rows_done: int, nats: float, tokens: float, since) -> str:
    """since: seconds, and the windows and tokens that were done before them: the first batch waits for the compiler."""
    seconds, rows_before, tokens_before = since
    line = f"{name}: {rows_done:,} of {num_rows:,} windows  loss {nats / tokens:.4f}"
    if rows_done == rows_before or not seconds:
        return line
    left = (num_rows - rows_done) * seconds / (rows_done - rows_before)
    return f"{line}  {terminal.si((tokens - tokens_before) / seconds)} tok/s  left {terminal.duration(left)}"


# ---- what is said


def _explained(args, facts: dict, steps: list[int]) -> list[str]:
    """What the numbers below are."""
    which = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps"
    averaged = ", averaged parameters" if args.ema else ""
    return [f"{args.workdir}: {which} ({facts['chosen']}){averaged}", *convention_lines(facts["convention"])]


def convention_lines(convention: dict) -> list[str]:
    if convention["protocol"] == "lambada":
        return [
            "the last word of each passage, from all before it (at most the context of"
            f" {convention['window']} tokens); loss in nats/word; +- is a standard error, [] 95%"
        ]
    text = "; ".join(f"{name}: {said}" for name, said in convention["text"].items())
    kind = f"{convention['tokenizer']} tokenizer of {convention['vocab_size']:,}"
    apart = ", documents apart" if convention["documents_apart"] else ""
    return [
        text,
        f"loss in nats/token ({kind}); windows of {convention['window']} tokens, stride {convention['stride']}{apart};"
        " +- is the standard error over windows, [] holds 95%",
    ]


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

    with Watch(stop) as watch:
        found = catch_up.catch_up(directory, tell, watch.should_stop, watch.report)
    if args.json:
        print(json.dumps(terminal.finite({"workdir": args.workdir, "made_up": done, **found._asdict()}), indent=2))
    else:
        print("\n".join(catch_up.said(found)))
    if found.left:
        raise Stopped(f"{len(found.left)} evaluations are left: run the same command again to go on")
