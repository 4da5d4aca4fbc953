"""A real server of the chat page on a free port, whose answers are scripted: what the last message asks for, piece by piece."""

import asyncio
import contextlib
import json
import socket
import threading

TOKENS = [  # text, log-probability, and what else was likely
    ("The", -0.05, [("The", -0.05), ("A", -3.2)]),
    (" sky", -0.9, [(" sky", -0.9), (" sea", -1.1)]),
    (" is", -0.02, [(" is", -0.02), (" was", -4.2)]),
    (" <b>blue</b>", -4.0, [(" grey", -0.3), (" <b>blue</b>", -4.0)]),
    (".", -1.8, [("!", -0.5), (".", -1.8)]),
]
MODELS = [
    {"id": "tutor", "object": "model", "created": 0, "owned_by": "gptjax", "step": 1200, "context_length": 1024, "chat": True},
    {"id": "base", "object": "model", "created": 0, "owned_by": "gptjax", "step": 30000, "context_length": 512, "chat": False},
]  # fmt: skip


class Script:
    """What the server was asked, and how it answers. key: that requests need. models: as /v1/models lists them."""

    def __init__(self, key: str | None = None):
        self.key, self.requests, self.answers, self.cut_off = key, [], 0, 0
        self.models = [dict(model) for model in MODELS]

    def pieces(self, text: str) -> list:
        """(text, log-probability, likeliest) of the answer to a text: `say:TEXT` is repeated, `tokens` is TOKENS."""
        self.answers += 1
        if text.startswith("say:"):
            said = text.removeprefix("say:")
            return [(said[at : at + 7], -0.3, []) for at in range(0, len(said), 7)]
        if "euro" in text:  # a character of three tokens
            return [(f"bytes:\\x{byte:02x}", -0.1, []) for byte in "\u20ac".encode()] + [(" 5", -0.1, [])]
        if "tokens" in text:
            return TOKENS
        return [(word, -0.5, []) for word in (f"answer {self.answers} to", f" {text[:40]}")]


def routes(script: Script) -> list:
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    def refusal(status: int, message: str):
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        return JSONResponse({"error": error}, status_code=status)

    def keyed(request) -> bool:
        return script.key is None or request.headers.get("authorization") == f"Bearer {script.key}"

    async def models(request):
        if not keyed(request):
            return refusal(401, "This server wants an API key.")
        return JSONResponse({"object": "list", "data": script.models})

    async def answer(request):
        if not keyed(request):
            return refusal(401, "This server wants an API key.")
        body = await request.json()
        script.requests.append(body)
        text = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        if "refuse" in text:
            return refusal(400, "max_tokens=7 is too much for this test.")
        return StreamingResponse(_events(script, body, text), media_type="text/event-stream")

    return [
        Route("/v1/models", models),
        Route("/v1/chat/completions", answer, methods=["POST"]),
        Route("/v1/completions", answer, methods=["POST"]),
    ]


async def _events(script: Script, body: dict, text: str):
    """Server-sent events of an answer. `slow` makes one that never ends, `broken` one with an error in its middle, `lost` one
    whose connection ends too early."""
    pieces = script.pieces(text)
    head = {"id": "x", "created": 0, "model": body["model"]}
    try:
        for said, logprob, likeliest in pieces * (10**6 if "slow" in text else 1):
            yield _event(head | {"choices": [_choice(body, said, logprob, likeliest)]})
            await asyncio.sleep(0.02 if "slow" in text else 0)
            if "broken" in text:
                yield _event({"error": {"message": "The engine met an error.", "type": "server_error", "code": 500}})
                yield "data: [DONE]\n\n"
                return
            if "lost" in text:
                return
        yield _event(head | {"choices": [_choice(body, "", None, []) | {"finish_reason": "stop"}]})
        yield _event(head | {"choices": [], "usage": {"completion_tokens": len(pieces)}})
        yield "data: [DONE]\n\n"
    except asyncio.CancelledError:
        script.cut_off += 1
        raise


def _event(value: dict) -> str:
    return f": a comment\n\ndata: {json.dumps(value)}\n\n"


def _choice(body: dict, said: str, logprob: float | None, likeliest) -> dict:
    choice = {"index": 0, "finish_reason": None, "logprobs": None}
    wants = body.get("logprobs") and logprob is not None
    if "messages" in body:
        if wants:
            top = [{"token": word, "logprob": value, "bytes": None} for word, value in likeliest]
            token = {"token": said, "logprob": logprob, "bytes": None, "top_logprobs": top}
            choice["logprobs"] = {"content": [token]}
        return choice | {"delta": {"content": said}}
    if wants:
        choice["logprobs"] = {"tokens": [said], "token_logprobs": [logprob], "top_logprobs": [dict(likeliest)]}
    return choice | {"text": said}


@contextlib.contextmanager
def serving(routes: list):
    """The address of a server of the routes, on a free port of this machine, within the `with`."""
    import uvicorn
    from starlette.applications import Starlette

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(Starlette(routes=routes), log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
