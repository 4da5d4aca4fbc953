"""A server of OpenAI's interface, `gptjax serve` or another, spoken to by Python's own HTTP client."""

import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request

from gptjax.errors import UserError, first_line, shorten

SECONDS = 600  # between two reads of an answer
KEY = "OPENAI_API_KEY"  # of the environment; a key on a command line is shown to everybody by `ps`


class Client:
    """url: of the server, or what its chat/completions is under, such as http://127.0.0.1:8000/v1. key: None: that of the
    environment, if there is one. Raises UserError: the URL is none."""

    def __init__(self, url: str, key: str | None = None):
        if not re.match(r"https?://[^/]+", url):
            raise UserError(f"--url={shorten(url, 200)}: expected an address such as http://127.0.0.1:8000/v1.")
        self.url = url.rstrip("/")
        if not urllib.parse.urlsplit(self.url).path:
            self.url += "/v1"
        self._key = os.environ.get(KEY) if key is None else key

    def open(self, path: str, body: dict | None = None):
        """The response. Raises UserError: there is none, or the server refuses, in its own words."""
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            return urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=SECONDS)
        except urllib.error.HTTPError as error:
            with error:
                raise UserError(f"{self.url}{path} says {error.code}: {_reason(error)}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:  # no such host, nobody listens, not HTTP
            reason = first_line(Exception(getattr(error, "reason", error)))
            raise UserError(f"{self.url} cannot be reached: {reason}; start it with gptjax serve.") from None

    def ask(self, path: str, body: dict | None = None) -> dict:
        """The JSON object of an answer. Raises UserError: there is none."""
        with self.open(path, body) as response:
            try:
                answer = json.load(response)
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise self.misfit(path, first_line(error)) from None
        if not isinstance(answer, dict):
            raise self.misfit(path, "it is no object")
        return answer

    def misfit(self, path: str, reason: str) -> UserError:
        """The error of an answer that has another form than OpenAI's."""
        return UserError(f"{self.url}{path} does not answer as OpenAI's interface does ({reason}); is --url right?")

    def models(self) -> list[dict]:
        """At least one, each with an id. Raises UserError: there are none."""
        try:
            models = [each for each in self.ask("/models")["data"] if isinstance(each["id"], str)]
        except (KeyError, TypeError) as error:
            raise self.misfit("/models", f"it is no list of models: {error!r}") from None
        if not models:
            raise UserError(f"{self.url} has no model.")
        return models


def events(response):
    """The JSON object of each server-sent event, up to [DONE], or to where a stream ends in which every choice has told its
    reason to finish: transformers serve sends no [DONE]. Raises UserError: one tells of an error or is none, or the stream
    breaks off."""
    has_finished = {}
    for line in _lines(response):
        data = line.strip().removeprefix(b"data:").strip()
        if not line.startswith(b"data:") or not data:
            continue
        if data == b"[DONE]":
            return
        event = _event(data)
        if event.get("error"):
            raise UserError(f"the server ended the answer: {_message(event)}")
        for choice in event.get("choices") or ():
            index = choice.get("index", 0)
            has_finished[index] = has_finished.get(index, False) or bool(choice.get("finish_reason"))
        yield event
    if not has_finished or not all(has_finished.values()):
        raise UserError("the server went away in the middle of the answer.")


def _lines(response):
    """The lines of a response, up to where its connection breaks."""
    try:
        yield from response
    except (OSError, http.client.HTTPException):
        return


def _event(data: bytes) -> dict:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise UserError(
            f"the server sent {shorten(repr(data), 80)} in the middle of the answer, which is no JSON object."
        )
    return event


def _reason(error: urllib.error.HTTPError) -> str:
    """What a server says of an error, in OpenAI's shape or not."""
    body = error.read()
    try:
        return _message(json.loads(body))
    except ValueError:
        return shorten(body.decode(errors="replace"), 300) or error.reason


def _message(event) -> str:
    error = event.get("error", event) if isinstance(event, dict) else event
    return shorten(str(error.get("message", error) if isinstance(error, dict) else error), 500)
