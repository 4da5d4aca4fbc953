"""What the endpoints share: the models, what is counted, who looks at answers, and whether the server is about to stop."""

import asyncio
import dataclasses
import logging
import traceback
import typing

from gptjax.errors import UserError
from gptjax.serve import jobs
from gptjax.serve.api import answering
from gptjax.serve.metrics import Metrics
from gptjax.serve.models import Models, Served

log = logging.getLogger("gptjax.serve")


class Record(typing.NamedTuple):
    """An answer that is finished."""

    id: str
    served: Served
    messages: list[dict] | None  # None: of a plain completion
    prompt: str  # of a plain completion
    text: answering.Text  # its text, tokens, log-probabilities (where wanted) and ending


@dataclasses.dataclass(frozen=True)
class Options:
    """keys: none: whoever reaches the server may ask. origins: of pages elsewhere that may ask, for CORS. hosts: names that
    the server may be asked by; None: any. most_bytes: of a request's body."""

    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = None
    most_bytes: int = 8 * 2**20
    public: tuple[str, ...] = ("/", "/health", "/docs", "/openapi.json", "/page/*")  # paths that need no key


@dataclasses.dataclass
class Service:
    models: Models
    options: Options
    metrics: Metrics
    observers: tuple[typing.Callable[[Record], None], ...] = ()
    filters: object | None = None  # serve.filters.Filters
    recipes: dict = dataclasses.field(default_factory=dict)  # serve.recipes.read's, that a request may name
    draining: bool = False
    in_flight: int = 0  # requests that are being answered
    reloading: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)

    def submit(self, served: Served, work: answering.Work) -> None:
        """Raises Refused: nothing of it was begun."""
        if self.draining:
            raise jobs.Draining
        try:
            work.submit(served.batcher)
        except jobs.Draining:
            newer = self.models.get(served.name)
            if newer is served:
                raise
            work.submit(newer.batcher)  # it was swapped while the prompt was read

    def observe(self, record: Record) -> None:
        """An observer that fails, as one whose disk is full, is logged: the answer is its client's all the same."""
        for observer in self.observers:
            try:
                observer(record)
            except UserError as error:
                log.error("an answer was not looked at: %s", error)
            except Exception as error:  # what it says may be of the answer
                frames = "".join(traceback.format_tb(error.__traceback__))
                log.error("an answer was not looked at: %s in\n%s", type(error).__name__, frames.rstrip())

    @property
    def state(self) -> str:
        """ready | draining | failed"""
        states = [served.batcher.status.state for served in self.models.all]
        if "failed" in states:
            return "failed"
        return "draining" if self.draining or "draining" in states else "ready"
