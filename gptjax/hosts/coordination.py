"""Small values between the processes of a run, through the key-value store of jax's coordination service.

The service runs in process 0, and no device is involved, so that none waits. `among(devices)` gives the Group of the
processes that hold them, wherever jax.distributed was started; `Alone` is a group of one, for which all of this is nothing.
All processes of a group call `gather`, `tell`, `agree` and `meet` in the same order for one name.
"""

import collections
import contextlib
import contextvars
import functools
import hashlib
import json
import math
import os
import socket
import time

from gptjax.errors import UserError


class PeerLost(Exception):
    """Another process of the run died or never came."""


_alive = contextvars.ContextVar("alive", default=lambda: None)


@contextlib.contextmanager
def kept_alive(alive):
    """While the `with` lasts, alive() is called by whoever waits in `meet` in this thread: others compile, nobody hangs."""
    token = _alive.set(alive)
    try:
        yield
    finally:
        _alive.reset(token)


class Alone:
    """A run of one process."""

    index, count = 0, 1
    leads = True

    def gather(self, name: str, value, seconds: float | None = None, alive=lambda: None) -> list | None:
        """The value of every process, in the first one; None in the others."""
        return [value]

    def tell(self, name: str, value, seconds: float | None = None, alive=lambda: None):
        """The first process's value, in every process."""
        return value

    def agree(self, name: str, reason: str) -> str:
        """The first reason that a process has, in all; "" where none has one."""
        return reason

    def publish_first(self, key: str, value: str) -> None:
        """Nobody reads it."""

    def read(self, key: str) -> None:
        """Nobody wrote it."""

    def meet(self, done: str, seconds: float, advice: str) -> None:
        """Returns when all processes have done what `done` says."""

    def blame(self, error: BaseException) -> None:
        """For an error that ends this process; among several processes this does not return."""

    def leave(self, why: str, code: int) -> None:
        """Tells the others why this process is about to end without them."""

    def finish(self) -> None:
        """After the last thing done together."""

    def name(self, index: int) -> str:
        return f"process {index} ({socket.gethostname()})"


class Group:
    """Some or all processes of jax.distributed, from the inside of one. members: their process indices, ascending; the
    first one leads."""

    def __init__(self, client, index: int, members: tuple[int, ...], whole: bool):
        self._client, self._members, self._leader = client, members, members[0]
        self.index, self.count = index, len(members)
        marker = "" if whole else f"/of-{hashlib.sha256(repr(members).encode()).hexdigest()[:12]}"
        self._root = f"gptjax{marker}"
        self._rounds = _rounds(client, self._root)
        self.publish(f"host/{index}", socket.gethostname())

    @property
    def leads(self) -> bool:
        return self.index == self._leader

    def name(self, index: int) -> str:
        """Of a process, for people."""
        host = self.read(f"host/{index}")
        return f"process {index}" + (f" ({host})" if host else "")

    # ---- keys

    def publish(self, key: str, value: str) -> None:
        self._client.key_value_set(f"{self._root}/{key}", value, allow_overwrite=True)

    def publish_first(self, key: str, value: str) -> None:
        """Unless somebody else did."""
        try:
            self._client.key_value_set(f"{self._root}/{key}", value)
        except Exception as error:
            if "ALREADY_EXISTS" not in str(error):
                raise

    def read(self, key: str) -> str | None:
        try:
            return self._client.key_value_try_get(f"{self._root}/{key}")
        except Exception as error:
            if "NOT_FOUND" in str(error):
                return None
            raise

    def read_all(self, folder: str) -> dict[str, str]:
        """{last part of the key: value} of a folder of keys."""
        return {
            key.rpartition("/")[2]: value for key, value in self._client.key_value_dir_get(f"{self._root}/{folder}/")
        }

    # ---- values that all take part in

    def gather(self, name: str, value, seconds: float | None = None, alive=lambda: None) -> list | None:
        """The value (JSON) of every process, in the one that leads; None in the others.

        Raises PeerLost that names who did not call it within seconds (None: they are waited for while they live).
        alive: is called again and again meanwhile.
        """
        values, absent = self._gathered(name, value, seconds, alive)
        if absent:
            raise PeerLost(f"{absent} did not answer within {seconds:g} s ({name})")
        return values

    def _gathered(self, name: str, value, seconds: float | None, alive) -> tuple[list | None, str]:
        """(`gather`, the names of those that did not come in time)."""
        folder = f"gather/{self._round(name)}"
        self.publish(f"{folder}/{self.index}", json.dumps(value))
        if not self.leads:
            return None, ""
        deadline = None if seconds is None else time.monotonic() + seconds
        while len(found := self.read_all(folder)) < self.count:
            if deadline is not None and time.monotonic() > deadline:
                return None, ", ".join(self.name(i) for i in self._members if str(i) not in found)
            alive()
            time.sleep(0.002)
        self._client.key_value_delete(f"{self._root}/{folder}/")
        return [json.loads(found[str(i)]) for i in self._members], ""

    def tell(self, name: str, value, seconds: float | None = None, alive=lambda: None):
        """The leader's value (JSON), in every process. alive: as in `gather`."""
        key = f"tell/{self._round(name)}"
        if self.leads:
            self.publish(key, json.dumps(value))
            return value
        deadline = None if seconds is None else time.monotonic() + seconds + 10  # the leader judges first
        while (text := self.read(key)) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise PeerLost(f"{self.name(self._leader)} did not answer within {seconds:g} s ({name})")
            alive()
            time.sleep(0.05)
        return json.loads(text)

    def agree(self, name: str, reason: str) -> str:
        """The first reason that a process has, with its name, in all; "" where none has one."""
        reasons = self.gather(name, reason)
        first = None if reasons is None else next(((i, r) for i, r in zip(self._members, reasons) if r), None)
        return self.tell(name, "" if first is None else f"{self.name(first[0])}: {first[1]}")

    def meet(self, done: str, seconds: float, advice: str) -> None:
        """Returns when all processes have done what `done` says. Raises PeerLost, in all that have, with the names of those
        that have not within seconds, and the advice."""
        alive = _alive.get()
        _, absent = self._gathered(done, None, seconds, alive)
        if absent := self.tell(done, absent, seconds, alive):
            raise PeerLost(f"{absent} has not {done} within {seconds:g} s; {advice}")

    def _round(self, name: str) -> str:
        self._rounds[name] += 1
        return f"{name}/{self._rounds[name]}"


@functools.lru_cache(maxsize=256)
def _rounds(client, root: str) -> collections.Counter:
    """How often each name was used by this process: one count for all who speak for the same processes."""
    return collections.Counter()


def among(devices) -> Alone | Group:
    """The processes that hold these devices, of which this has to be one."""
    from jax._src import distributed  # where Orbax takes it from too: there is no public way

    members, state = tuple(sorted({device.process_index for device in devices})), distributed.global_state
    if len(members) == 1 or state.client is None:  # a TPU runtime may join hosts by itself, without such a service
        return Alone()
    return _group(state.client, state.process_id, members, state.num_processes)


@functools.lru_cache(maxsize=64)
def _group(client, index: int, members: tuple[int, ...], processes: int) -> Group:
    return Group(client, index, members, whole=len(members) == processes)


def seconds_of(name: str, default: float) -> float:
    """A time in the environment. Raises UserError for one that is none."""
    text = os.environ.get(name, str(default))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"{name}={text} is not a number of seconds; give one such as {default:g}.")
    return seconds
