"""One writer for a run directory: `with runlock.hold(path)` around whatever writes there.

On a local or network disk it is flock(2) on DIR/writer.lock and on DIR, which the system frees when its holder is gone,
kill -9 included; before each save the holder looks whether it still holds them (`check`). Object stores, and disks without
flock, have a lease instead: the holder writes a new number into writer.lock every BEAT_SECONDS, and whoever finds one there
takes it over only if the number stays the same for LEASE_SECONDS by his own clock. The file itself stays behind where flock is used; deleting it would let two in.
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

from gptjax import errors
from gptjax.checkpoints import validity
from gptjax.errors import DirectoryMoved, DirectoryTaken, SaveFailed, UserError

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


class NoLock:
    """Of a process that writes for no other."""

    def check(self) -> None: ...


NO_LOCK = NoLock()


def check_together(lock, peers) -> None:
    """Raises DirectoryMoved or DirectoryTaken, in all processes, if the one that holds the lock has lost it."""
    lost = None
    try:
        lock.check()
    except (DirectoryMoved, DirectoryTaken) as error:
        lost = error
    reason = peers.tell("lock", None if lost is None else [isinstance(lost, DirectoryMoved), str(lost)])
    if reason is not None:
        raise (DirectoryMoved if reason[0] else DirectoryTaken)(reason[1])


@contextlib.contextmanager
def judging(lock):
    """What goes wrong with files while a run goes on: its directory was moved, or a disk or network failed, maybe for a
    while. Paths of the user's were there at the start: none is wrong any more."""
    try:
        yield
    except (OSError, SaveFailed) as error:
        lock.check()
        if isinstance(error, SaveFailed):
            raise
        where = f": {error.filename}" if error.filename else ""
        raise SaveFailed(f"{error.strerror or error}{where}; run the same command again to continue.") from error


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
    who = "another process (its writer.lock names none)"
    if holder:
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')} since {holder.get('since', '?')}"
    raise UserError(
        f"--workdir={file.parent} is being written to by {who}; wait for it or stop it, or use another --workdir."
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
    """Held from its making until `release` or the end of the process: by flock on the file, and on the directory itself,
    where the disk can, so that who removes the file lets nobody in."""

    def __init__(self, file: epath.Path):
        self._file = file
        self._directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._descriptor = _opened(file)
        deadline = time.monotonic() + PATIENCE_SECONDS
        try:
            while not (_flock(self._descriptor) and self._lock_directory()):
                if time.monotonic() > deadline:
                    _refuse(file, _read(file))
                time.sleep(0.1)
        except BaseException:
            self._close()
            raise
        self._sign()

    def _lock_directory(self) -> bool:
        try:
            return _flock(self._directory)
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.EINVAL, *NO_FLOCK):  # NFS locks only what is open for writing
                raise
            return True

    def _sign(self) -> None:
        os.truncate(self._descriptor, 0)
        os.pwrite(self._descriptor, (json.dumps(_holder()) + "\n").encode(), 0)

    def check(self) -> None:
        """Raises DirectoryMoved if the directory is no longer where it was, and DirectoryTaken if the file is another's.
        One that was removed is made again."""
        directory = self._file.parent
        if not _same(directory, self._directory):
            raise DirectoryMoved(_where_it_is(directory, self._directory))
        if _same(self._file, self._descriptor):
            return
        again = _opened(self._file)
        if not _flock(again):
            os.close(again)
            raise DirectoryTaken(_taken_over(self._file, _read(self._file)))
        os.close(self._descriptor)
        self._descriptor = again
        self._sign()

    def release(self) -> None:
        os.truncate(self._descriptor, 0)
        self._close()

    def _close(self) -> None:
        os.close(self._descriptor)
        os.close(self._directory)


def _opened(file) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _flock(descriptor: int) -> bool:
    import fcntl  # not everywhere, and needed by who writes alone

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same(path, descriptor: int) -> bool:
    """Whether a path still leads to what is open."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _where_it_is(directory, descriptor: int) -> str:
    """What has become of a directory that is open."""
    try:
        place = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:  # not Linux
        place = None
    if place is None:
        return f"--workdir={directory} was moved or removed during training; give its new path to continue."
    if not _same(place, descriptor):
        return f"--workdir={directory} was removed during training; run the same command again to start over."
    return (
        f"--workdir={directory} was moved to {place} during training; {validity.said(place + '/checkpoints')}; run the"
        f" same command with --workdir={place} to continue."
    )


def _taken_over(file, other: dict) -> str:
    return (
        f"process {other.get('pid', '?')} on {other.get('host', '?')} has taken over --workdir={file.parent}; this"
        " process ends, because only one may write there."
    )


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
        """This process was out of reach for too long."""
        print(f"gptjax: {_taken_over(self._file, other)}", file=sys.stderr, flush=True)
        os._exit(errors.PEER_LOST)

    def check(self) -> None:
        """Nothing to do: the thread looks every few seconds, and writes a file anew that was removed."""

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        if _read(self._file).get("token") == self._mine["token"]:
            self._file.unlink(missing_ok=True)
