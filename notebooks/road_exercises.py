"""Constructed exercises for a road: python notebooks/road_exercises.py --out=DIR --tasks=reading,classification

The tasks are those of sft_registry.py, whose exercises are the first of each task's list of questions. With --first left out
these here go on with it, so that no question that sft_registry.py trains on is asked again. Keys that it holds out (a fiftieth)
are held out here too.

    DIR/train.jsonl      conversations to fine-tune on, --train of each task
    DIR/held_out.jsonl   conversations of the held-out exercises
    DIR/prompts.jsonl    {"task", "prompt", "answer"} to draw answers to, --prompts of each task; of its keys none is in train.jsonl
    DIR/exercises.jsonl  the same of --held_out held-out ones of each task

A task that has no more questions gives fewer; that is said. Only the standard library.
"""

import argparse
import hashlib
import itertools
import json
import pathlib
import random
import sys

from registry_corpus import write_whole
from sft_registry import EXERCISES, is_held_out

PATIENCE = 20_000  # draws without a new question, after which a task has no more


def questions(task: str):
    """(key, question, answer) of a task, each question once, without end as far as the task has none. Those of
    sft_registry.py come first."""
    make, _ = EXERCISES[task]
    draw, asked, misses = random.Random(task), set(), 0
    while misses < PATIENCE:
        key, (question, answer) = make(draw)
        misses += 1
        if question["content"] not in asked:
            asked.add(question["content"])
            misses = 0
            yield key, question["content"], answer["content"]


def parts(task: str, first: int, sizes: dict[str, int]) -> dict[str, list[dict]]:
    """{"train", "prompts", "held_out"} of a task, without its first questions. sizes: of each, at most."""
    found = {name: [] for name in sizes}
    for key, question, answer in itertools.islice(questions(task), first, None):
        is_prompt = not sizes["train"] or hashlib.sha256(key.encode()).digest()[8] % 4 == 0
        part = "held_out" if is_held_out(key) else "prompts" if is_prompt else "train"
        if len(found[part]) < sizes[part]:
            found[part].append({"task": task, "prompt": question, "answer": answer})
        if all(len(found[name]) == size for name, size in sizes.items()):
            break
    return found


def conversation(exercise: dict) -> dict:
    roles = {"user": exercise["prompt"], "assistant": exercise["answer"]}
    return {"messages": [{"role": role, "content": content} for role, content in roles.items()]}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a folder, made if need be")
    parser.add_argument("--tasks", default=",".join(EXERCISES), help="with commas between them")
    parser.add_argument(
        "--first", type=int, help="questions of each task to leave out (default: those of sft_registry.py)"
    )
    parser.add_argument("--train", type=int, default=0, help="conversations of each task")
    parser.add_argument("--prompts", type=int, default=1000, help="of each task")
    parser.add_argument("--held_out", type=int, default=200, help="of each task")
    args = parser.parse_args()
    if unknown := [task for task in args.tasks.split(",") if task not in EXERCISES]:
        print(f"--tasks: there is no {unknown[0]}; expected some of {', '.join(EXERCISES)}.", file=sys.stderr)
        return 2
    sizes = {"train": args.train, "prompts": args.prompts, "held_out": args.held_out}
    made = [
        parts(task, EXERCISES[task][1] if args.first is None else args.first, sizes) for task in args.tasks.split(",")
    ]
    for task, found in zip(args.tasks.split(","), made):
        print(f"{task}: {', '.join(f'{name} {len(exercises):,}' for name, exercises in found.items())}")
    together = {name: [exercise for found in made for exercise in found[name]] for name in made[0]}
    random.Random("order").shuffle(together["prompts"])  # of what a run holds out, the end, each task has its part
    files = {
        "train": map(conversation, together["train"]),
        "held_out": map(conversation, together["held_out"]),
        "prompts": together["prompts"],
        "exercises": together["held_out"],
    }
    for name, records in files.items():
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_whole(args.out / f"{name}.jsonl", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
