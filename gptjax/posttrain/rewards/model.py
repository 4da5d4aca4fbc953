"""The score of a reward model, a run with model.task_head="score" (data/pairs, posttrain/reward)."""

import dataclasses
import functools
import typing
from collections.abc import Sequence

import numpy as np

from gptjax.config import task_heads
from gptjax.errors import UserError
from gptjax.posttrain.rewards.reward import Answer


@dataclasses.dataclass(frozen=True)
class Score:
    """What the reward model says at the last token of an answer, the end token where it has one.

    run: its directory; step: None, the newest. It is read once, when it is first asked. Prompts are rendered by its own chat
    format; an answer's tokens are taken as they were drawn, where its tokenizer reads them as the same text."""

    run: str
    step: int | None = None
    reads_model: typing.ClassVar[bool] = True

    def __call__(self, answer: Answer) -> float:
        return self.many([answer])[0]

    def many(self, answers: Sequence[Answer]) -> list[float]:
        """Raises UserError: no such run, one without scores, an answer beyond its context."""
        from gptjax.evaluation import scored

        return scored.score_tokens(self._run, [self._tokens(answer) for answer in answers]).tolist()

    def check(self) -> None:
        """Raises UserError: no such run, or one without scores."""
        from gptjax.training import origins

        directory = origins.run_of("run", self.run)
        if not task_heads.scores_answers(directory.config().model):
            raise UserError(f"run={self.run!r} gives no scores; use one with model.task_head='score'.")
        origins.check_step("run", self.run, directory, self.step)

    @functools.cached_property
    def _run(self):
        import gptjax

        self.check()
        return gptjax.load(self.run, self.step)

    def _tokens(self, answer: Answer) -> np.ndarray:
        form, tokenizer = self._run.chat_format(), self._run.tokenizer
        spoken_L = answer.token_L[: len(answer.token_L) - answer.ended]
        ids = spoken_L if self._reads(spoken_L, answer.text) else tokenizer.encode(answer.text)
        ends = form.stop_ids(tokenizer)[:1] if answer.ended else ()
        return np.concatenate([form.prompt(answer.prompt, tokenizer), ids, np.array(ends, np.int32)]).astype(np.int32)

    def _reads(self, token_L: np.ndarray, text: str) -> bool:
        """Whether the reward model's tokenizer reads these tokens as this text."""
        tokenizer = self._run.tokenizer
        return bool((token_L < tokenizer.vocab_size).all()) and tokenizer.decode(token_L) == text
