"""Makes pairs.jsonl of this folder, preferences for configs/reward_quickstart.py; what it writes is checked in.

    python configs/chat/make_pairs.py

Each prompt asks for the sum of two numbers below 10. The chosen answer is right; the rejected one is off by 1 to 3 or by 10,
or has its two digits changed round. Every such pair is there once, in an order drawn by chance.
"""

import json
import pathlib
import random

HERE = pathlib.Path(__file__).parent


def wrong(right: int) -> list[int]:
    near = [right + step for step in (-10, -3, -2, -1, 1, 2, 3, 10)]
    turned = int(str(right)[::-1])
    return sorted(number for number in {*near, turned} - {right} if number >= 0)


def pairs() -> list[dict]:
    """In TRL's form."""
    return [
        {"prompt": f"What is {a} + {b}?", "chosen": str(a + b), "rejected": str(number)}
        for a in range(10)
        for b in range(10)
        for number in wrong(a + b)
    ]


def main() -> None:
    records = pairs()
    random.Random(0).shuffle(records)
    (HERE / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    print(f"pairs.jsonl: {len(records)} pairs")


if __name__ == "__main__":
    main()
