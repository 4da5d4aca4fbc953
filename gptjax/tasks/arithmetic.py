"""Sums, asked in words and generated (Brown et al. 2020, section 3.9.1), in Python alone: no file, no network."""

import random

from gptjax.tasks.task import Task


class TwoDigitAddition(Task):
    """2000 sums of two numbers drawn uniformly from 0 to 99, and 100 others to draw shots from, the same every time."""

    kind = "generate_until"
    max_tokens = 8

    def documents(self) -> list[dict]:
        return self._drawn()[:2000]

    def examples(self) -> list[dict]:
        return self._drawn()[2000:]

    def question(self, document: dict) -> str:
        return f"Q: What is {document['a']} plus {document['b']}?\nA:"

    def answer(self, document: dict) -> str:
        return str(document["a"] + document["b"])

    def scores(self, document: dict, answer: str) -> dict[str, float]:
        return {"acc": float(answer.strip().rstrip(".") == self.answer(document))}

    def _drawn(self) -> list[dict]:
        pairs = random.Random(0).sample([(a, b) for a in range(100) for b in range(100)], 2100)
        return [{"a": a, "b": b} for a, b in pairs]
