"""The models of a server, by name: runs, and adapters that share the arrays of their base."""

import dataclasses
import time
import typing

import jax

from gptjax.errors import UserError, did_you_mean, shorten
from gptjax.models import architectures
from gptjax.parallel import numerics

MOST_NAME = 200  # characters of a name that nobody has


@dataclasses.dataclass(frozen=True)
class Served:
    """A model as it answers now. Another step of it is another Served, with a batcher of its own."""

    name: str
    run: object  # run.run.Run
    form: object | None  # data.chat.Format; None: it holds no conversations
    batcher: object  # serve.batcher.Batcher
    context_length: int  # tokens of a prompt and its answer
    most_jobs: int  # that its batcher can hold, at work and waiting
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    @property
    def step(self) -> int:
        return self.run.step

    @property
    def fingerprint(self) -> str:
        """Another for other parameters."""
        return f"{self.name}-step-{self.step}"

    @property
    def about(self) -> dict:
        """An entry of /v1/models."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "gptjax",
            "step": self.step,
            "context_length": self.context_length,
            "max_model_len": self.context_length,  # vLLM's name of it
            "chat": self.form is not None,
            "parameters": architectures.entries(self.run.params),
        }


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model comes from, so that a newer step of it can be read. base: of an adapter, the name of its run."""

    name: str
    path: str
    base: str | None = None


class Models:
    """make_batcher(run) and chat_format(run) make what a Served needs beside its run."""

    def __init__(self, make_batcher: typing.Callable, chat_format: typing.Callable, most_jobs: int, places: int | None):
        self._make_batcher, self._chat_format = make_batcher, chat_format
        self._most_jobs, self._places = most_jobs, places
        self._served: dict[str, Served] = {}
        self._sources: dict[str, Source] = {}

    @property
    def all(self) -> list[Served]:
        return list(self._served.values())

    def get(self, name: str | None) -> Served:
        """None: the first. Raises NoSuchModel."""
        if name is None:
            return next(iter(self._served.values()))
        if name not in self._served:
            raise NoSuchModel(name, self._served)
        return self._served[name]

    def source(self, name: str) -> Source:
        return self._sources[name]

    def add(self, source: Source, run) -> Served:
        """Raises UserError: a name twice, a model that writes no text."""
        if source.name in self._served:
            raise UserError(f"two models are named {source.name}; give one another name: --workdir=NAME=DIR.")
        self._sources[source.name] = source
        return self._put(source.name, run)

    def put(self, served: Served) -> Served:
        """Puts a model in place of the one of its name, which is returned and goes on with what it has."""
        before, self._served[served.name] = self._served[served.name], served
        return before

    def make(self, name: str, run) -> Served:
        """Raises UserError: a model that does not go on with a text."""
        if not run.config.data.writes_on:
            raise UserError(
                f"a model of data.objective={run.config.data.objective!r} fills in what is missing in a text and cannot"
                f" continue one, which is what a server does; leave out {run.directory.path}."
            )
        with numerics.on_mesh(run.mesh):
            batcher = self._make_batcher(run)
            batcher.start()
        context = min(run.engine.config.context_length, self._places or run.engine.config.context_length)
        return Served(name, run, self._chat_format(run), batcher, context, self._most_jobs)

    def _put(self, name: str, run) -> Served:
        self._served[name] = self.make(name, run)
        return self._served[name]

    def newer(self, name: str, step: int | None) -> Served | None:
        """The model with the parameters of another step of its directory, warm, not yet in its place; None: it has that step.

        Raises UserError: no such step."""
        served, source = self._served[name], self._sources[name]
        run = served.run
        steps = run.steps
        if not steps:
            raise UserError(f"{source.path} has no checkpoint any more.")
        chosen = steps[-1] if step is None else step
        if chosen not in steps:
            raise UserError(f"{name} has no checkpoint of step {chosen}; there are: {', '.join(map(str, steps))}.")
        if chosen == served.step:
            return None
        base = None if source.base is None else self._served[source.base].run
        made = self.make(name, run.at(chosen) if base is None else base.with_adapter(source.path, chosen))
        warm_up(made)
        return made


class NoSuchModel(Exception):
    def __init__(self, name: str, known):
        name = name[:MOST_NAME]  # it may be as long as a request
        near = did_you_mean(name, known)
        super().__init__(f"there is no model {shorten(repr(name), 80)}{near}; the models are: {', '.join(known)}.")


def warm_up(served: Served) -> None:
    """Has the batcher make a text, so that its programs are compiled before somebody waits. Raises UserError: it cannot."""
    import queue

    import numpy as np

    from gptjax.generation.settings import Settings
    from gptjax.serve import jobs

    heard = queue.Queue()
    tokenizer = served.run.tokenizer
    first = 0 if tokenizer.bos_id is None else tokenizer.bos_id
    length = max(1, min(3, served.context_length - 2))
    settings = Settings(max_tokens=min(2, served.context_length - length), temperature=0.0)
    job = jobs.Job(np.full(length, first, np.int32), settings, 0, heard.put, ignore_eot=True, id="warm-up")
    served.batcher.submit(job)
    while not isinstance(event := heard.get(), jobs.Ending):
        pass
    if event.reason == "failed":
        raise UserError(f"{served.name} makes no text: {event.error}.")


def bytes_of(run) -> int:
    """How many bytes its parameters take."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(run.params))
