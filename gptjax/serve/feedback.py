"""What readers think of answers: POST /v1/feedback writes a line a vote, in forms that `data.preferences` trains on.

    {"messages": [...], "answer": "...", "rating": 1}          a thumb: 1 up, -1 down, 0 takes the vote of that id back
    {"messages": [...], "answer": "...", "over": ["..."]}      a choice: the answer is better than others to the same messages

and model, comment and id, which may be left out. Thumbs go to FILE (data.preferences="judged"), choices to a file beside it
(data.preferences="compared"). A vote whose id is in the file takes the place of the one before: somebody changed their mind.

Each vote is read by the reader of those forms before it is written, so that a line that training would leave out is refused
while its author is there to be told. Files are this machine's, readable by their owner alone, and not synced to the disk
vote by vote: a machine that loses its power loses the last seconds.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import secrets
import threading
import time

from gptjax.data.pairs import forms
from gptjax.errors import UserError, shorten
from gptjax.storage import writing

MOST_BYTES = 256 * 2**20  # of a file
MOST_BODY = 2**20  # bytes of one vote
MOST_COMMENT = 4000  # characters
MOST_OTHERS = 32
FIELDS = ("messages", "answer", "rating", "over", "model", "comment", "id")


class Full(Exception):
    """A file has as many bytes as it may."""


class Votes:
    """Votes as lines of two files, whichever processes of this machine write to them."""

    def __init__(self, file, most_bytes: int = MOST_BYTES):
        """Raises UserError: the file cannot be written."""
        self.thumbs = pathlib.Path(file)
        if "://" in str(file) or not self.thumbs.name:
            raise UserError(f"--feedback={file}: votes are written to a file of this machine; give its path.")
        self.choices = self.thumbs.with_name(f"{self.thumbs.stem}.choices{self.thumbs.suffix}")
        self._most_bytes, self._lock = most_bytes, threading.Lock()
        try:
            with _locked(self.thumbs), _locked(self.choices):
                pass
        except OSError as error:
            raise UserError(
                f"--feedback={file}: {error.strerror or error}; give a file that can be written."
            ) from error

    def add(self, body) -> str:
        """The id of the vote. Raises UserError: no vote; Full; OSError: the disk."""
        record = record_of(body)
        file = self.choices if "answers" in record else self.thumbs
        with self._lock, _locked(file) as descriptor:
            others = _without(file, record["id"]) if "id" in body else None
            if others is not None:
                self._replace(file, others + (b"" if body.get("rating") == 0 else _line(record)))
            elif body.get("rating") == 0:
                raise UserError(f"id={body['id']}: there is no such vote to take back.")
            else:
                self._append(file, descriptor, _line(record))
        return record["id"]

    def _replace(self, file, lines: bytes) -> None:
        self._check_room(file, len(lines))
        os.close(os.open(writing.partial(file), os.O_CREAT, 0o600))  # so that no one else ever reads it
        writing.replace_whole(file, lines)

    def _append(self, file, descriptor: int, line: bytes) -> None:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":  # a process was killed within a line
            line = b"\n" + line
        self._check_room(file, size + len(line))
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError("the disk is full")
        except OSError:
            os.ftruncate(descriptor, size)
            raise

    def _check_room(self, file, size: int) -> None:
        if size > self._most_bytes:
            raise Full(f"{file.name} is full ({self._most_bytes} bytes): move it away, and votes go to a new one.")


def record_of(body) -> dict:
    """The line of a vote, as forms.from_record reads it. Raises UserError: a field is none, missing or of another type, or
    nothing could be learnt from the vote."""
    _check(body)
    record = {"prompt": body["messages"]}
    if "over" in body:
        record |= {"answers": [body["answer"], *body["over"]], "ranking": [1] + [2] * len(body["over"])}
        kind = "compared"
    else:
        record |= {"completion": body["answer"], "label": body["rating"] == 1}
        kind = "judged"
    forms.from_record(record, "the vote", kind)
    named = {name: body[name] for name in ("model", "comment") if body.get(name)}
    return record | named | {"id": body.get("id", secrets.token_hex(12)), "time": int(time.time())}


def _check(body) -> None:
    if not isinstance(body, dict):
        raise UserError(f"a vote is an object with messages, answer and rating; this is a {type(body).__name__}.")
    unknown = [name for name in body if name not in FIELDS]
    _require(not unknown, f"{shorten(repr(unknown), 80)}: no fields of a vote; those are {', '.join(FIELDS)}.")
    for name, most in (("answer", MOST_BODY), ("model", 200), ("comment", MOST_COMMENT), ("id", 64)):
        value = body.get(name, "")
        _require(isinstance(value, str), f"{name} is a {type(value).__name__}; expected a text.")
        _require(len(value) <= most, f"{name} has {len(value)} characters; at most {most} are kept.")
    _require(
        "id" not in body or re.fullmatch(r"[\w.:-]+", body["id"], re.ASCII), "id: expected letters, digits and -_.:"
    )
    _require("messages" in body and "answer" in body, "a vote needs messages, what was asked, and answer.")
    _require(
        ("rating" in body) != ("over" in body), "a vote has either rating (1, -1 or 0) or over (the other answers)."
    )
    _check_opinion(body)


def _check_opinion(body: dict) -> None:
    if "over" in body:
        others = body["over"]
        is_texts = isinstance(others, list) and all(isinstance(other, str) for other in others)
        _require(is_texts and 1 <= len(others) <= MOST_OTHERS, f"over: expected a list of 1 to {MOST_OTHERS} texts.")
        return
    rating = body["rating"]
    valid = isinstance(rating, int) and not isinstance(rating, bool) and rating in (-1, 0, 1)
    _require(valid, f"rating={shorten(repr(rating), 80)}; expected 1 (good), -1 (bad) or 0 (takes the vote back).")
    _require(rating or "id" in body, "rating=0 takes back a vote: name it by its id.")


def _require(condition, message: str) -> None:
    if not condition:
        raise UserError(message)


# ---- files


@contextlib.contextmanager
def _locked(file: pathlib.Path):
    """A descriptor that appends to the file, which no other process writes meanwhile."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_still(file, descriptor):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _is_still(file, descriptor: int) -> bool:
    """Whether the path is still this file: another process may have put a new one in its place, or moved it away."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _line(record: dict) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _without(file, name: str) -> bytes | None:
    """The lines less those of a vote; None: it is not among them."""
    lines, needle = file.read_bytes().splitlines(keepends=True), f'"id": "{name}"'.encode()
    kept = [line for line in lines if not (needle in line and _id(line) == name)]
    return b"".join(kept) if len(kept) < len(lines) else None


def _id(line: bytes) -> str | None:
    try:
        return json.loads(line).get("id")
    except ValueError:
        return None


# ---- HTTP


def routes(votes: Votes) -> list:
    """Starlette's route of POST /v1/feedback."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    def refusal(status: int, message: str, kind: str = "invalid_request_error"):
        error = {"message": message, "type": kind, "param": None, "code": None}
        return JSONResponse({"error": error}, status_code=status)

    async def feedback(request):
        try:
            body = json.loads(await _body(request))
            return JSONResponse({"id": await run_in_threadpool(votes.add, body)})
        except UserError as error:
            return refusal(400, str(error))
        except (ValueError, RecursionError) as error:
            return refusal(400, f"the body is no JSON: {error}")
        except Full as error:
            return refusal(507, str(error), "server_error")
        except OSError as error:
            return refusal(500, f"the vote was not written: {error.strerror or error}.", "server_error")

    return [Route("/v1/feedback", feedback, methods=["POST"])]


async def _body(request) -> bytes:
    """Raises UserError: it is longer than a vote is."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY:
            raise UserError(f"a vote has at most {MOST_BODY} bytes.")
    return body
