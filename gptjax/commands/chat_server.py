"""A server of OpenAI's interface that answers in `gptjax chat`, spoken to by Python's own HTTP client."""

import json
import os
import urllib.error
import urllib.request

from gptjax.commands.chat_run import Answer
from gptjax.errors import UserError, shorten

SECONDS = 600  # between two lines of an answer
KEY = "OPENAI_API_KEY"


class Server:
    """url: that chat/completions is under, such as http://127.0.0.1:8000/v1. model: None: the first that it has."""

    tokenizer_hash = None  # nothing is known of its tokens
    is_loading = False

    def __init__(self, url: str, model: str | None):
        if not url.startswith(("http://", "https://")):
            raise UserError(f"--url={url}: expected an address such as http://127.0.0.1:8000/v1.")
        self._url, self._model = url.rstrip("/"), model

    def begin(self) -> None:
        """There is nothing to load."""

    def about(self) -> str:
        """Which weights answer, in one line."""
        models = self._models()
        name = self._model or models[0]["id"]
        facts = next((each for each in models if each["id"] == name), {})
        shown = [
            f"{key.replace('_', ' ')} {facts[key]}" for key in ("step", "context_length") if facts.get(key) is not None
        ]
        others = [each["id"] for each in models if each["id"] != name]
        return ", ".join([f"{name} of {self._url}", *shown]) + (f"; also there: {', '.join(others)}" if others else "")

    def at(self, name: str) -> "Server":
        """Another model of the server."""
        names = [each["id"] for each in self._models()]
        if name not in names:
            raise UserError(f"{self._url} has no model {shorten(repr(name), 80)}; it has: {', '.join(names)}.")
        return Server(self._url, name)

    def answer(self, values: list[dict], tools: list[dict], settings: dict, attempt: int, show) -> Answer | None:
        """The answer to messages, which is shown as it comes. None: Ctrl-C came before there was anything to show."""
        message, is_cut = {"role": "assistant", "content": ""}, False
        try:
            body = self._body(values, tools, settings, attempt)
            with self._open("/chat/completions", body) as response:
                for delta in _deltas(response):
                    show(delta.get("content") or "")
                    _add(message, delta)
        except KeyboardInterrupt:
            is_cut = True
            if not message["content"]:
                return None
            message.pop("tool_calls", None)  # half of them, maybe
        return Answer(message, is_cut)

    def _body(self, values, tools, settings, attempt: int) -> dict:
        self._model = self._model or self._models()[0]["id"]
        messages = [{key: value for key, value in each.items() if key != "tokens"} for each in values]
        messages = [
            each for each in messages if each["content"] or each.get("tool_calls") or each["role"] != "assistant"
        ]
        seed = {"seed": (settings["seed"] + attempt) % 2**32} if "seed" in settings else {}
        asked = {"model": self._model, "messages": messages, "stream": True}
        return asked | settings | seed | ({"tools": tools} if tools else {})

    def _models(self) -> list[dict]:
        with self._open("/models") as response:
            try:
                models = [each for each in json.load(response)["data"] if isinstance(each["id"], str)]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self._url}/models is no list of models; is --url right? ({error})") from None
        if not models:
            raise UserError(f"{self._url} has no model.")
        return models

    def _open(self, path: str, body: dict | None = None):
        """The response. Raises UserError: there is none, or it is an error, which the server says."""
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        data = None if body is None else json.dumps(body).encode()
        try:
            return urllib.request.urlopen(urllib.request.Request(self._url + path, data, headers), timeout=SECONDS)
        except urllib.error.HTTPError as error:
            with error:
                raise UserError(f"{self._url} says {error.code}: {_reason(error)}") from None
        except (OSError, ValueError) as error:  # a URL that is none, no such host, nobody listens
            reason = getattr(error, "reason", error)
            raise UserError(f"{self._url} cannot be reached: {reason}; start it with gptjax serve.") from None


def _deltas(response):
    """The deltas of a stream of server-sent events. Raises UserError: the server ends it with an error, or without its end."""
    for line in response:
        if not line.startswith(b"data:"):
            continue
        data = line[len(b"data:") :].strip()
        if data == b"[DONE]":
            return
        event = json.loads(data)
        if "error" in event:
            raise UserError(f"the server ended the answer: {_message(event)}")
        for choice in event.get("choices", []):
            yield choice.get("delta") or {}
    raise UserError("the server went away in the middle of the answer.")


def _add(message: dict, delta: dict) -> None:
    """Adds what a delta has to a message."""
    message["content"] += delta.get("content") or ""
    for part in delta.get("tool_calls") or []:
        calls = message.setdefault("tool_calls", [])
        while len(calls) <= part["index"]:
            calls.append({"id": None, "type": "function", "function": {"name": "", "arguments": ""}})
        call, function = calls[part["index"]], part.get("function") or {}
        call["id"] = part.get("id") or call["id"]
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""


def _reason(error) -> str:
    body = error.read()
    try:
        return _message(json.loads(body))
    except ValueError:
        return shorten(body.decode(errors="replace"), 300) or error.reason


def _message(event) -> str:
    error = event.get("error", event) if isinstance(event, dict) else event
    return shorten(str(error.get("message", error) if isinstance(error, dict) else error), 500)
