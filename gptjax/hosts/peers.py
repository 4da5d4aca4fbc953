"""All processes of a run, and what happens when one is lost.

jax finds a lost process by heartbeats from its own threads (HEARTBEAT_SECONDS; Python's would stop during a long
call) and then aborts every other process, from a thread and without a way to be told (its missed_heartbeat_callback
cannot be called from Python in jax 0.10: std::bad_cast). So SIGABRT has a handler here, which says who was lost and
exits with PEER_LOST; one that is not of jax's making aborts as ever. A thread keeps the names at hand.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback

from gptjax.errors import MOVED, PEER_LOST, USER_ERROR, UserError, first_line
from gptjax.hosts.coordination import Group, PeerLost

HEARTBEAT_SECONDS = 10  # jax takes a process for dead after so long; its default of 100 leaves the others hanging
BEAT_SECONDS = 1.0  # between two looks at the others
SILENT_SECONDS = 3.0  # without a sign of life, suspected; jax's verdict comes 5 to 10 s after the last one
VERDICT_SECONDS = 15.0  # after an error, to find out whether another process caused it


class Peers(Group):
    """A run of several processes, from the inside of one. Threads of its own watch over the others until `finish`."""

    def __init__(self, coordinator: str, index: int, hosts: list[str]):
        from jax._src import distributed  # where Orbax takes it from too: there is no public way

        super().__init__(distributed.global_state.client, index, tuple(range(len(hosts))), whole=True)
        self._coordinator, self.hosts = coordinator, hosts
        self._suspects = ""
        self._leaving = None  # the exit code this process is about to end with
        self._answered = time.monotonic()
        self._last_beats = {}  # process -> (its last beat, when that came): process 0 only
        self._exiting = threading.Lock()
        self._finished = threading.Event()
        self._abort_handler = _on_abort(self._aborted)
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def name(self, index: int) -> str:
        return f"process {index} ({self.hosts[index]})"

    # ---- the end

    def finish(self) -> None:
        """Waits for the others, so that none finds the coordination service gone."""
        import jax

        self._finished.set()
        self._thread.join(5)
        try:
            jax.distributed.shutdown()
        except Exception as error:  # all that was to be done is done
            print(f"gptjax: {self.name(self.index)} ended before others: {first_line(error)}", file=sys.stderr)

    def blame(self, error: BaseException) -> None:
        """Ends this process for an error: with the name of the process whose death caused it, or after telling why.

        At once and without cleaning up, which would wait for the others: a save that all take part in, a device.
        """
        deadline = time.monotonic() + (VERDICT_SECONDS if may_be_anothers_death(error) else 0)
        while time.monotonic() < deadline:
            if self._suspects:
                self._lost(f"{self._suspects}: lost ({first_line(error)})")
            time.sleep(0.1)
        code = _exit_code(error)
        if code == 1:
            traceback.print_exception(error)
        why = "stopped at once by Ctrl-C" if isinstance(error, KeyboardInterrupt) else first_line(error)
        print(f"gptjax: {why}", file=sys.stderr, flush=True)
        self.leave(why, code)
        sys.stdout.flush()
        os._exit(code)

    def leave(self, why: str, code: int) -> None:
        """Tells the others why this process is about to end without them, with this exit code."""
        self._leaving = code
        self._finished.set()
        self.publish_first(f"left/{self.index}", json.dumps({"why": why, "code": code}))
        if self.index == 0:
            time.sleep(3 * BEAT_SECONDS)  # with this process goes the store they read it from

    def _lost(self, why: str, code: int = PEER_LOST) -> None:
        """Ends this process at once: no thread can be waited for, since a device may wait for the one that is gone."""
        if not self._exiting.acquire(blocking=False):
            time.sleep(60)  # another thread is at it
        print(f"\ngptjax: {why}; {_ADVICE[code]}", file=sys.stderr, flush=True)
        if self.index == 0:
            time.sleep(3 * BEAT_SECONDS)
        os._exit(code)

    # ---- the threads that watch

    def _watch(self) -> None:
        beat = 0
        while not self._finished.wait(BEAT_SECONDS):
            beat += 1
            try:
                self.publish(f"alive/{self.index}", str(beat))
                if self.index == 0:
                    self._look_for_silent()
                left = self.read_all("left")
                self._answered = time.monotonic()
            except Exception:  # the service is gone, or going: jax's own threads tell
                continue
            self._suspects = left.pop("silent", "")
            for index, text in left.items():
                if int(index) != self.index and not self._finished.is_set():
                    gone = json.loads(text)
                    self._finished.wait(3 * BEAT_SECONDS)  # this process may be about to say the same
                    if not self._finished.is_set():
                        code = gone["code"] if gone["code"] in (USER_ERROR, MOVED) else PEER_LOST
                        self._lost(f"{self.name(int(index))} stopped: {gone['why']}", code)

    def _look_for_silent(self) -> None:
        """Names in the store whoever was not heard of for SILENT_SECONDS, or clears it."""
        now = time.monotonic()
        for index, beat in self.read_all("alive").items():
            if self._last_beats.get(index, ("", 0))[0] != beat:
                self._last_beats[index] = (beat, now)
        self.publish("left/silent", self._silent(SILENT_SECONDS))

    def _silent(self, seconds: float) -> str:
        """Whoever was not heard of for so long, as far as this process knows; process 0 knows of all."""
        now = time.monotonic()
        silent = [int(i) for i, (_, heard) in list(self._last_beats.items()) if now - heard > seconds]
        names = ", ".join(self.name(i) for i in sorted(silent) if i != self.index)
        return f"no sign of life from {names}" if names else ""

    def _aborted(self) -> bool:
        """Exits with PEER_LOST if this SIGABRT is jax's, who found a process dead. False if it is somebody else's."""
        if self._leaving is not None:  # the reason is told already
            os._exit(self._leaving)
        deadline = time.monotonic() + 3 * BEAT_SECONDS  # the name may be on its way
        while not self._suspects and time.monotonic() < deadline:
            time.sleep(0.1)
            self._suspects = self._suspects or self._silent(2 * BEAT_SECONDS)
        if self._suspects:
            self._lost(f"{self._suspects}: lost")
        if self.index and (time.monotonic() - self._answered > 4 * BEAT_SECONDS or not self._coordinator_listens()):
            self._lost(f"no sign of life from {self.name(0)}, the coordinator: lost")
        return False

    def _coordinator_listens(self) -> bool:
        host, _, port = self._coordinator.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
            return True
        except OSError:
            return False


_ADVICE = {
    PEER_LOST: "stopping here; run the same command again to continue",  # from a checkpoint, if there is one: nobody looked
    USER_ERROR: "stopping here too",
    MOVED: "stopping here too",
}


def may_be_anothers_death(error: BaseException) -> bool:
    """Whether an error may come of another process that died: not what the user or the group itself says. A
    KeyboardInterrupt that a library has wrapped, with a cause, is the user's all the same."""
    if isinstance(error, KeyboardInterrupt):
        return False
    return not isinstance(error, UserError | PeerLost) or error.__cause__ is not None


def _exit_code(error: BaseException) -> int:
    if isinstance(error, UserError):
        return error.exit_code
    return next(
        (code for kind, code in {PeerLost: PEER_LOST, KeyboardInterrupt: 130}.items() if isinstance(error, kind)), 1
    )


def _on_abort(function):
    """Calls function in the thread that aborts; aborts all the same if it returns. Keep what this returns.

    Python's own signal handlers run in the main thread once it is back in Python: after an abort, never.
    """
    c_library = ctypes.CDLL(None)
    c_library.signal.restype = ctypes.c_void_p

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def handler(number):
        function()
        c_library.signal(int(signal.SIGABRT), None)  # SIG_DFL

    c_library.signal(int(signal.SIGABRT), handler)
    return handler
