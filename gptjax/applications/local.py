"""A run in this process, as a model that a recipe asks: answers, texts, gaps, labels, vectors."""

import numpy as np

from gptjax.applications import infilling, tools
from gptjax.applications.replies import Reply
from gptjax.data.chat import Conversation, Message
from gptjax.data.chat.conversation import with_tools
from gptjax.errors import UserError


class Local:
    """run: a Run. form: a data.chat.Format; None: its own, looked up when a conversation needs one."""

    def __init__(self, run, form=None):
        self.run = run
        self._form = form

    @property
    def form(self):
        if self._form is None:
            self._form = self.run.chat_format()
        return self._form

    @property
    def title(self) -> str:
        return f"{self.run.directory.path}, step {self.run.step}"

    def reply(
        self, messages, settings: dict, offered: dict[str, tools.Tool], schema: dict | None, on_text=None
    ) -> Reply:
        """The answer to messages. schema: nothing holds the model to it here; whoever asks checks and asks again."""
        if offered:
            messages = with_tools(tuple(messages), tools.described(offered))
        callback = None if on_text is None else lambda _, piece: on_text(piece)
        [answer] = self.run.answers([tuple(messages)], self.form, callback, **settings)
        tokens = None if answer.finish_reason == "stop" else tuple(answer.tokens.tolist())
        return Reply(answer.text, tuple(tools.calls_of(answer.text)) if offered else (), answer.finish_reason, tokens)

    def complete(self, prompt: str, settings: dict, on_text=None) -> Reply:
        """How a text goes on."""
        return self._continued(prompt, settings, on_text)

    def infill(self, prefix: str, suffix: str, settings: dict, on_text=None) -> Reply:
        """What stands between two texts. Raises UserError: the model has no symbols for that."""
        return self._continued(infilling.prompt_ids(self.run.tokenizer, prefix, suffix), settings, on_text)

    def _continued(self, prompt, settings: dict, on_text) -> Reply:
        if not isinstance(prompt, str) and len(prompt) >= self.run.config.model.context_length:
            raise UserError(
                f"the text has {len(prompt)} tokens, which leave no room in a context of"
                f" {self.run.config.model.context_length}; give less of it."
            )
        callback = None if on_text is None else lambda _, piece: on_text(piece)
        [made] = self.run.generate([prompt], callback=callback, **settings)
        return Reply(made.text, (), made.finish_reason)

    def choose(self, messages, labels: tuple[str, ...]) -> dict[str, float]:
        """The log-probability of each label as the whole answer, with the token that ends it, in nats: so that no label gains by
        being the beginning of another."""
        prompt_L = self.form.prompt(tuple(messages), self.run.tokenizer)
        stops = self.form.stop_ids(self.run.tokenizer)
        whole = [self._with_answer(messages, label, len(prompt_L), stops) for label in labels]
        longest, context = max(map(len, whole)), self.run.config.model.context_length
        if longest > context - 1:
            raise UserError(
                f"the conversation with a label has {longest} tokens; the context is {context}: give a shorter text."
            )
        scored = self.run.generate(whole, max_tokens=1, temperature=0.0, logprobs=True)
        return {
            label: float(np.sum(one.prompt_logprobs[len(prompt_L) - 1 :], dtype=np.float64))
            for label, one in zip(labels, scored, strict=True)
        }

    def _with_answer(self, messages, answer: str, prompt_length: int, stops) -> np.ndarray:
        """int32 [L]: the conversation up to the token that ends its last turn."""
        conversation = Conversation((*messages, Message("assistant", answer)), "a label")
        token_L = self.form.render(conversation, self.run.tokenizer).token_L
        ends = np.flatnonzero(np.isin(token_L[prompt_length:], stops))
        return token_L if not len(ends) else token_L[: prompt_length + ends[0] + 1]
