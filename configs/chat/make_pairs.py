"""Makes pairs.jsonl of this folder, preferences for configs/reward_quickstart.py; what it writes is checked in.

    python configs/chat/make_pairs.py

Each prompt asks which of two numbers from 10 to 99 is larger, or smaller; the chosen answer is that one, the rejected answer
the other. No prompt is there twice, so one that is held out was never seen; both answers have one length.
"""

import json
import pathlib
import random

HERE = pathlib.Path(__file__).parent
PAIRS = 1200


def pair(word: str, a: int, b: int) -> dict:
    """In TRL's form."""
    right, wrong = (max(a, b), min(a, b)) if word == "larger" else (min(a, b), max(a, b))
    return {"prompt": f"Which is {word}, {a} or {b}?", "chosen": str(right), "rejected": str(wrong)}


def main() -> None:
    rng = random.Random(0)
    numbers = range(10, 100)
    questions = [(word, a, b) for word in ("larger", "smaller") for a in numbers for b in numbers if a != b]
    lines = [json.dumps(pair(*question)) + "\n" for question in rng.sample(questions, PAIRS)]
    (HERE / "pairs.jsonl").write_text("".join(lines))
    print(f"pairs.jsonl: {len(lines)} pairs")


if __name__ == "__main__":
    main()
