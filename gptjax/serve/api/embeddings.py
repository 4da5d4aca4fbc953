"""/v1/embeddings: the mean of a text's last hidden states, of length 1."""

import asyncio
import base64

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gptjax.serve import jobs
from gptjax.serve.api import answering, bodies, reading, work
from gptjax.serve.api.faults import wrong

MOST_INPUTS = 2048  # OpenAI's


async def embeddings(request: Request) -> Response:
    service = request.app.state.service
    body = await reading.body_of(request, bodies.EmbeddingBody)
    served = service.models.get(body.model)
    prompts = await run_in_threadpool(_prompts, served, body)
    if service.draining:
        raise jobs.Draining
    future = served.batcher.embed([prompt.token_L for prompt in prompts])
    vector_ND = await answering.while_connected(request.receive, _of(future))
    if vector_ND is None:
        return Response(status_code=answering.GONE)
    tokens = sum(len(prompt.token_L) for prompt in prompts)
    used = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    service.metrics.count_tokens(served.name, used)
    data = [
        {"object": "embedding", "index": i, "embedding": _written(vector_D, body.encoding_format)}
        for i, vector_D in enumerate(np.asarray(vector_ND, np.float32))
    ]
    return JSONResponse(
        {
            "object": "list",
            "data": data,
            "model": served.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _prompts(served, body: bodies.EmbeddingBody) -> list[work.Prompt]:
    """Raises ApiError: none, too many, one that is longer than the context, a width that is not the model's."""
    prompts = work.of_texts(served, body.input, "input")
    if len(prompts) > MOST_INPUTS:
        raise wrong(f"input has {len(prompts)} texts; expected at most {MOST_INPUTS}.", "input")
    width = served.run.config.model.d_model
    if body.dimensions not in (None, width):
        raise wrong(f"dimensions={body.dimensions}: this model's vectors have {width}; leave it out.", "dimensions")
    for prompt in prompts:
        work.room(served, prompt, 0, "input")
    return prompts


async def _of(future):
    return await asyncio.wrap_future(future)


def _written(vector_D: np.ndarray, encoding: str):
    """A list of numbers, or little-endian float32 in base64, as the openai client asks for."""
    if encoding == "float":
        return vector_D.tolist()
    return base64.b64encode(vector_D.astype("<f4").tobytes()).decode()
