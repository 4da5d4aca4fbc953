"""`gptjax eval --tasks=...`: a run on tasks of lm-evaluation-harness, as a table or JSON."""

import json
import math
import sys

from gptjax import terminal
from gptjax.config import bounds
from gptjax.errors import UserError

FLAGS = ("num_fewshot", "limit", "samples", "temperature")
SAMPLES_TEMPERATURE = 0.8  # of Chen et al. 2021 for pass@100
FOR_TEXT = ("data", "protocol", "stride", "max_tokens", "text_field", "separator", "catch_up")


def add_flags(parser) -> None:
    tasks = parser.add_argument_group("evaluate on tasks of lm-evaluation-harness instead of text")
    tasks.add_argument(
        "--tasks",
        metavar="TASKS",
        help="comma-separated: task files, folders of them, names of tasks in Python or in lm-eval",
    )
    tasks.add_argument(
        "--num_fewshot",
        metavar="K",
        help="number of examples before each question; several numbers give a table, as in 0,1,32",
    )
    tasks.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="draw N answers to each document, of tasks that score several, as humaneval (default: one, the likeliest)",
    )
    tasks.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="divide the logits by this when --samples are drawn (default: 0.8)",
    )
    tasks.add_argument("--limit", type=int, metavar="N", help="use the first N documents of each task (default: all)")


def check_flags(args) -> None:
    """Raises UserError: a flag of tasks without them, or one of text with them."""
    for flag in FLAGS if args.tasks is None else ():
        if getattr(args, flag) is not None:
            raise UserError(f"--{flag} is for tasks; give --tasks too, as in --tasks=configs/tasks.")
    for flag in () if args.tasks is None else FOR_TEXT:
        if getattr(args, flag):
            raise UserError(f"--{flag} is for text, but --tasks have text of their own; give one of the two.")
    sampled(args)


def sampled(args):
    """The task.Sampled of --samples; None without. Raises UserError."""
    from gptjax.tasks.task import Sampled

    if args.samples is None:
        if args.temperature is not None:
            raise UserError(f"--temperature={args.temperature} is for answers that are drawn; give --samples=N too.")
        return None
    if args.samples < 1:
        raise UserError(f"--samples={args.samples} is too small; use at least 1.")
    temperature = SAMPLES_TEMPERATURE if args.temperature is None else args.temperature
    if not 0 < temperature < math.inf:
        raise UserError(
            f"--temperature={temperature}; expected more than 0, or leave out --samples for the likeliest answer."
        )
    return Sampled(args.samples, temperature)


def shots(text: str | None) -> tuple[int | None, ...]:
    """(0, 1, 32) of "0,1,32"; (None,) if nothing is given. Raises UserError."""
    if text is None:
        return (None,)
    words = [word.strip() for word in text.split(",")]
    if any(bounds.whole_number(word) is None for word in words):
        raise UserError(f"--num_fewshot={text}: expected numbers of examples, as in --num_fewshot=0,1,32.")
    return tuple(dict.fromkeys(map(int, words)))


def run(args, steps: list[int], why: str, load, should_stop) -> int | None:
    """Evaluates steps, and says what came of them. load(step) is the Run of one.

    The step that should_stop() kept from being evaluated; None: all are done.
    """
    from gptjax.tasks import task_files
    from gptjax.tasks import task_set as tasks

    numbers = shots(args.num_fewshot)
    several = sampled(args)
    task_files.require()
    chosen = tasks.TaskSet(args.tasks.split(","), args.limit, several)
    from gptjax.tasks import harness

    facts = {"workdir": args.workdir, "chosen": why, "parameters": "ema" if args.ema else "params", "steps": []}
    progress = terminal.Progress(sys.stderr)
    for step in steps:
        lm = harness.GptjaxLM(load(step), args.batch_size, should_stop, _reporter(progress, step))
        try:
            results = chosen.evaluate(lm, numbers)
        except harness.Stopped:
            return step
        finally:
            progress.close()
        facts["steps"].append({"step": step, **results.as_dict()})
        if not args.json:
            print(f"step {step} of {args.workdir} ({why})\n{tasks.table(results)}", flush=True)
    if args.json:
        only = facts.pop("steps") if len(steps) == 1 and args.step != "all" else None
        print(json.dumps(terminal.finite(facts | (only[0] if only else {})), indent=2))
    return None


def _reporter(progress, step: int):
    return lambda done, total: progress.update(f"step {step}  {done:,} of {total:,} requests")
