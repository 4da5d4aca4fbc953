"""/v1/models, /health, /metrics, and the swap to a newer step."""

import asyncio
import logging

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gptjax.errors import UserError
from gptjax.serve.api import bodies, reading
from gptjax.serve.api.faults import RETRY_SECONDS, ApiError, wrong
from gptjax.serve.service import Service

OLD_SECONDS = 600.0  # that answers of the model before may take, once it is swapped
log = logging.getLogger("gptjax.serve")


async def models(request: Request) -> JSONResponse:
    return JSONResponse({"object": "list", "data": [each.about for each in request.app.state.service.models.all]})


async def model(request: Request) -> JSONResponse:
    return JSONResponse(request.app.state.service.models.get(request.path_params["name"]).about)


async def health(request: Request) -> JSONResponse:
    """200 while it takes requests, else 503: balancers look at this."""
    service = request.app.state.service
    of_models = {each.name: each.batcher.status.state for each in service.models.all}
    told = {"status": service.state, "models": of_models}
    if service.state == "ready":
        return JSONResponse(told)
    message = {"draining": "this server is about to stop.", "failed": "the engine has failed."}[service.state]
    error = ApiError(503, message, code=service.state)
    return JSONResponse(told | error.body, 503, {"Retry-After": str(RETRY_SECONDS)})


async def metrics(request: Request) -> Response:
    service = request.app.state.service
    return Response(service.metrics.text(service), media_type="text/plain; version=0.0.4; charset=utf-8")


async def reload(request: Request) -> JSONResponse:
    """A newer step of a model, or of all, in its place, while answers go on. Raises ApiError: no keys, no such step."""
    service = request.app.state.service
    if not service.options.keys:
        raise ApiError(
            403, "models are swapped by whoever has a key; start the server with --api_key, or send it SIGHUP."
        )
    body = await reading.body_of(request, bodies.ReloadBody)
    if body.step is not None and body.model is None:
        raise wrong("step is of one model; name it by model.", "model")
    names = [each.name for each in service.models.all] if body.model is None else [service.models.get(body.model).name]
    try:
        swapped = await swap(service, names, body.step)
    except UserError as error:
        raise wrong(str(error), "step") from None
    return JSONResponse({"models": [service.models.get(name).about | {"swapped": name in swapped} for name in names]})


async def swap(service: Service, names: list[str], step: int | None = None) -> list[str]:
    """The names of models that have another step now. Those before them go on with what they have begun, and end by
    themselves. Raises UserError: no such step."""
    swapped = []
    async with service.reloading:
        for name in names:
            made = await run_in_threadpool(service.models.newer, name, step)
            if made is None:
                continue
            before = service.models.put(made)
            swapped.append(name)
            log.info("%s answers with step %d", name, made.step)
            asyncio.get_running_loop().run_in_executor(None, _end, before.batcher)
    return swapped


def _end(batcher) -> None:
    batcher.drain(OLD_SECONDS)
    batcher.stop()
