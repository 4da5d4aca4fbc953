"""Makes sums.jsonl of this folder, conversations for configs/rl_base.py; what it writes is checked in.

    python configs/rl/make_sums.py configs/rl/sums.jsonl

Each is a sum of two digits and an answer that is off by -3 to 3, all seven as likely: whoever learns from them knows the form of
an answer and roughly where it lies, and is right once in seven. Problems that generators hold out are left out.
"""

import json
import pathlib
import random
import sys

from gptjax.posttrain.problems import problem

CONVERSATIONS, FARTHEST = 2000, 3


def main(file: str) -> None:
    drawn, lines = random.Random(0), []
    while len(lines) < CONVERSATIONS:
        a, b = drawn.randrange(10), drawn.randrange(10)
        prompt, answer = f"{a}+{b}=", abs(a + b + drawn.randint(-FARTHEST, FARTHEST))
        if not problem.is_held_out(prompt):
            lines.append(json.dumps({"prompt": prompt, "completion": str(answer)}))
    pathlib.Path(file).write_text("".join(line + "\n" for line in lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
