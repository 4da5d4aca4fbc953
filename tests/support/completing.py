"""A server of completions as OpenAI's clients expect them, which says as many words as it is asked for: python completing.py PORT."""

import json
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route


async def completions(request):
    body = await request.json()
    if body["model"] not in ("good", "failing", "without [DONE]"):
        return JSONResponse({"error": {"message": f"no model {body['model']}"}}, 404)

    async def stream():
        for i in range(body["max_tokens"]):
            yield event({"choices": [{"text": "" if i == 0 else "word "}]})
        if body["model"] == "failing":
            yield event({"error": {"message": "out of memory"}})
        yield event({"choices": [{"text": "", "finish_reason": "length"}]})
        yield event({"choices": [], "usage": {"completion_tokens": body["max_tokens"]}})
        if body["model"] != "without [DONE]":
            yield "data: [DONE]\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


def event(values: dict) -> str:
    return f"data: {json.dumps(values)}\n\n"


async def health(request):
    return JSONResponse({})


routes = [Route("/v1/completions", completions, methods=["POST"]), Route("/health", health)]

if __name__ == "__main__":
    uvicorn.run(Starlette(routes=routes), port=int(sys.argv[1]), log_level="warning")
