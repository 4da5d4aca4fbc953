"""Code that passes the tests of its record, each run in the sandbox.

A record's tests are Python with assertions (a text, or a list of texts, each run behind the answer's code by itself), or
objects {"input", "output"}: then the code is a program, which has to print the output for the input. What is expected never
enters the child there; assertions run in one process with the code they test, and code that looks for ways around them has
more of them.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence

from gptjax.errors import UserError
from gptjax.posttrain.rewards.reward import Answer
from gptjax.posttrain.sandbox.sandbox import Job, Limits, Sandbox

_FENCE = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL | re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Code:
    """1 where the answer's code passes all tests of its record; with partial=True the share that it passes.

    field: of the tests. setup: a field with code that runs before the tests, where records have one. unlocked: see Sandbox.
    workers: programs at a time; None: as many as there are CPUs.
    """

    field: str = "tests"
    setup: str | None = None
    partial: bool = False
    cpu_seconds: int = 3
    wall_seconds: float = 20.0
    memory_mib: int = 512
    unlocked: bool = False
    workers: int | None = None

    def __post_init__(self):
        self._sandbox  # noqa: B018  checks the limits

    @functools.cached_property
    def _sandbox(self) -> Sandbox:
        return Sandbox(Limits(self.cpu_seconds, self.wall_seconds, self.memory_mib << 20), self.unlocked)

    def __call__(self, answer: Answer) -> float:
        return self.many([answer])[0]

    def many(self, answers: Sequence[Answer]) -> list[float]:
        jobs = [self._jobs(answer) for answer in answers]
        outcomes = iter(self._sandbox.run_all([job for of_answer in jobs for job in of_answer], self.workers))
        passed = [[next(outcomes).passed for _ in of_answer] for of_answer in jobs]
        return [sum(each) / len(each) if self.partial else float(all(each)) for each in passed]

    def _jobs(self, answer: Answer) -> list[Job]:
        tests = answer.field(self.field)
        tests = [tests] if isinstance(tests, str) else tests
        if not isinstance(tests, list | tuple) or not tests:
            raise UserError(
                f"{answer.where}: the record's field {self.field!r} holds no tests; expected a text of assertions, or a"
                " list of them or of objects with input and output."
            )
        code = code_of(answer.text)
        setup = f"{answer.field(self.setup)}\n" if self.setup is not None else ""
        return [self._job(setup, code, test, answer.where) for test in tests]

    def _job(self, setup: str, code: str, test, where: str) -> Job:
        if isinstance(test, str):
            return Job(f"{code}\n{setup}{test}\n")
        if isinstance(test, dict) and isinstance(test.get("input"), str) and isinstance(test.get("output"), str):
            return Job(setup + code, test["input"], test["output"])
        raise UserError(
            f"{where}: the record's field {self.field!r} has a test that is neither a text nor an object with the texts"
            " input and output."
        )


def code_of(text: str) -> str:
    """The last fenced block of Python in a text; the whole text where it has none."""
    blocks = _FENCE.findall(text)
    return blocks[-1] if blocks else text
