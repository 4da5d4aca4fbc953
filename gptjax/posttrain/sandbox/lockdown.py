"""All mechanisms, in an order in which each can still be set up, and what each denies.

    limits       CPU time, memory, core files, open files; the size of written files is 0
    namespaces   network: none but a loopback device that is down
    landlock     files: Python's own may be read, no other, and none written; signals to other processes
    seccomp      sockets, writing and removing of files, processes and threads, signals, programs, tracing

Namespaces, Landlock and seccomp are Linux's; each is there or not, and `missing` says what none of those that are there
denies. None needs root.
"""

import ctypes
import os
import resource
import signal
import sys

from gptjax.posttrain.sandbox import landlock, namespaces, seccomp

_SET_PDEATHSIG, _SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
OPEN_FILES = 32

SET_UP = {"namespaces": namespaces.enter, "landlock": landlock.restrict, "seccomp": seccomp.install}
MECHANISMS = tuple(SET_UP)
DENIED_BY = {  # any one of them does
    "network": ("namespaces", "seccomp"),
    "files": ("landlock", "seccomp"),
    "processes": ("seccomp", "process limit"),
}


def lock(mechanisms: list[str], cpu_seconds: int, memory_bytes: int) -> list[str]:
    """The mechanisms that hold from now on, for this process and whatever it starts."""
    limit(cpu_seconds, memory_bytes)
    user, locked = os.getuid(), []
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # which Landlock and seccomp ask for
        locked = [name for name in MECHANISMS[:-1] if name in mechanisms and SET_UP[name](libc)]
        _drop_capabilities(libc)
        locked += [name for name in MECHANISMS[-1:] if name in mechanisms and SET_UP[name](libc)]
    if "seccomp" not in locked and _limit_processes(user):
        locked.append("process limit")
    return locked


def missing(locked: list[str]) -> list[str]:
    """What nothing denies."""
    return [what for what, mechanisms in DENIED_BY.items() if not set(mechanisms) & set(locked)]


def limit(cpu_seconds: int, memory_bytes: int) -> None:
    """At cpu_seconds comes SIGXCPU, a second later SIGKILL."""
    _set_limit(resource.RLIMIT_CPU, cpu_seconds, cpu_seconds + 1)
    _set_limit(resource.RLIMIT_AS, memory_bytes, memory_bytes)
    _set_limit(resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK):
        _set_limit(kind, 0, 0)


def _set_limit(kind: int, soft: int, hard: int) -> None:
    """Lower only: what is below already stays."""
    there_is = resource.getrlimit(kind)[1]
    if there_is != resource.RLIM_INFINITY:
        soft, hard = min(soft, there_is), min(hard, there_is)
    resource.setrlimit(kind, (soft, hard))


def _limit_processes(user: int) -> bool:
    """Whether the limit of processes holds for who started it; root is above it, and an unmapped user may be root."""
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    return user not in (0, namespaces.UNMAPPED)


def _drop_capabilities(libc) -> None:
    """All that a root or the owner of a namespace has; without any this does nothing."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))
