"""From the flags of `gptjax serve` to a server that answers: models read, programs compiled, one line printed."""

import asyncio
import logging
import resource
import sys

import jax
import uvicorn

from gptjax.config import config_file
from gptjax.errors import UserError
from gptjax.run import run as runs_module
from gptjax.serve import addresses, people, recipes
from gptjax.serve import app as apps
from gptjax.serve import server as servers
from gptjax.serve.batcher import Batcher, BatcherOptions
from gptjax.serve.models import Models, Source, bytes_of, warm_up
from gptjax.serve.service import Options
from gptjax.terminal import si

SHUTDOWN_SECONDS = 5  # for connections to close, once no answer is in flight


def serve(args, runs: dict[str, str], adapters: dict[str, str], keys: tuple[str, ...]) -> int:
    """Until a signal; the exit code. Raises UserError: a run that cannot be served, a port that is taken."""
    door = addresses.bound(args.host, args.port)
    app = application(args, runs, adapters, keys)
    models = app.state.service.models
    config = uvicorn.Config(
        app,
        ssl_certfile=args.ssl_certfile,
        ssl_keyfile=args.ssl_keyfile,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    url = addresses.url(door, args.host, args.ssl_certfile is not None)
    server = servers.Server(config, app.state.service, args.drain_seconds, lambda: _say(url, models, args))
    try:
        asyncio.run(server.serve(sockets=[door]))
    finally:
        for each in models.all:
            each.batcher.stop()
        app.state.shown.close()
    return server.exit_code


def application(args, runs: dict[str, str], adapters: dict[str, str], keys: tuple[str, ...]):
    """The ASGI application, with its models loaded and warm; state.shown is to be closed behind it. Raises UserError: a run that
    cannot be served, files of votes or counts that cannot be used."""
    chosen_recipes = recipes.read(args.recipe or ())
    shown = people.parts(args.feedback, args.quality_reference)
    filters = _filters(args.filter)
    _log_to_stderr()
    models = load(args, runs, adapters)
    if not args.no_warm_up:
        for each in models.all:
            _tell(f"compiling {each.name} ...")
            warm_up(each)
    beside = {"routes": shown.routes, "observers": shown.observers, "more_metrics": shown.more_metrics}
    app = apps.create_app(models, _options(args, keys), **beside, filters=filters, recipes=chosen_recipes)
    app.state.shown = shown
    return app


def _filters(paths: list[str] | None):
    """serve.filters.Filters of files; None: there are none. Raises UserError: one cannot be read."""
    if not paths:
        return None
    from gptjax.serve.filters import Filters

    return Filters.of(paths)


def load(args, runs: dict[str, str], adapters: dict[str, str]) -> Models:
    """Raises UserError: a directory that is no run, an adapter of none of them."""
    options = BatcherOptions(slots=args.slots, queue=args.queue, places=args.places)
    models = Models(
        lambda run: Batcher(run.engine, run.tokenizer, options),
        lambda run: _form(run, args.chat_format),
        args.slots + args.queue,
        args.places,
    )
    mesh = None if args.mesh is None else config_file.parse_mesh(args.mesh)
    for name, path in runs.items():
        _tell(f"loading {path} ...")
        run = runs_module.read(path, args.step, dtype=args.dtype, mesh=mesh, ema=args.ema)
        models.add(Source(name, path), run)
    for name, path in adapters.items():
        _tell(f"loading {path} ...")
        models.add(*_adapted(name, path, runs, models))
    return models


def _adapted(name: str, path: str, runs: dict, models: Models):
    """(Source, Run) of an adapter on the run that it was trained on. Raises UserError: it is not among them."""
    refusals = []
    for base in runs:
        try:
            return Source(name, path, base), models.get(base).run.with_adapter(path)
        except UserError as error:
            refusals.append(str(error))
    raise UserError(f"--adapter={name}={path}: {refusals[0]}")


def _form(run, chat_format: str | None):
    """The chat format of a run; None: it has none. Raises UserError: one was asked for that it cannot have."""
    if chat_format is not None:
        form = run.chat_format(chat_format)
        form.stop_ids(run.tokenizer)  # refuses a tokenizer without its control tokens
        return form
    from gptjax.data.chat import kinds

    return kinds.of_run(run.config.data.chat, run.directory.tokenizer)


def _options(args, keys: tuple[str, ...]) -> Options:
    hosts = (*addresses.LOOPBACK, *(args.allow_host or ())) if args.host in addresses.LOOPBACK else None
    return Options(keys, tuple(args.cors or ()), hosts, args.most_megabytes * 2**20)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S"))
    logger = logging.getLogger("gptjax.serve")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)


def _say(url: str, models: Models, args) -> None:
    for each in models.all:
        about = each.about
        chat = "" if each.form is None else ", chat"
        print(
            f"{url}  {each.name}: step {each.step}, context {each.context_length}, {si(about['parameters'])} parameters"
            f" ({si(bytes_of(each.run))}B, {each.run.model_config.dtype}){chat}, {args.slots} slots, {_memory()} in use",
            flush=True,
        )


def _tell(text: str) -> None:
    """That it lives, while nothing answers yet."""
    print(text, flush=True)


def _memory() -> str:
    """What the first device has in use; of a CPU what this process has."""
    told = jax.local_devices()[0].memory_stats()
    size = told["bytes_in_use"] if told else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{si(size)}B"
