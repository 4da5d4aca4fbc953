"""A page and its data over HTTP, to this machine alone: `/` and `/data`, nothing else, and no file of the disk."""

import http.server
import secrets
import socket
import sys
import threading
import time
import urllib.parse

from gptjax.errors import UserError
from gptjax.watch import page

ADDRESS, FIRST_PORT, PORTS = "127.0.0.1", 8750, 20
HOSTS = ("127.0.0.1", "localhost")  # any port: it may be forwarded by ssh
POLL_SECONDS = 3.0


class Source:
    """What there is to see, read at most once in POLL_SECONDS however many ask, with the number of the look at which each
    part changed last. shown: its `look()` gives a View. Numbers of looks begin again with each Source, and `start` is another."""

    def __init__(self, shown, seconds: float = POLL_SECONDS):
        self._shown, self._seconds, self._lock = shown, seconds, threading.Lock()
        self._looked, self._number, self.start = None, 0, secrets.token_hex(8)
        self._known = {}  # (kind, name) -> (number of the look that changed it, its value)

    def view(self):
        with self._lock:
            return self._look()

    def news(self, since: int) -> dict:
        """{"start", "number", "parts", "charts", "marks", "ids", "going_on"}: what changed after the look of that number, and
        the charts there are."""
        with self._lock:
            view = self._look()
            news = {kind: {} for kind in ("parts", "charts")}
            for (kind, name), (number, value) in self._known.items():
                if number > since:
                    news[kind][name] = value
            ids = [chart["id"] for chart in view.charts]
            look = {"start": self.start, "number": self._number}
            return news | look | {"marks": view.marks, "ids": ids, "going_on": view.going_on}

    def _look(self):
        now = time.monotonic()
        if self._looked is None or now - self._looked[0] >= self._seconds:
            view = self._shown.look()
            self._looked, self._number = (now, view), self._number + 1
            values = {("parts", name): inner for name, inner in view.parts.items() if name != "charts"}
            values |= {("charts", chart["id"]): chart for chart in view.charts}
            self._known = {
                name: known for name, known in self._known.items() if name in values
            }  # one gone may come back
            for name, value in values.items():
                if self._known.get(name, (0, None))[1] != value:
                    self._known[name] = self._number, value
        return self._looked[1]


class Server(http.server.ThreadingHTTPServer):
    """shown: a RunPage or StudyPage; of a study each run has a page too, `/?run=KEY`."""

    daemon_threads = True

    def __init__(self, port: int, shown):
        super().__init__((ADDRESS, port), Handler)
        self._shown, self._sources, self._lock = shown, {None: Source(shown)}, threading.Lock()

    def source(self, key: str | None) -> Source:
        """Raises UserError: no such run."""
        with self._lock:
            if key not in self._sources:
                if not hasattr(self._shown, "run_page"):
                    raise UserError("this page is of one run.")
                self._sources[key] = Source(self._shown.run_page(key))
            return self._sources[key]

    def handle_error(self, request, client_address) -> None:
        """A browser that went away is no news; whatever else goes wrong is printed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_address[1]}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server_version, sys_version = "gptjax", ""

    def do_GET(self) -> None:
        parts = urllib.parse.urlsplit(self.path)
        asked = urllib.parse.parse_qs(parts.query)
        if urllib.parse.urlsplit(f"//{self.headers.get('Host', '')}").hostname not in HOSTS:
            self._answer(403, "text/plain", "gptjax watch answers to localhost alone\n")
        elif parts.path not in ("/", "/data"):
            self._answer(404, "text/plain", "there is / and /data\n")
        else:
            try:
                self._answer(200, *self._found(parts.path, asked))
            except UserError as error:
                self._answer(503, "text/plain", f"{error}\n")
            except OSError as error:
                self._answer(503, "text/plain", f"{error.strerror or error}\n")

    def _found(self, path: str, asked: dict[str, list[str]]) -> tuple[str, str]:
        """(type, text) of what was asked for."""
        source = self.server.source(asked.get("run", [None])[0])
        if path == "/":
            return "text/html", page.text(source.view(), poll_seconds=POLL_SECONDS)
        since = asked.get("since", ["0"])[0]
        return "application/json", page.as_json(source.news(int(since) if since.isdigit() else 0))

    def _answer(self, code: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(code)
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
        headers |= {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words) -> None: ...


def serve(shown, port: int | None, say) -> None:
    """Until Ctrl-C. port: None: the first that is free. say: takes the lines to print. Raises UserError: the port is taken,
    or there is nothing to show."""
    shown.look()
    with _opened(shown, port) as server:
        port = server.server_address[1]
        say(f"{server.url}  shows {shown.directory.path} until Ctrl-C")
        say(f"from another machine: ssh -L {port}:{ADDRESS}:{port} {socket.gethostname()}, then the same address")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("")


def _opened(shown, port: int | None) -> Server:
    for one in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else (port,):
        try:
            return Server(one, shown)
        except OSError as error:
            reason = error.strerror or error
    if port is None:
        raise UserError(
            f"the ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} are in use; name another with --serve=PORT."
        )
    raise UserError(f"--serve={port}: {reason}; use another port, or --serve alone for a free one.")
