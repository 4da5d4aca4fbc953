"""The probability of a class under a run with a task head, as Ziegler et al. (2019) rewarded positive sentiment."""

import dataclasses
import functools
import typing
from collections.abc import Sequence

from gptjax.errors import UserError, did_you_mean
from gptjax.posttrain.rewards.reward import Answer


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Of the class `label`, for the answer; with with_prompt=True for the prompt's last message and the answer, one text.

    run: the directory of a run with data.task classify. step: None, the newest. The run is read once, when it is first
    asked."""

    run: str
    label: str
    step: int | None = None
    with_prompt: bool = False
    reads_model: typing.ClassVar[bool] = True  # on the devices of all processes, which have to ask it together

    def __call__(self, answer: Answer) -> float:
        return self.many([answer])[0]

    def many(self, answers: Sequence[Answer]) -> list[float]:
        """Raises UserError: no such run, not one of texts and classes, no such class."""
        predictions = self._run.classify([self._text(answer) for answer in answers])
        return [self._probability(prediction) for prediction in predictions]

    def check(self) -> None:
        """Raises UserError: no such run, or one without classes."""
        from gptjax.training import origins

        directory = origins.run_of("run", self.run)
        if directory.config().data.task is None:
            raise UserError(f"run={self.run!r} tells no classes apart; use one of data.task='classify'.")
        origins.check_step("run", self.run, directory, self.step)

    @functools.cached_property
    def _run(self):
        import gptjax

        self.check()
        return gptjax.load(self.run, self.step)

    def _text(self, answer: Answer) -> str:
        return f"{answer.prompt[-1].content}{answer.text}" if self.with_prompt else answer.text

    def _probability(self, prediction) -> float:
        if not isinstance(prediction.probability, dict):
            raise UserError(f"the run {self.run} tells no classes apart; use one of data.task='classify'.")
        if self.label not in prediction.probability:
            names = ", ".join(map(str, prediction.probability))
            near = did_you_mean(self.label, prediction.probability)
            raise UserError(f"the run {self.run} has no class {self.label!r}{near}; its classes are: {names}.")
        return prediction.probability[self.label]
