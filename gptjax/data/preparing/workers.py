"""Processes that do tasks: started afresh, each told what to do over a pipe of its own, gone as soon as the parent is.

They share no queue and no lock, so that one that is killed in the midst of a message harms no other. Ctrl-C reaches the
parent alone, which ends them.
"""

import collections
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import resource_tracker

from gptjax.errors import SaveFailed, UserError

Do = Callable[[object, Callable], object]
"""(task, report) -> result; report(value) tells the parent how far it is."""


class WorkerFailed(UserError):
    """A mistake in the code of a worker; `trace` is its traceback."""

    trace = ""


def run(make: Callable[[], Do], tasks: Iterable, n_workers: int, on_report: Callable) -> Iterator:
    """The results of tasks, as they come. make, tasks and results pickle; make is called once in each process.

    Raises what a task raised, if it was an OSError or UserError; SaveFailed if a process was killed or its memory was
    full; WorkerFailed for any other exception. Whichever it is, and where the results are not wanted to the end, the
    processes are ended.
    """
    waiting = collections.deque(tasks)
    busy: dict = {}
    try:
        for _ in range(min(n_workers, len(waiting))):
            pipe, process = _started(make)
            busy[pipe] = process
            pipe.send(waiting.popleft())
        while busy:
            for pipe in multiprocessing.connection.wait(list(busy)):
                kind, value = _received(pipe, busy[pipe])
                if kind == "report":
                    on_report(value)
                elif kind == "error":
                    raise value
                elif waiting:
                    pipe.send(waiting.popleft())
                    yield value
                else:
                    _end(busy.pop(pipe))
                    yield value
    finally:
        for process in busy.values():
            _end(process)


def _started(make: Callable[[], Do]) -> tuple:
    """A pipe to a new process, and the process. Nothing of this one is copied, as by a fork: it may have threads."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, make), daemon=True)
    resource_tracker.ensure_running()  # which start() would do, and unblock what is blocked here
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # for good in the process, from its first moment
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()  # so that a read from ours ends when the process does
    return ours, process


def _received(pipe, process) -> tuple:
    try:
        return pipe.recv()
    except (EOFError, OSError) as error:
        process.join(5)
        code = process.exitcode
        how = f"ended with exit code {code}" if code is None or code >= 0 else f"was killed by {_signal_name(-code)}"
        memory = " (is the memory full? use fewer --workers)" if code == -signal.SIGKILL else ""
        raise SaveFailed(f"a worker {how}{memory}; finished shards are kept: run the same command again.") from error


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end(process) -> None:
    process.kill()
    process.join()


# ---- in the process


def _work(pipe, make: Callable[[], Do]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        do = make()
        while (task := _next(pipe)) is not _NO_MORE:
            pipe.send(("done", do(task, lambda value: pipe.send(("report", value)))))
    except BrokenPipeError:  # the parent is gone
        return
    except (UserError, OSError) as error:
        pipe.send(("error", error))
    except MemoryError:
        full = (
            "a worker has no memory left (use fewer --workers); finished shards are kept: run the same command again."
        )
        pipe.send(("error", SaveFailed(full)))
    except Exception as error:
        pipe.send(("error", _failure(error)))


_NO_MORE = object()


def _next(pipe):
    """The next task; _NO_MORE: the parent is gone. An EOFError of a task's own is another thing."""
    try:
        return pipe.recv()
    except EOFError:
        return _NO_MORE


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _failure(error: Exception) -> WorkerFailed:
    line = next(iter(str(error).splitlines()), "")
    failed = WorkerFailed(f"a worker failed: {type(error).__name__}: {line}")
    failed.trace = traceback.format_exc()
    return failed
