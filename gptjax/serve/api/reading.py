"""A request's bytes to one of the bodies, or to the reason why they are none."""

import json

import pydantic
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from gptjax.errors import shorten
from gptjax.serve.api import bodies
from gptjax.serve.api.faults import ApiError, wrong

LARGE = 2**16  # bytes, that take milliseconds to read: what is larger is read beside the event loop
MOST_DEPTH = 64  # of objects in objects: a schema of tools has a dozen


async def body_of(request: Request, kind: type[pydantic.BaseModel]):
    """A body of this kind. Raises ApiError: another content type or encoding (415), no JSON, a field that is wrong (400)."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        given = shorten(content_type, 80) or "none"
        raise ApiError(415, f"the content type is {given}; send application/json.")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise ApiError(415, f"the content encoding is {shorten(encoding, 80)}; send the body as it is.")
    content = await request.body()
    return await run_in_threadpool(_read, content, kind) if len(content) > LARGE else _read(content, kind)


def _read(content: bytes, kind: type[pydantic.BaseModel]):
    """As `body_of`."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        where = f" at character {error.pos}: {error.msg}" if isinstance(error, json.JSONDecodeError) else ""
        raise wrong(f"the body is no JSON{where}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise wrong(f"the body is a JSON {_name(value)}; expected an object.")
    return checked(value, kind)


def checked(value: dict, kind: type[pydantic.BaseModel]):
    """Raises ApiError: 400, for the first field that is wrong."""
    if _depth(value) > MOST_DEPTH:
        raise wrong(f"objects and lists are nested more than {MOST_DEPTH} deep.")
    _check_characters(value)
    try:
        return kind.model_validate(value)
    except pydantic.ValidationError as error:
        raise _fault(error) from None


def _fault(error: pydantic.ValidationError) -> ApiError:
    """The first error as a client is told it, without the value, which may be a prompt."""
    first = error.errors(include_url=False, include_context=False)[0]
    field = str(first["loc"][0]) if first["loc"] else None
    places = first["loc"]
    if field in bodies.EXPECTED and first["type"] != "missing":
        return wrong(f"{field}: expected {bodies.EXPECTED[field]}{_at(places[1:])}.", field)
    message = first["msg"][0].lower() + first["msg"][1:]
    return wrong(f"{'.'.join(map(str, places)) or 'the body'}: {message}.", field)


def _at(places: tuple) -> str:
    """Where in a list something is wrong."""
    numbers = [place for place in places if isinstance(place, int)]
    return f"; what is wrong is at [{']['.join(map(str, numbers))}]" if numbers else ""


def _name(value) -> str:
    kinds = {list: "array", str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    return kinds[type(value)]


def _depth(value) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        each, depth = waiting.pop()
        deepest = max(deepest, depth)
        if isinstance(each, dict | list) and depth <= MOST_DEPTH:
            parts = each.values() if isinstance(each, dict) else each
            waiting += [(part, depth + 1) for part in parts if isinstance(part, dict | list)]
    return deepest


def _check_characters(value) -> None:
    """Raises ApiError: half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            try:
                each.encode()
            except UnicodeEncodeError:
                raise wrong("a text has half of a surrogate pair, which is no character.") from None
        else:
            parts = (*each.keys(), *each.values()) if isinstance(each, dict) else each
            waiting += [part for part in parts if isinstance(part, str | dict | list)]
