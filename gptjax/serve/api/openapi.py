"""/openapi.json, made from the bodies themselves, and /docs, a page of it that loads nothing from elsewhere."""

import functools
import html
import importlib.metadata

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse

from gptjax.serve.api import bodies

ENDPOINTS = {  # (method, path): (what it does, its body)
    ("post", "/v1/chat/completions"): ("The answer to a conversation.", bodies.ChatBody),
    ("post", "/v1/completions"): ("Text that goes on from prompts.", bodies.CompletionBody),
    ("post", "/v1/embeddings"): ("A vector of each text.", bodies.EmbeddingBody),
    ("get", "/v1/models"): ("The models there are: their step, context, and whether they hold conversations.", None),
    ("get", "/v1/models/{name}"): ("One of them.", None),
    ("post", "/v1/models/reload"): (
        "Have models answer with a newer step; answers go on. Needs a key.",
        bodies.ReloadBody,
    ),
    ("post", "/tokenize"): ("The tokens of a text or a conversation.", bodies.TokenizeBody),
    ("post", "/detokenize"): ("The text of tokens.", bodies.DetokenizeBody),
    ("get", "/tokenizer_info"): ("Names of control tokens, and the chat template.", None),
    ("get", "/health"): ("200 while the server takes requests, else 503.", None),
    ("get", "/metrics"): ("Counts and times, for Prometheus.", None),
}
STYLE = """
:root { color-scheme: light dark } body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0;
border-bottom: 1px solid #8884 } code { font-family: ui-monospace, monospace } h2 { margin-top: 2rem }
"""


async def schema(request: Request) -> JSONResponse:
    return JSONResponse(document())


async def page(request: Request) -> HTMLResponse:
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return HTMLResponse(_page(), headers={"Content-Security-Policy": policy})


@functools.cache
def document() -> dict:
    kinds = [(kind, "validation") for _, kind in ENDPOINTS.values() if kind is not None]
    _, definitions = models_json_schema(kinds, ref_template="#/components/schemas/{model}")
    paths = {}
    for (method, path), (purpose, kind) in ENDPOINTS.items():
        paths.setdefault(path, {})[method] = _operation(path, purpose, kind)
    return {
        "openapi": "3.1.0",
        "info": {"title": "gptjax", "version": importlib.metadata.version("gptjax")},
        "paths": paths,
        "components": {"schemas": definitions["$defs"] | {"Error": _ERROR}, "securitySchemes": _KEYS},
        "security": [{}, {"key": []}],
    }


_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_KEYS = {"key": {"type": "http", "scheme": "bearer"}}


def _operation(path: str, purpose: str, kind) -> dict:
    fault = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    told = {
        "summary": purpose,
        "responses": {"200": {"description": "the answer"}, "4XX": {"description": "what is wrong"} | fault},
    }
    if "{name}" in path:
        told["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    if kind is not None:
        reference = {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}
        told["requestBody"] = {"required": True, "content": {"application/json": reference}}
    return told


@functools.cache
def _page() -> str:
    schemas = document()["components"]["schemas"]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>gptjax: endpoints</title>",
        f"<style>{STYLE}</style>",
    ]
    parts.append("<h1>Endpoints</h1><p>The same for programs: <a href=/openapi.json>/openapi.json</a>.</p>")
    for (method, path), (purpose, kind) in ENDPOINTS.items():
        parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(purpose)}</p>")
        if kind is not None:
            parts.append(_table(schemas[kind.__name__]))
    return "\n".join(parts)


def _table(schema: dict) -> str:
    required = schema.get("required", [])
    rows = []
    for name, field in schema["properties"].items():
        needed = " (required)" if name in required else ""
        words = html.escape(field.get("description", "")) + needed
        rows.append(f"<tr><td><code>{name}</code><td>{html.escape(_type(field))}<td>{words}")
    return f"<table><tr><th>field<th>type<th>what it is{''.join(rows)}</table>"


def _type(field: dict) -> str:
    """A schema in words."""
    if "anyOf" in field:
        return " or ".join(_type(each) for each in field["anyOf"] if each.get("type") != "null")
    if "$ref" in field:
        return "object"
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("type", "any"))
