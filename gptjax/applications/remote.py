"""A server with OpenAI's requests, `gptjax serve` or another, as a model that a recipe asks. It does not stream."""

import math
import re

from gptjax.applications import tools
from gptjax.applications.client import Client
from gptjax.applications.replies import Reply
from gptjax.errors import UserError, shorten


class Remote:
    """url and key: as client.Client takes them. model: None: the first of the server's."""

    def __init__(self, url: str, model: str | None = None, key: str | None = None):
        self._client = Client(url, key)
        self.model = model or self._client.models()[0]["id"]

    @property
    def title(self) -> str:
        return f"{self.model} of {self._client.url}"

    def reply(
        self, messages, settings: dict, offered: dict[str, tools.Tool], schema: dict | None, on_text=None
    ) -> Reply:
        body = {"messages": tools.to_openai(messages), **settings}
        if offered:
            body["tools"] = [tool.schema(name) for name, tool in offered.items()]
        if schema is not None:
            named = {"name": "answer", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        choice = self._post("/chat/completions", body)
        message = choice["message"]
        calls = tuple(
            tools.Call(call["function"]["name"], call["function"]["arguments"], call["id"])
            for call in message.get("tool_calls") or ()
        )
        text = message.get("content") or ""
        return self._told(Reply(text, calls, choice.get("finish_reason")), on_text)

    def complete(self, prompt: str, settings: dict, on_text=None) -> Reply:
        choice = self._post("/completions", {"prompt": prompt, **settings})
        return self._told(Reply(choice["text"], (), choice.get("finish_reason")), on_text)

    def infill(self, prefix: str, suffix: str, settings: dict, on_text=None) -> Reply:
        choice = self._post("/completions", {"prompt": prefix, "suffix": suffix, **settings})
        return self._told(Reply(choice["text"], (), choice.get("finish_reason")), on_text)

    def choose(self, messages, labels: tuple[str, ...]) -> dict[str, float]:
        """The server may say nothing but a label; the likeliest first token decides."""
        body = {"messages": tools.to_openai(messages), "temperature": 0.0, "max_tokens": 100}
        choice = self._post("/chat/completions", body | {"regex": "|".join(map(re.escape, labels))})
        text = (choice["message"]["content"] or "").strip()
        if text not in labels:
            raise UserError(
                f"{self.title} says {shorten(repr(text), 80)}, none of the labels: it does not know `regex`."
            )
        return {label: 0.0 if label == text else -math.inf for label in labels}

    def embed(self, texts: list[str]) -> list[list[float]]:
        """A vector of each text."""
        answer = self._client.ask("/embeddings", {"model": self.model, "input": texts})
        try:
            return [one["embedding"] for one in sorted(answer["data"], key=lambda one: one["index"])]
        except (KeyError, TypeError) as error:
            raise self._client.misfit("/embeddings", f"it has no vectors: {error!r}") from None

    def _told(self, reply: Reply, on_text) -> Reply:
        if on_text is not None and not reply.calls:
            on_text(reply.text)
        return reply

    def _post(self, path: str, body: dict) -> dict:
        """The first choice of an answer. Raises UserError: there is none."""
        answer = self._client.ask(path, {"model": self.model, **body})
        try:
            choice = answer["choices"][0]
            choice["message" if path == "/chat/completions" else "text"]
        except (KeyError, IndexError, TypeError) as error:
            raise self._client.misfit(path, f"it has no choice of text: {error!r}") from None
        return choice
