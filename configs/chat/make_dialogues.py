"""Makes dialogues.jsonl of this folder, conversations for configs/sft_quickstart.py; what it writes is checked in.

    python configs/chat/make_dialogues.py

Questions have one right answer each, are constructed here, and cover: the day or month before and after one, sums of two
numbers below 10, opposites, words to repeat and to spell. A conversation has one to three of them.
"""

import json
import pathlib
import random

HERE = pathlib.Path(__file__).parent
CONVERSATIONS = 400
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
OPPOSITES = [
    *[("good", "bad"), ("day", "night"), ("young", "old"), ("love", "hate"), ("friend", "enemy"), ("life", "death")],
    *[("hot", "cold"), ("king", "beggar"), ("war", "peace"), ("heaven", "hell"), ("true", "false"), ("rich", "poor")],
]
WORDS = "sword crown ship moon fool queen letter storm ghost ring wine horse garden prince music fire".split()


def neighbour(rng) -> tuple[str, str]:
    kind, names = rng.choice([("day", DAYS), ("month", MONTHS)])
    place, step = rng.randrange(len(names)), rng.choice([-1, 1])
    asked = f"Which {kind} comes {'after' if step == 1 else 'before'} {names[place]}?"
    return asked, names[(place + step) % len(names)]


def addition(rng) -> tuple[str, str]:
    a, b = rng.randrange(10), rng.randrange(10)
    return f"What is {a} + {b}?", str(a + b)


def opposite(rng) -> tuple[str, str]:
    pair = rng.choice(OPPOSITES)
    a, b = rng.sample(pair, 2)
    return f"What is the opposite of {a}?", b


def repetition(rng) -> tuple[str, str]:
    words = " ".join(rng.sample(WORDS, 2))
    return f"Say: {words}", words


def spelling(rng) -> tuple[str, str]:
    word = rng.choice(WORDS)
    return f"Spell {word}.", "-".join(word)


SKILLS = (neighbour, addition, opposite, repetition, spelling)


def conversation(rng) -> dict:
    """In OpenAI's form."""
    messages = []
    for skill in rng.choices(SKILLS, k=rng.randint(1, 3)):
        asked, answer = skill(rng)
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def main() -> None:
    rng = random.Random(0)
    lines = [json.dumps(conversation(rng)) + "\n" for _ in range(CONVERSATIONS)]
    (HERE / "dialogues.jsonl").write_text("".join(lines))
    print(f"dialogues.jsonl: {len(lines)} conversations")


if __name__ == "__main__":
    main()
