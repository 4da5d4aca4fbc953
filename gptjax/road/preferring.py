"""Pairs of answers that a policy gave to exercises, judged by what is right: python -m gptjax.road.preferring --run=RUN ...

Each prompt of --prompts, lines of {"prompt", "answer", "task"}, is answered --group times at temperature 1. An answer is right
if it is the exercise's, spaces at the ends aside, and has ended. A pair has a right answer over one that is not; of prompts
without a right answer, one that ended over one that was cut at --max_tokens, if there are both. Other prompts give no pair and are
counted: nothing is invented for them.

    OUT/pairs.jsonl    {"prompt", "chosen", "rejected", "task", "reason"}, for data.preferences="compared"
    OUT/prompts.jsonl  the prompts, for rl.prompts
    OUT/report.json    counts: what the answers were, how many pairs of which reason

A function of the run, the prompts and --seed.
"""

import argparse
import collections
import json
import pathlib
import random
import sys

from gptjax.errors import UserError
from gptjax.road.exercises import is_right, read_exercises
from gptjax.storage.writing import replace_whole

RIGHT, ENDED = "right over wrong", "ended over cut"


def pair_of(answers: list[tuple[str, bool]], reference: str, draw: random.Random) -> tuple[str, str, str] | None:
    """(chosen, rejected, reason) of the (text, ended) of a prompt's answers; None: none is better than another."""
    spoken = [(text, ended) for text, ended in answers if text.strip()]  # an empty answer is none
    right = [text for text, ended in spoken if is_right(reference, text, ended)]
    wrong = [text for text, ended in spoken if not is_right(reference, text, ended)]
    if right and wrong:
        return right[0], draw.choice(wrong), RIGHT
    ended_ones = [text for text, ended in spoken if ended]
    cut = [text for text, ended in spoken if not ended and text not in ended_ones]
    if not right and ended_ones and cut:
        return draw.choice(ended_ones), draw.choice(cut), ENDED
    return None


def made(exercises: list[dict], answers: list[list[tuple[str, bool]]], seed: int) -> tuple[list[dict], dict]:
    """(pairs, report) of the answers to each exercise."""
    pairs, counts = [], collections.Counter()
    for number, (exercise, its_answers) in enumerate(zip(exercises, answers, strict=True)):
        found = pair_of(its_answers, exercise["answer"], random.Random(f"{seed} {number}"))
        counts["no pair" if found is None else found[2]] += 1
        if found is not None:
            chosen, rejected, reason = found
            both = {"prompt": exercise["prompt"], "chosen": chosen, "rejected": rejected}
            pairs.append(both | {"task": exercise["task"], "reason": reason})
    flat = [
        (ended, is_right(exercise["answer"], text, ended))
        for exercise, its_answers in zip(exercises, answers)
        for text, ended in its_answers
    ]
    report = {
        "prompts": len(exercises),
        "answers": len(flat),
        "right": sum(right for _, right in flat),
        "cut": sum(not ended for ended, _ in flat),
        "pairs": {name: counts[name] for name in (RIGHT, ENDED)},
        "prompts without a pair": counts["no pair"],
    }
    return pairs, report


def answers_of(run, exercises: list[dict], group: int, max_tokens: int, seed: int) -> list[list[tuple[str, bool]]]:
    """The (text, ended) of `group` answers to each exercise, drawn from the run's own distribution."""
    from gptjax.data.chat import Message

    conversations = [(Message("user", exercise["prompt"]),) for exercise in exercises]
    settings = dict(max_tokens=max_tokens, temperature=1.0, num_return_sequences=group, seed=seed)
    found = [
        (one.text, one.finish_reason == "eot") for one in run.answers(conversations, run.chat_format(), **settings)
    ]
    return [found[first : first + group] for first in range(0, len(found), group)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gptjax.road.preferring", allow_abbrev=False)
    parser.add_argument("--run", required=True, metavar="DIR", help="a run that answers")
    parser.add_argument("--prompts", required=True, metavar="FILE", help="lines of prompt, answer and task")
    parser.add_argument("--group", type=int, default=4, metavar="N", help="answers to a prompt (default: 4)")
    parser.add_argument("--max_tokens", type=int, default=32, metavar="N", help="of an answer (default: 32)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR", help="a folder, made if need be")
    args = parser.parse_args(arguments)
    try:
        import gptjax

        exercises = read_exercises(pathlib.Path(args.prompts), "--prompts")
        answers = answers_of(gptjax.load(args.run), exercises, args.group, args.max_tokens, args.seed)
        pairs, report = made(exercises, answers, args.seed)
        if not pairs:
            raise UserError(
                f"none of the {len(exercises)} prompts has a better and a worse answer; use a larger --group."
            )
    except UserError as error:
        print(f"preferring: {error}", file=sys.stderr)
        return error.exit_code
    args.out.mkdir(parents=True, exist_ok=True)
    for name, records in {"prompts": exercises, "pairs": pairs}.items():
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        replace_whole(args.out / f"{name}.jsonl", lines)
    replace_whole(args.out / "report.json", json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
