"""The process: uvicorn with the application, from the first signal to the last answer.

SIGTERM and Ctrl-C drain: /health says 503, new requests are refused with 503, and the answers in flight are finished, for
drain_seconds at most. A second one ends at once. SIGHUP has the models answer with the newest step of their directories.
An engine that has failed for good ends the process with a code of its own, once its clients have been told.
"""

import asyncio
import contextlib
import logging
import signal
import threading

import uvicorn

from gptjax.errors import ENGINE_FAILED, UserError
from gptjax.serve.api import listing

LOOK_SECONDS = 0.2  # between two looks at the engine, and at what is in flight
FAILED_SECONDS = 3.0  # that a failure stays visible in /health before the process ends
log = logging.getLogger("gptjax.serve")


class Server(uvicorn.Server):
    """config.app: of app.create_app. drain_seconds: that answers in flight may take after the first signal."""

    def __init__(self, config: uvicorn.Config, service, drain_seconds: float, started=lambda: None):
        super().__init__(config)
        self._service, self._drain_seconds, self._started = service, drain_seconds, started
        self.exit_code = 0
        self._signals = 0
        self._tasks = set()

    @contextlib.contextmanager
    def capture_signals(self):
        """Replaces uvicorn's, which closes the door at the first signal and dies of it at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._run(self._reload()))
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    async def startup(self, sockets=None) -> None:
        await super().startup(sockets)
        if self.started:
            self._started()
            self._run(self._watch())

    def _run(self, coroutine) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)  # the loop itself keeps no task alive
        task.add_done_callback(self._tasks.discard)

    def _stop(self) -> None:
        self._signals += 1
        if self._signals > 1:
            self.should_exit = self.force_exit = True
            return
        self._service.draining = True
        log.info("stopping: %d requests are in flight", self._service.in_flight)
        self._run(self._drain())

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._drain_seconds
        while self._service.in_flight and loop.time() < end:
            await asyncio.sleep(LOOK_SECONDS / 4)
        if self._service.in_flight:
            log.warning(
                "%d requests are given up: they took longer than the %g s of --drain_seconds",
                self._service.in_flight,
                self._drain_seconds,
            )
            for served in self._service.models.all:
                await asyncio.to_thread(served.batcher.drain, 0)
            await asyncio.sleep(LOOK_SECONDS)  # for their last events
        self.should_exit = True

    async def _reload(self) -> None:
        try:
            swapped = await listing.swap(self._service, [each.name for each in self._service.models.all])
        except UserError as error:
            log.error("%s", error)
        else:
            if not swapped:
                log.info("no model has a newer step")

    async def _watch(self) -> None:
        """Ends the process once an engine stays failed: whoever started it starts another."""
        failed = 0.0
        while not self.should_exit:
            await asyncio.sleep(LOOK_SECONDS)
            failed = failed + LOOK_SECONDS if self._service.state == "failed" else 0.0
            if failed >= FAILED_SECONDS:
                log.error("the engine has failed and does not recover; the process ends")
                self.exit_code, self.should_exit = ENGINE_FAILED, True
