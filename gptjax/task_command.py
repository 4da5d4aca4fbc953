"""`gptjax eval --tasks=...`: a run on tasks of lm-evaluation-harness, as a table or JSON."""

import json
import sys

from gptjax.errors import UserError


def add_flags(parser) -> None:
    tasks = parser.add_argument_group("tasks of lm-evaluation-harness, instead of held-out text")
    tasks.add_argument(
        "--tasks",
        metavar="TASKS",
        help="comma-separated: task files (.yaml), folders of them, or names of lm-eval's own",
    )
    tasks.add_argument(
        "--num_fewshot",
        metavar="K",
        help="examples before each question; several give a table, as in --num_fewshot=0,1,32",
    )
    tasks.add_argument("--limit", type=int, metavar="N", help="documents of each task, the first N")


def check_flags(args) -> None:
    """Raises UserError: a flag that needs --tasks without it."""
    for flag in ("num_fewshot", "limit"):
        if args.tasks is None and getattr(args, flag) is not None:
            raise UserError(f"--{flag} is of tasks; give --tasks too, as in --tasks=configs/tasks.")


def shots(text: str | None) -> tuple[int | None, ...]:
    """(0, 1, 32) of "0,1,32"; (None,) if nothing is given. Raises UserError."""
    if text is None:
        return (None,)
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise UserError(f"--num_fewshot={text}: expected numbers of examples, as in --num_fewshot=0,1,32.")
    return tuple(dict.fromkeys(int(word) for word in words))


def run(args, load) -> None:
    """load() gives the Run, once it is known that there is something to ask of it."""
    from gptjax import metrics, task_files, tasks

    numbers = shots(args.num_fewshot)
    task_files.require()
    chosen = tasks.TaskSet(args.tasks.split(","), args.limit)
    loaded = load()
    from gptjax import harness

    progress = metrics.Progress(sys.stderr)
    lm = harness.GptjaxLM(loaded, report=lambda done, total: progress.update(f"{done:,} of {total:,} requests"))
    results = chosen.evaluate(lm, numbers)
    if args.json:
        print(json.dumps({"workdir": args.workdir, "step": loaded.step, **results.as_dict()}, indent=2))
    else:
        print(f"step {loaded.step} of {args.workdir}\n{tasks.table(results)}")
