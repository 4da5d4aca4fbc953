"""What fine-tuning on conversations has changed: python notebooks/sft_evaluate.py RUN --exercises=FILE --out=DIR

RUN, of `gptjax train`, is read at its last step and, for before fine-tuning, at step 0 (which a checkpoint.keep of all
checkpoints keeps); or with --before=RUN0 another run stands for that, such as one of --config.optim.peak_lr=0
--config.train.steps=1:

    exact match     of the answers to the exercises of FILE, lines of {"task", "prompt", "answer"}, per task; spaces at both
                    ends do not count
    ended           the share of these answers that end by the token that ends a turn
    held-out loss   of answers, in nats per token: of the run's own held-out conversations, or with --held_out=SPEC of others,
                    such as jsonl:sft/held_out/*.jsonl
    dialogues       ten questions in English and Chinese with their answers, as they are

An answer is the likeliest token each time, up to --max_tokens. Errors are standard errors: of a share those of a binomial,
sqrt(p (1 - p) / n), which are 0 where all answers are alike. DIR/evaluation.json and DIR/evaluation.md are written; the second
is printed. Without --out nothing is written.
"""

import argparse
import collections
import json
import math
import pathlib
import sys

import gptjax
from gptjax.data.chat import Message
from gptjax.errors import UserError
from gptjax.road.exercises import read_exercises

QUESTIONS = (
    "Hello, how are you?",
    "What is your name?",
    "What is Debian?",
    "Translate into Chinese: Save the file",
    "What is 12 + 30?",
    "你好",
    "你叫什么名字？",
    "什么是 Debian？",
    "翻译成英文：保存文件",
    "12加30等于多少？",
)


def answers(run, questions: list[str], max_tokens: int) -> list:
    """A Completion of each question, which is a conversation's first message."""
    conversations = [(Message("user", question),) for question in questions]
    return run.answers(conversations, run.chat_format(), max_tokens=max_tokens, temperature=0)


def share(correct: list[bool]) -> dict:
    """The part that is true, with the standard error of a binomial share, and how many there are."""
    n, part = len(correct), sum(correct) / len(correct)
    return {"share": part, "standard_error": math.sqrt(part * (1 - part) / n), "n": n}


def exact_match(exercises: list[dict], completions: list) -> dict[str, dict]:
    """{task: its share of right answers}, of several tasks also "all"."""
    correct = collections.defaultdict(list)
    for exercise, completion in zip(exercises, completions, strict=True):
        correct[exercise["task"]].append(completion.text.strip() == exercise["answer"].strip())
    shares = {task: share(values) for task, values in correct.items()}
    return shares | ({"all": share(sum(correct.values(), []))} if len(shares) > 1 else {})


def evaluation(run, exercises: list[dict], held_out: list[str] | None, max_tokens: int) -> dict:
    """Of one step of a run, as JSON values."""
    completions = answers(run, [exercise["prompt"] for exercise in exercises], max_tokens)
    dialogues = answers(run, list(QUESTIONS), max_tokens)
    return {
        "step": run.step,
        "exact_match": exact_match(exercises, completions),
        "ended": share([completion.finish_reason == "eot" for completion in completions]),
        "held_out": {name: result.as_dict() for name, result in run.evaluate(held_out).items()},
        "dialogues": [
            {"question": question, "answer": answer.text, "ended": answer.finish_reason == "eot"}
            for question, answer in zip(QUESTIONS, dialogues)
        ],
    }


def before_and_after(workdir: str, before: str | None) -> tuple:
    """The run before, or the same at step 0, and the run at its last step. Raises UserError: it has no step 0, or was not trained on conversations."""
    after = gptjax.load(workdir)
    if after.config.data.chat is None:
        raise UserError(f"the run in {workdir} was not trained on conversations (data.chat=None); give one that was.")
    if before is not None:
        return gptjax.load(before), after
    if 0 not in after.steps or after.step == 0:
        raise UserError(
            f"{workdir} has the steps {', '.join(map(str, after.steps))}; expected 0 and a later one: train from another run"
            " (train.start_from) and with --config.checkpoint.keep=N for all checkpoints, or give --before=RUN0."
        )
    return after.at(0), after


def markdown(before: dict, after: dict) -> str:
    """Tables of two evaluations, and the dialogues."""
    lines = [f"| | before, step {before['step']} | after, step {after['step']} | |", "|---|---|---|---|"]
    for task in after["exact_match"]:
        lines.append(_share_row(f"exact match, {task}", before["exact_match"][task], after["exact_match"][task]))
    lines.append(_share_row("answers that end by the end token", before["ended"], after["ended"]))
    for name in after["held_out"]:
        shown = [
            f"{each['held_out'][name]['loss']:.3f} +- {each['held_out'][name]['standard_error']:.3f}"
            for each in (before, after)
        ]
        lines.append(
            f"| held-out loss, {name} (nats/token) | {' | '.join(shown)} | {after['held_out'][name]['tokens']:,} tokens |"
        )
    lines += ["", f"| question | answer at step {after['step']} | |", "|---|---|---|"]
    for each in after["dialogues"]:
        lines.append(f"| {each['question']} | {_cell(each['answer'])} | {'ended' if each['ended'] else 'cut off'} |")
    return "\n".join(lines) + "\n"


def _share_row(name: str, before: dict, after: dict) -> str:
    shown = [f"{each['share']:.3f} +- {each['standard_error']:.3f}" for each in (before, after)]
    return f"| {name} | {' | '.join(shown)} | of {after['n']} |"


def _cell(text: str) -> str:
    """A text in a table of Markdown."""
    return text.replace("|", "\\|").replace("\n", "⏎")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--exercises", type=pathlib.Path, required=True, help="a file of JSON lines")
    parser.add_argument(
        "--held_out", nargs="+", metavar="SPEC", help="as --data of gptjax eval (default: the run's own)"
    )
    parser.add_argument("--before", metavar="RUN0", help="a run that stands for before (default: step 0 of the run)")
    parser.add_argument("--max_tokens", type=int, default=40, help="of an answer (default: 40)")
    parser.add_argument("--out", type=pathlib.Path, help="a folder, made if need be")
    args = parser.parse_args(arguments)
    try:
        exercises = read_exercises(args.exercises)
        steps = [
            evaluation(run, exercises, args.held_out, args.max_tokens)
            for run in before_and_after(args.run, args.before)
        ]
    except UserError as error:
        print(f"sft_evaluate: {error}", file=sys.stderr)
        return 2
    text = markdown(*steps)
    print(text, end="")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        values = {
            "run": args.run,
            "run_before": args.before or args.run,
            "exercises": str(args.exercises),
            "before": steps[0],
            "after": steps[1],
        }
        values = json.loads(json.dumps(values), parse_constant=lambda nan: None)  # JSON has no NaN: an error of one row
        (args.out / "evaluation.json").write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
        (args.out / "evaluation.md").write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
