"""What stands before the endpoints: who may ask, how large a request may be, and one line of log for each.

Plain ASGI, so that a stream is passed on piece by piece and a client that goes is noticed at once.
"""

import hmac
import logging
import re
import secrets
import time
import urllib.parse

from starlette.datastructures import Headers, MutableHeaders

from gptjax.errors import shorten
from gptjax.serve.api.faults import ApiError, answered
from gptjax.serve.service import Service

ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)  # of a client's X-Request-Id that is taken over
log = logging.getLogger("gptjax.serve")


def _fits(path: str, patterns: tuple[str, ...]) -> bool:
    """A pattern with * at its end stands for a name, without / in it."""
    folder, _, _ = path.rpartition("/")
    return path in patterns or f"{folder}/*" in patterns


def _host_of(address: str) -> str | None:
    try:
        return urllib.parse.urlsplit(address).hostname
    except ValueError:
        return None


class Told:
    """Gives each request an id, counts it, and logs its line: never a body, a query or a header, which hold prompts and keys."""

    def __init__(self, app, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if ID.fullmatch(given) else secrets.token_hex(8)
        began, status = time.monotonic(), 500

        async def telling(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(raw=message["headers"]).update(
                    {"X-Request-Id": request_id, "X-Content-Type-Options": "nosniff"}
                )
            await send(message)

        self._service.in_flight += 1
        try:
            await self._app(scope, receive, telling)
        finally:
            self._service.in_flight -= 1
            self._tell(scope, status, time.monotonic() - began, request_id)

    def _tell(self, scope, status: int, seconds: float, request_id: str) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"
        self._service.metrics.requests.labels(route, str(status)).inc()
        self._service.metrics.seconds.labels(route).observe(seconds)
        path = shorten(scope["path"], 100)
        log.info("%s %s %d %.0f ms %s", scope["method"], path, status, 1000 * seconds, request_id)


class Guard:
    """Refuses what may not ask, or says too much."""

    def __init__(self, app, service: Service):
        self._app, self._options = app, service.options
        self._keys = [key.encode() for key in self._options.keys]

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def sending(message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            self._check(scope, Headers(scope=scope))
            await self._app(scope, self._limited(receive), sending)
        except Exception as error:  # else uvicorn would log what it says, which may be a prompt
            answer = answered(error)
            if not started:
                await answer(scope, receive, send)

    def _check(self, scope, headers: Headers) -> None:
        """Raises ApiError: it may not ask, or says too much."""
        self._check_host(headers)
        self._check_origin(scope, headers)
        self._check_key(scope, headers)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 20 or int(length) > self._options.most_bytes:
            raise self._too_large()

    def _check_host(self, headers: Headers) -> None:
        """A page of somebody else's, whose name was made to point at this machine, is not answered."""
        hosts = self._options.hosts
        if hosts is None:
            return
        if _host_of(f"//{headers.get('host', '')}") not in hosts:
            raise ApiError(
                403, f"this server answers to {', '.join(hosts)}; start it with --allow_host=NAME for others."
            )

    def _check_origin(self, scope, headers: Headers) -> None:
        """Nor is a page elsewhere that sends a form here, for which a browser asks nobody: it would cast votes, say."""
        origin, hosts, allowed = headers.get("origin"), self._options.hosts, self._options.origins
        if hosts is None or origin is None or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return
        if not {"*", origin} & {*allowed} and _host_of(origin) not in hosts:
            raise ApiError(403, f"pages of {shorten(origin, 80)} may not ask; start the server with --cors for them.")

    def _check_key(self, scope, headers: Headers) -> None:
        if not self._keys or scope["method"] == "OPTIONS" or _fits(scope["path"], self._options.public):
            return
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
        if not any([hmac.compare_digest(given.encode(), key) for key in self._keys]):  # all of them, in the same time
            raise ApiError(401, "no valid API key; send one as Authorization: Bearer KEY.", code="invalid_api_key")

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the request has more than {self._options.most_bytes} bytes; send a shorter one.")

    def _limited(self, receive):
        """receive, for a body that is not announced, or longer than it was."""
        size = 0

        async def limited():
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._options.most_bytes:
                raise self._too_large()
            return message

        return limited
