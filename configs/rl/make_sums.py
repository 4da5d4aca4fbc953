"""Makes sums.jsonl of this folder, conversations for configs/rl_base.py; what it writes is checked in.

    python configs/rl/make_sums.py configs/rl/sums.jsonl

Each is a sum of two digits and an answer in the right form: a number from 0 to 18, right in one of eight, else drawn at random.
Problems that generators hold out (gptjax/posttrain/problems) are left out.
"""

import json
import pathlib
import random
import sys

from gptjax.posttrain.problems import problem

CONVERSATIONS, RIGHT = 4000, 1 / 8


def main(file: str) -> None:
    drawn = random.Random(0)
    lines = []
    while len(lines) < CONVERSATIONS:
        a, b = drawn.randrange(10), drawn.randrange(10)
        prompt, answer = f"{a}+{b}=", a + b if drawn.random() < RIGHT else drawn.randrange(19)
        if not problem.is_held_out(prompt):
            lines.append(json.dumps({"prompt": prompt, "completion": str(answer)}))
    pathlib.Path(file).write_text("".join(line + "\n" for line in lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
