"""A server of OpenAI's interface that answers in `gptjax chat`."""

from gptjax.applications.client import Client, events
from gptjax.commands.chat_run import Answer
from gptjax.errors import UserError, shorten


class Server:
    """url: as client.Client takes it. model: None: the first that it has."""

    tokenizer_hash = None  # nothing is known of its tokens
    is_loading = False

    def __init__(self, url: str, model: str | None):
        self._client, self._model = Client(url), model

    def begin(self) -> None:
        """There is nothing to load."""

    def about(self) -> str:
        """Which weights answer, in one line."""
        models = self._client.models()
        name = self._model or models[0]["id"]
        facts = next((each for each in models if each["id"] == name), {})
        shown = [
            f"{key.replace('_', ' ')} {facts[key]}" for key in ("step", "context_length") if facts.get(key) is not None
        ]
        others = [each["id"] for each in models if each["id"] != name]
        return ", ".join([f"{name} of {self._client.url}", *shown]) + (
            f"; also there: {', '.join(others)}" if others else ""
        )

    def at(self, name: str) -> "Server":
        """Another model of the server."""
        names = [each["id"] for each in self._client.models()]
        if name not in names:
            raise UserError(f"{self._client.url} has no model {shorten(repr(name), 80)}; it has: {', '.join(names)}.")
        return Server(self._client.url, name)

    def answer(self, values: list[dict], tools: list[dict], settings: dict, attempt: int, show) -> Answer | None:
        """The answer to messages, which is shown as it comes. None: Ctrl-C came before there was anything to show."""
        message, is_cut = {"role": "assistant", "content": ""}, False
        try:
            body = self._body(values, tools, settings, attempt)
            with self._client.open("/chat/completions", body) as response:
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
        self._model = self._model or self._client.models()[0]["id"]
        messages = [{key: value for key, value in each.items() if key != "tokens"} for each in values]
        messages = [
            each for each in messages if each["content"] or each.get("tool_calls") or each["role"] != "assistant"
        ]
        seed = {"seed": (settings["seed"] + attempt) % 2**32} if "seed" in settings else {}
        asked = {"model": self._model, "messages": messages, "stream": True}
        return asked | settings | seed | ({"tools": tools} if tools else {})


def _deltas(response):
    """What each event of a stream adds to the message. Raises UserError: the server ends it with an error, or without its end."""
    for event in events(response):
        for choice in event.get("choices") or ():
            yield choice.get("delta") or {}


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
