"""How a run is chosen, how text is read, and how far it is: what `gptjax eval` and `gptjax compare` share."""

import sys
import time

from gptjax import terminal
from gptjax.config import bounds
from gptjax.errors import UserError

QUIET_SECONDS = 2.0  # of an evaluation, before a progress line is shown
COPIES = "replica=-1"  # the mesh where no other is given: the model on each device


def add_flags(parser) -> None:
    parser.add_argument(
        "--data",
        action="append",
        metavar="[NAME=]SPEC",
        help="text to use instead of the run's held-out text: KIND:PATH (text, jsonl, parquet ...), a prepared folder (its"
        " held-out split) or hf:NAME@SPLIT; may be repeated",
    )
    parser.add_argument(
        "--protocol", metavar="NAME", help="how --data is evaluated: wikitext2, wikitext103, ptb, lambada"
    )
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="tokens from the start of one window to the next (default: the context length)",
    )
    parser.add_argument("--batch_size", type=int, metavar="N", help="windows in a batch (default: as in training)")
    parser.add_argument(
        "--max_tokens",
        metavar="N|all",
        help="tokens of each text (default: all; of the run's own text eval.max_tokens)",
    )
    parser.add_argument(
        "--dtype",
        metavar="NAME",
        help="dtype of the computation: float32 or bfloat16; int8: weights of the layers in int8 (default: as in training)",
    )
    parser.add_argument(
        "--mesh",
        metavar="AXES",
        help="sizes of the mesh axes, such as fsdp=4,tensor=2 (default: a copy on each device)",
    )
    parser.add_argument("--text_field", metavar="NAME", help="the field of jsonl, Parquet or TFDS that holds the text")
    parser.add_argument("--separator", metavar="LINE", help="the line that separates the documents of a text file")


def check_flags(args) -> None:
    from gptjax.evaluation import run_loss

    run_loss.check_protocol(args.protocol)
    for name in ("batch_size", "stride"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)} is too small; use at least 1.")
    if (args.text_field or args.separator) and not args.data:
        raise UserError(
            f"--{'text_field' if args.text_field else 'separator'} says how --data are read; give --data too."
        )
    if args.protocol == "lambada" and (args.stride or args.max_tokens):
        raise UserError("--protocol=lambada predicts last words only; leave out --stride and --max_tokens.")
    if args.protocol is not None and not args.data:
        raise UserError(f"--protocol={args.protocol} is for a data set; give --data too.")


def settings(args) -> dict:
    """Of evaluation.reading_of."""
    chosen = {"protocol": args.protocol, "stride": args.stride, **how_read(args)}
    if args.max_tokens is None:
        return chosen
    if args.max_tokens == "all":
        return chosen | {"max_tokens": None}
    number = bounds.whole_number(args.max_tokens)
    if not number:
        raise UserError(f"--max_tokens={args.max_tokens}: expected a number of tokens, or all.")
    return chosen | {"max_tokens": number}


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
        from gptjax.checkpoints import loading

        best, why = loading.best_step(directory, ema)
        return [best], why
    if (number := bounds.whole_number(which)) is None:
        raise UserError(f"--step={which}: expected a number, all or best.")
    if number not in steps:
        raise UserError(
            f"--workdir={directory.path} has no checkpoint of step {which}; there are: {', '.join(map(str, steps))}."
        )
    return [number], "as asked"


TEXT_UNITS, EXAMPLE_UNITS = ("windows", "tok"), ("examples", "examples")  # rows of an evaluation, and what has a loss


class Watch:
    """The progress line of an evaluation, on stderr, and the wish to stop. Used in a `with`."""

    def __init__(self, stop, step: int | None = None, units: tuple[str, str] = TEXT_UNITS):
        self._stop, self._began, self._step, self._units = stop, time.monotonic(), step, units
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
        line = progress_line(
            name, num_rows, rows_done, nats, tokens, (now - began, rows_before, tokens_before), self._units
        )
        self._progress.update(line if self._step is None else f"step {self._step}  {line}")


def progress_line(name: str, num_rows: int, rows_done: int, nats: float, tokens: float, since, units=TEXT_UNITS) -> str:
    """since: seconds, and the rows and tokens that were done before them: the first batch waits for the compiler. units: what
    rows and tokens are called."""
    seconds, rows_before, tokens_before = since
    line = f"{name}: {rows_done:,} of {num_rows:,} {units[0]}  loss {nats / tokens:.4f}"
    if rows_done == rows_before or not seconds:
        return line
    left = (num_rows - rows_done) * seconds / (rows_done - rows_before)
    return f"{line}  {terminal.si((tokens - tokens_before) / seconds)} {units[1]}/s  left {terminal.duration(left)}"
