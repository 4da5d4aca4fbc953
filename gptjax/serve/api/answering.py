"""Jobs on the batcher's thread, heard in the event loop: each request's in one queue, given up when their client goes."""

import asyncio
import contextlib
import dataclasses
import time
import typing

from starlette.concurrency import run_in_threadpool

from gptjax.errors import shorten
from gptjax.serve import jobs
from gptjax.serve.api.faults import ApiError, wrong

FILTERED = "content_filter"  # the reason of a text that a filter ended
REASONS = {"eot": "stop", "stop": "stop", "length": "length", FILTERED: FILTERED}  # a job's: OpenAI's
GONE = 499  # nginx's status of a request whose client did not wait
PING_SECONDS = 15.0  # of silence, after which a stream says that it lives: proxies close what is silent for a minute


@dataclasses.dataclass
class Text:
    """One text as far as it is made."""

    job: jobs.Job
    output: object | None = None  # serve.filters.Output: what its pieces go through; None: nothing
    text: str = ""  # as it goes out
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    likeliest: list = dataclasses.field(default_factory=list)
    prompt: jobs.PromptScores | None = None
    ending: jobs.Ending | None = None
    first_token: float | None = None  # time.monotonic() of it

    @property
    def reason(self) -> str:
        """OpenAI's finish_reason."""
        return REASONS[self.ending.reason]

    def hear(self, event) -> None:
        """Raises ApiError: its ending is none of the text's own."""
        if isinstance(event, jobs.PromptScores):
            self.prompt = event
        elif isinstance(event, jobs.Piece):
            self.text += event.text
            self.tokens += event.tokens
            self.logprobs += event.logprobs
            self.likeliest += event.likeliest
        else:
            self.ending = event
            if event.reason == "cancelled":
                raise ApiError(503, "this server stopped in the middle of the answer; ask another.", code="draining")
            if event.error is not None and event.error.startswith(jobs.CONSTRAINT_FAILED):
                raise wrong(f"the text cannot be kept to its format: {shorten(event.error, 300)}", code="format_failed")
            if event.reason not in REASONS:
                message = "the engine has failed in the middle of the answer; ask again."
                raise ApiError(500, message, code="engine_failed")


class Work:
    """The jobs of one request. `with` it: what is unfinished at the end is given up.

    make(listener): the jobs in order; listener(i) is what job i calls. filters: None: texts go out as they are. refusal: what
    each text is instead, of a request that goes to no model."""

    def __init__(
        self, make: typing.Callable[[typing.Callable], list[jobs.Job]], timings=None, *, filters=None, refusal=None
    ):
        self._refusal = refusal
        self._loop, self._queue, self._timings = asyncio.get_running_loop(), asyncio.Queue(), timings
        self.texts = [Text(job, None if filters is None else filters.output()) for job in make(self._listener)]
        self._batcher, self._began, self._last = None, time.monotonic(), {}

    def _listener(self, index: int):
        def hear(event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, event))

        return hear

    def submit(self, batcher) -> None:
        """All of them. Raises Refused or UserError: none of them."""
        if self._refusal is not None:
            for i in range(len(self.texts)):
                self._queue.put_nowait((i, jobs.Piece(self._refusal)))
                self._queue.put_nowait((i, jobs.Ending(FILTERED)))
            return
        batcher.submit(*(text.job for text in self.texts))
        self._batcher = batcher

    def __enter__(self) -> "Work":
        return self

    def __exit__(self, *error) -> None:
        if self._batcher is None:
            return
        for text in self.texts:
            if text.ending is None:
                self._batcher.cancel(text.job)

    async def events(self):
        """(index, text, event) as they come, until all have ended; None in PING_SECONDS of silence. Raises ApiError."""
        while any(text.ending is None for text in self.texts):
            try:
                index, event = await asyncio.wait_for(self._queue.get(), PING_SECONDS)
            except TimeoutError:
                yield None
                continue
            text = self.texts[index]
            self._time(index, text, event)
            for passed in await self._passed(text, event):
                text.hear(passed)
                yield index, text, passed

    async def _passed(self, text: Text, event) -> list:
        """What goes out of an event. A text that a filter ends is given up, and has the refusal for its last piece."""
        output = text.output
        if output is None or self._refusal is not None or isinstance(event, jobs.PromptScores):
            return [event]
        if isinstance(event, jobs.Piece):
            if output.refused:
                return []
            piece = event._replace(text=output.feed(event.text))
            if output.refused:
                self._batcher.cancel(text.job)
            return [piece]
        if event.reason not in REASONS and not output.refused:
            return [event]  # it has no end of its own
        last = await run_in_threadpool(output.end)  # which may ask a classifier
        if isinstance(last, str):
            return [jobs.Piece(last), event] if last else [event]
        return [jobs.Piece(last.text), event._replace(reason=FILTERED)]

    async def finish(self) -> list[Text]:
        """All texts, whole. Raises ApiError."""
        async for _ in self.events():
            pass
        return self.texts

    def _time(self, index: int, text: Text, event) -> None:
        if not isinstance(event, jobs.Piece) or not event.tokens:
            return
        now = time.monotonic()
        if text.first_token is None:
            text.first_token = now
            if self._timings is not None:
                self._timings.first_token(now - self._began)
        elif self._timings is not None:
            self._timings.next_tokens(now - self._last[index], len(event.tokens))
        self._last[index] = now


def usage(texts: list[Text], prompt_tokens: int) -> dict:
    """OpenAI's counts of tokens. prompt_tokens: of each prompt once, however many texts follow it."""
    new = sum(text.ending.new_tokens for text in texts)
    cached = max((text.ending.cached_tokens for text in texts), default=0)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": new,
        "total_tokens": prompt_tokens + new,
        "prompt_tokens_details": {"cached_tokens": min(cached, prompt_tokens)},
    }


async def while_connected(receive, work: typing.Coroutine):
    """The result of a coroutine, which is cancelled when the client goes; None then."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        for each in (gone, task):
            each.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task


async def _gone(receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
