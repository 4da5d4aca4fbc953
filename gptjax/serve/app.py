"""The application: routes, what stands before them, and what is shared by them."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from gptjax.errors import UserError
from gptjax.serve import jobs
from gptjax.serve.api import chat, completions, embeddings, faults, listing, openapi, tokens
from gptjax.serve.guards import Guard, Told
from gptjax.serve.metrics import Metrics
from gptjax.serve.models import Models, NoSuchModel
from gptjax.serve.service import Options, Service

ROUTES = (
    ("POST", "/v1/chat/completions", chat.chat),
    ("POST", "/v1/completions", completions.completions),
    ("POST", "/v1/embeddings", embeddings.embeddings),
    ("GET", "/v1/models", listing.models),
    ("POST", "/v1/models/reload", listing.reload),
    ("GET", "/v1/models/{name:path}", listing.model),
    ("POST", "/tokenize", tokens.tokenize),
    ("POST", "/detokenize", tokens.detokenize),
    ("GET", "/tokenizer_info", tokens.tokenizer_info),
    ("GET", "/health", listing.health),
    ("GET", "/metrics", listing.metrics),
    ("GET", "/openapi.json", openapi.schema),
    ("GET", "/docs", openapi.page),
)


def create_app(
    models: Models, options: Options, *, routes=(), observers=(), more_metrics=(), filters=None, recipes=None
) -> Starlette:
    """filters: serve.filters.Filters; None: without. recipes: serve.recipes.read's. routes: further ones of Starlette's. observers: each is called with a service.Record of each finished answer, and must
    not block. more_metrics: functions whose text follows /metrics."""
    counts = () if filters is None else (filters.counts.prometheus,)
    service = Service(models, options, Metrics((*more_metrics, *counts)), tuple(observers), filters, recipes or {})
    own = [Route(path, endpoint, methods=[method]) for method, path, endpoint in ROUTES]
    before = [Middleware(Told, service=service)]
    if options.origins:
        allowed = {"allow_origins": options.origins, "allow_methods": ["*"], "allow_headers": ["*"]}
        before.append(Middleware(CORSMiddleware, **allowed, expose_headers=["X-Request-Id"]))
    before.append(Middleware(Guard, service=service))
    kinds = (faults.ApiError, UserError, jobs.Refused, HTTPException)
    handlers = {kind: faults.handle for kind in kinds} | {NoSuchModel: _no_such_model}
    app = Starlette(routes=[*routes, *own], middleware=before, exception_handlers=handlers)
    app.state.service = service
    return app


async def _no_such_model(request, error: NoSuchModel):
    return faults.answered(faults.ApiError(404, str(error), param="model", code="model_not_found"))
