"""A server with OpenAI's requests, `gptjax serve` or another, as a model that a recipe asks. It does not stream."""

import json
import math
import re
import urllib.error
import urllib.request

from gptjax.applications import tools
from gptjax.applications.replies import Reply
from gptjax.errors import UserError, first_line, shorten

SECONDS = 600  # that an answer may take


class Remote:
    """url: with or without the /v1 at its end. model: None: the first of the server's. key: None: the server asks for none."""

    def __init__(self, url: str, model: str | None = None, key: str | None = None):
        if not re.match(r"https?://[^/]+", url):
            raise UserError(f"--url={shorten(url, 200)} is no address; expected one as http://127.0.0.1:8000/v1.")
        self.url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._key = key
        self.model = model or self._first_model()

    @property
    def title(self) -> str:
        return f"{self.model} of {self.url}"

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
        answer = self._request("/embeddings", {"model": self.model, "input": texts})
        return [one["embedding"] for one in sorted(answer["data"], key=lambda one: one["index"])]

    def _told(self, reply: Reply, on_text) -> Reply:
        if on_text is not None and not reply.calls:
            on_text(reply.text)
        return reply

    def _first_model(self) -> str:
        models = self._request("/models", None)["data"]
        if not models:
            raise UserError(f"{self.url} serves no model.")
        return models[0]["id"]

    def _post(self, path: str, body: dict) -> dict:
        """The first choice of an answer."""
        return self._request(path, {"model": self.model, **body})["choices"][0]

    def _request(self, path: str, body: dict | None) -> dict:
        """Raises UserError: there is no server, or it refuses, in its own words."""
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise UserError(f"{self.url}{path} says {error.code}: {_reason(error)}") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise UserError(f"--url={self.url} does not answer ({first_line(OSError(str(reason)))}).") from error


def _reason(error: urllib.error.HTTPError) -> str:
    """What a server says of an error, in OpenAI's shape or not."""
    text = error.read().decode("utf-8", errors="replace")
    try:
        return shorten(json.loads(text)["error"]["message"], 300)
    except (ValueError, KeyError, TypeError):
        return shorten(text, 300)
