"""Server-sent events: `data: {...}`, a line of comment in silence, `data: [DONE]` at the end, also after an error."""

import json

from starlette.responses import Response

from gptjax.serve.api import answering, faults

PING, DONE = b": still here\n\n", b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would keep pieces back to fill a buffer


def event(value: dict) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


class EventStream(Response):
    """chunks: an asynchronous generator of JSON values, None for a sign of life; of `work`, which is given up when the client
    goes."""

    media_type = "text/event-stream"

    def __init__(self, work: answering.Work, chunks):
        super().__init__(headers=HEADERS)
        self._work, self._chunks = work, chunks
        del self.headers["content-length"]

    async def __call__(self, scope, receive, send) -> None:
        with self._work:
            await answering.while_connected(receive, self._send(send))

    async def _send(self, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for chunk in self._chunks:
                await _body(send, PING if chunk is None else event(chunk))
        except Exception as error:
            await _body(send, event(faults.of_exception(error).body))
        await _body(send, DONE)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _body(send, content: bytes) -> None:
    await send({"type": "http.response.body", "body": content, "more_body": True})
