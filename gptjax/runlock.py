"""One writer for a run directory: `with runlock.hold(path)` around whatever writes there.

On a local or network disk it is flock(2) on DIR/writer.lock, which the system frees when its holder is gone, kill -9
included. Object stores, and disks without flock, have a lease instead: the holder writes a new number into
writer.lock every BEAT_SECONDS, and whoever finds one there takes it over only if the number stays the same for
LEASE_SECONDS by his own clock. The file itself stays behind where flock is used; deleting it would let two in.
"""

import contextlib
import errno
import json
import os
import secrets
import socket
import sys
import threading
import time

from etils import epath

from gptjax import interrupt
from gptjax.errors import UserError

NAME = "writer.lock"
BEAT_SECONDS, LEASE_SECONDS = 5.0, 30.0
PATIENCE_SECONDS = 2.0  # for a holder that is about to end
NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def hold(directory, lease: bool | None = None):
    """Makes the directory if need be. Raises UserError: another process holds it, or it cannot be written to.

    lease: instead of flock; None: on object stores and on disks without flock.
    """
    directory = epath.Path(directory)
    lock = _taken(directory, "://" in str(directory) if lease is None else lease)
    try:
        yield lock
    finally:
        lock.release()


def _taken(directory: epath.Path, lease: bool):
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if lease:
            return Lease(directory / NAME)
        try:
            return Flock(directory / NAME)
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            return Lease(directory / NAME)
    except OSError as error:
        raise UserError(
            f"--workdir={directory} cannot be written to: {error.strerror or error}; mount it for writing, or use another."
        ) from error


def _holder() -> dict:
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %Z")}


def _refuse(file: epath.Path, holder: dict) -> None:
    raise UserError(
        f"--workdir={file.parent} is being written to by process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        f" since {holder.get('since', '?')}; wait for it or stop it, or use another --workdir."
    )


def _text(file: epath.Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


def _read(file: epath.Path) -> dict:
    """What the holder wrote; {} for nothing, or half of it."""
    try:
        value = json.loads(_text(file))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


class Flock:
    """Held from its making until `release` or the end of the process."""

    def __init__(self, file: epath.Path):
        self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            while not self._try():
                if time.monotonic() > deadline:
                    _refuse(file, _read(file))
                time.sleep(0.1)
        except BaseException:
            os.close(self._descriptor)
            raise
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, (json.dumps(_holder()) + "\n").encode(), 0)

    def _try(self) -> bool:
        import fcntl  # not everywhere, and needed by who writes alone

        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        os.truncate(self._descriptor, 0)
        os.close(self._descriptor)


class Lease:
    """As Flock. If somebody else takes it nevertheless, this process ends: two writers would spoil the run."""

    def __init__(self, file: epath.Path, beat_seconds: float = BEAT_SECONDS, lease_seconds: float = LEASE_SECONDS):
        self._file, self._beat_seconds = file, beat_seconds
        self._mine = {**_holder(), "token": secrets.token_hex(8), "beat": 0}
        self._wait_for_other(lease_seconds)
        self._write()
        time.sleep(beat_seconds / 5)  # of two that found it free, the later one stays
        if (other := _read(file)).get("token") != self._mine["token"]:
            _refuse(file, other)
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def _wait_for_other(self, lease_seconds: float) -> None:
        """Until nobody has it. Raises UserError: its holder is alive."""
        first, deadline = _text(self._file), time.monotonic() + lease_seconds  # half a lease is one too
        while first and time.monotonic() < deadline:
            time.sleep(self._beat_seconds / 5)
            if (now := _text(self._file)) and now != first:
                _refuse(self._file, _read(self._file))
            if not now:
                return

    def _write(self) -> None:
        self._mine["beat"] += 1
        self._file.write_text(json.dumps(self._mine) + "\n")

    def _beat(self) -> None:
        while not self._released.wait(self._beat_seconds):
            try:
                other = _read(self._file)
                if other.get("token", self._mine["token"]) == self._mine["token"]:
                    self._write()
                    continue
            except Exception:  # the store is away for a moment; clients of object stores raise errors of their own
                continue
            self._lost(other)

    def _lost(self, other: dict) -> None:
        where = f"process {other.get('pid')} on {other.get('host')}"
        print(
            f"gptjax: {where} has taken over --workdir={self._file.parent}; this one was out of reach for too long"
            " and ends here, so that not two write there.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(interrupt.PEER_LOST)

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        if _read(self._file).get("token") == self._mine["token"]:
            self._file.unlink(missing_ok=True)
