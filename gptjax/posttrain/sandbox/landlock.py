"""Landlock (Linux 5.13): no file can be written, and only those of Python and of its libraries can be read.

Numbers are those of linux/landlock.h; a kernel knows a part of them, by its ABI version.
"""

import ctypes
import os
import sys

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # of all architectures
_VERSION = 1  # flag of landlock_create_ruleset: say the ABI version
_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # ABI version: number of rights, the lowest bits
_TCP_RIGHTS = 0b11  # to bind and to connect, from version 4
_SCOPES = 0b11  # abstract Unix sockets and signals, from version 6


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("tcp", ctypes.c_uint64), ("scopes", ctypes.c_uint64)]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32)]


def readable() -> list[str]:
    """Folders and files of Python, of shared libraries and of time zones."""
    python = [os.path.dirname(os.__file__), os.path.join(sys.base_prefix, "lib")]
    libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"]
    return [*python, *libraries, "/usr/share/zoneinfo", "/etc/localtime", "/dev/null", "/dev/urandom"]


def restrict(libc) -> bool:
    """Whether it holds from now on; False: the kernel has no Landlock."""
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 1:
        return False
    rights = (1 << max(count for since, count in _FILE_RIGHTS.items() if since <= version)) - 1
    attributes = _Ruleset(rights, _TCP_RIGHTS if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    try:
        added = all([_allow(libc, ruleset, path) for path in readable() if os.path.exists(path)])
        return added and libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _allow(libc, ruleset: int, path: str) -> bool:
    """Whether reading below a path is allowed now."""
    folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = _PathBeneath(_READ_FILE | (_READ_DIR if os.path.isdir(path) else 0), folder)
        return libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.byref(rule), 0) == 0
    finally:
        os.close(folder)
