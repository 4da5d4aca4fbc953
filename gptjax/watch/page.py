"""The HTML file of a View: its parts as they are, and its charts as numbers, which page.js draws."""

import base64
import hashlib
import json
import pathlib

from gptjax import terminal
from gptjax.pages import style
from gptjax.watch.view import View

HERE = pathlib.Path(__file__).parent
SCRIPT, CSS = (HERE / name for name in ("page.js", "page.css"))


def text(view: View, poll_seconds: float | None = None, reload_seconds: float | None = None) -> str:
    """poll_seconds: between two questions to the server that the page came from. reload_seconds: until a browser reads the
    file again."""
    script = SCRIPT.read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; connect-src 'self'"
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    if reload_seconds is not None:
        head += f'<meta http-equiv="refresh" content="{reload_seconds:g}">\n'
    parts = "\n".join(f'<div id="{name}">{inner}</div>' for name, inner in view.parts.items())
    data = as_json({"charts": view.charts, "marks": view.marks, "poll_seconds": poll_seconds})
    body = f'{parts}\n<script type="application/json" id="data">{data}</script>\n<script>{script}</script>'
    return style.document(view.title, body, CSS.read_text(), head)


def as_json(value) -> str:
    """That can stand within HTML."""
    return json.dumps(terminal.finite(value), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
