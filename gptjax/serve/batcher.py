"""The thread that makes texts: jobs come from any thread, and join those that are being made.

    batcher = Batcher(run.engine, run.tokenizer, BatcherOptions(slots=8))
    batcher.start()
    batcher.submit(job)             # see jobs.py; its listener is called on the batcher's thread
    vectors = batcher.embed([[5, 3, 1]]).result()
    batcher.drain(30), batcher.stop()

A text depends on its prompt, settings and seed alone: not on what else is made, nor on what is kept of earlier prompts. It ends
with "length" where it fills the context; the engine goes on from the last half of a text there, which a conversation would
have to be told.

An error of a device or a program fails the jobs that have a slot, and no other: state and prefixes are then made anew, and
jobs that wait are served. Where that fails, or another error comes before any job was finished, all jobs fail and no more
are taken, so that whoever watches the process restarts it.
"""

import collections
import concurrent.futures
import dataclasses
import logging
import threading
import typing

import jax
import numpy as np

from gptjax.errors import UserError
from gptjax.generation.reading import LEAST
from gptjax.generation.settings import Settings
from gptjax.parallel import numerics
from gptjax.serve import embedding
from gptjax.serve.jobs import Draining, Failed, Full, Job
from gptjax.serve.row import JobRow, row_of
from gptjax.serve.scheduler import Scheduler, Totals

log = logging.getLogger(__name__)
GRACE_SECONDS = 4  # in which cancelled jobs end: the step in progress, however long it takes, is not broken off
FAULTS = 2  # errors in a row, with no job finished between them, after which no more are taken


@dataclasses.dataclass(frozen=True)
class BatcherOptions:
    """Raises UserError: a number out of range."""

    slots: int = 8  # texts that are made at a time
    places: int | None = None  # tokens of prompt and answer together; None: the model's context
    queue: int = 256  # jobs that may wait for a slot
    chunk_tokens: int = 128  # of a prompt that are read by one program, and kept as one; a power of two
    prefill_tokens: int = 512  # of prompts that are read between two tokens of the others
    prefix_tokens: int | None = None  # that are kept of prompts; 0: none; None: as many as the slots have places
    warm: bool = False  # whether `start` compiles what plain jobs need before the first is begun

    def __post_init__(self):
        least = {"slots": 1, "queue": 0, "chunk_tokens": LEAST, "prefill_tokens": 1, "places": 2, "prefix_tokens": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise UserError(f"{name}={value} is too small; use at least {smallest}.")
        if self.chunk_tokens & (self.chunk_tokens - 1):
            raise UserError(f"chunk_tokens={self.chunk_tokens} is no power of two; use 64, 128, 256.")

    def chunk(self, places: int) -> int:
        """chunk_tokens, or what is enough for so many places."""
        return min(self.chunk_tokens, max(LEAST, 1 << (places - 1).bit_length()))

    def kept(self, places: int) -> int:
        return self.slots * places if self.prefix_tokens is None else self.prefix_tokens


class Status(typing.NamedTuple):
    """What a batcher is doing; tokens and steps are counted from its start."""

    state: str  # starting | ready | draining | failed
    running: int  # jobs that have a slot
    waiting: int
    slots: int
    new_tokens: int
    prompt_tokens: int
    cached_tokens: int  # of prompt_tokens, that were not read again
    steps: int


class Batcher:
    """Thread-safe. Programs run in the mesh of the engine's parameters."""

    def __init__(self, engine, tokenizer, options: BatcherOptions = BatcherOptions()):
        self._engine, self._tokenizer, self._options = engine, tokenizer, options
        self._places = min(options.places or engine.config.context_length, engine.config.context_length)
        self._wake = threading.Condition()  # of what stands below, but for what only the thread changes
        self._waiting: collections.deque[JobRow] = collections.deque()
        self._cancelled: list[Job] = []
        self._requests: collections.deque[embedding.Request] = collections.deque()
        self._rows: list[JobRow] = []  # that have a slot
        self._is_draining = self._is_failed = self._is_stopping = False
        self._is_starting = options.warm
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._scheduler: Scheduler | None = None  # the thread's
        self._totals, self._faults = Totals(), 0

    # ---- from any thread

    def start(self) -> None:
        """Begins to work. What was submitted before waits until then."""
        self._thread.start()

    def submit(self, *jobs: Job) -> None:
        """Takes all of these jobs, or none. Raises UserError: one that can't be made; Full, Draining or Failed."""
        rows = [row_of(job, self._tokenizer, self._engine.config, self._places) for job in jobs]
        with self._wake:
            self._check_takes(len(self._waiting) + len(rows) - (self._options.slots - len(self._rows)))
            self._waiting.extend(rows)
            self._wake.notify_all()

    def cancel(self, job: Job) -> None:
        """Ends a job where it is, before the next token; one that has ended stays as it is."""
        with self._wake:
            self._cancelled.append(job)
            self._wake.notify_all()

    def embed(self, token_lists) -> concurrent.futures.Future:
        """Promises float32 [N, D]: the mean of the final activations of each text, of length 1. Raises as `submit`."""
        request = embedding.Request(embedding.check(token_lists, self._engine.config))
        with self._wake:
            self._check_takes(len(self._requests))  # of them one is at work
            self._requests.append(request)
            self._wake.notify_all()
        return request.future

    def drain(self, seconds: float) -> bool:
        """Takes no more jobs, and waits until all are finished; those that are not in so many seconds are cancelled. Returns
        whether there were none of these."""
        with self._wake:
            self._is_draining = True
            if self._wake.wait_for(self._is_idle, seconds):
                return True
            self._cancelled += [row.job for row in (*self._waiting, *self._rows)]
            self._wake.notify_all()
            self._wake.wait_for(self._is_idle, GRACE_SECONDS)
            return False

    def stop(self) -> None:
        """Cancels all jobs, and ends the thread."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        else:
            self._end_all("cancelled", None)  # of one that was never started

    @property
    def status(self) -> Status:
        with self._wake:
            state = "failed" if self._is_failed else "draining" if self._is_draining else "ready"
            state = "starting" if state == "ready" and self._is_starting else state
            running = sum(row.finished is None for row in self._rows)
            counts = running, len(self._waiting), self._options.slots
            totals = self._totals
            return Status(state, *counts, totals.new_tokens, totals.prompt_tokens, totals.cached_tokens, totals.steps)

    def _is_idle(self) -> bool:
        return not (self._waiting or self._rows or self._requests)

    def _check_takes(self, would_wait: int) -> None:
        if self._is_failed:
            raise Failed("the batcher has met an error; see its log.")
        if self._is_draining or self._is_stopping:
            raise Draining("the batcher finishes what it has, and takes nothing more.")
        if would_wait > self._options.queue:
            raise Full(f"{self._options.queue} jobs may wait, and no more; try again later.")

    # ---- on the thread

    def _run(self) -> None:
        layout = jax.tree.leaves(self._engine.params)[0].sharding
        is_on_mesh = isinstance(layout, jax.sharding.NamedSharding)
        with numerics.on_mesh(layout.mesh) if is_on_mesh else numerics.settings():
            try:
                if self._options.warm:
                    self._warm()
                self._scheduler = self._fresh(self._totals)
            except Exception as error:
                self._give_up(error)
            self._is_starting = False
            while self._has_more():
                try:
                    self._turn()
                except Exception as error:
                    self._recover(error)
            self._end_all("cancelled", None)

    def _fresh(self, totals: Totals) -> Scheduler:
        return Scheduler(self._engine, self._options, self._places, totals)

    def _has_more(self) -> bool:
        """Waits until there is something to do. False: nothing will be."""
        with self._wake:
            self._wake.notify_all()  # those who drain
            self._wake.wait_for(lambda: self._is_stopping or self._is_failed or self._cancelled or not self._is_idle())
            return not (self._is_stopping or self._is_failed)

    def _turn(self) -> None:
        self._cancel()
        with self._wake:
            while self._waiting and self._scheduler.free:
                self._scheduler.admit(self._waiting.popleft())
            self._rows = self._scheduler.rows
            others_wait = bool(self._waiting)
        finished = self._scheduler.turn(others_wait)
        if any(row.finished in ("eot", "stop", "length") for row in finished):
            self._faults = 0
        self._embed()
        with self._wake:
            self._rows = self._scheduler.rows

    def _cancel(self) -> None:
        with self._wake:
            cancelled, self._cancelled = {id(job) for job in self._cancelled}, []
            if not cancelled:
                return
            never_begun = [row for row in self._waiting if id(row.job) in cancelled]
            self._waiting = collections.deque(row for row in self._waiting if id(row.job) not in cancelled)
        for row in never_begun:
            row.finished = "cancelled"
            row.end()
        for row in self._scheduler.rows:
            if id(row.job) in cancelled:
                self._scheduler.cancel(row)

    def _embed(self) -> None:
        """A few texts of the first who asked. An error is its own: no job has part in it."""
        if not self._requests:
            return
        request = self._requests[0]
        try:
            request.advance(self._engine)
        except Exception as error:
            log.exception("an embedding failed")
            request.fail(error)
        if request.finished:
            with self._wake:
                self._requests.popleft()

    def _recover(self, error: Exception) -> None:
        rows, self._scheduler = self._scheduler.rows, None  # frees its memory before the next takes as much
        log.exception("a step of %d jobs failed", len(rows))
        self._faults += 1
        with self._wake:
            self._is_failed, self._rows = True, []  # until there is a new state
        for row in rows:
            row.finished, row.error = "failed", _said(error)
            row.end()
        if self._faults >= FAULTS:
            return self._give_up(error)
        try:
            self._scheduler = self._fresh(self._totals)
        except Exception as another:
            return self._give_up(another)
        with self._wake:
            self._is_failed = False

    def _give_up(self, error: Exception) -> None:
        log.error("no more jobs are taken: %s", _said(error))
        with self._wake:
            self._is_failed = True
        self._end_all("failed", error)

    def _end_all(self, reason: str, error: Exception | None) -> None:
        with self._wake:
            rows, requests = [*self._waiting, *self._rows], [*self._requests]
            self._rows, self._scheduler = [], None
            self._waiting.clear()
            self._requests.clear()
            self._wake.notify_all()
        for row in rows:
            row.finished, row.error = reason, None if error is None else _said(error)
            row.end()
        for request in requests:
            request.fail(error or Draining("the batcher was stopped."))

    def _warm(self) -> None:
        """Compiles what plain jobs need."""
        scheduler, width = self._fresh(Totals()), LEAST
        while width <= self._options.chunk(self._places):
            prompt_L = np.zeros(min(width, self._places - 1), np.int32)
            job = Job(prompt_L, Settings(max_tokens=1), seed=0, listener=lambda message: None)
            scheduler.admit(row_of(job, self._tokenizer, self._engine.config, self._places))
            while scheduler.rows:
                scheduler.turn(False)
            width *= 2


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
