"""A network namespace of one's own, in a user namespace so that it needs no root (Linux, where the system allows it)."""

import os

_CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x04000000, 0x08000000, 0x10000000, 0x40000000
UNMAPPED = 65534  # the user that a user namespace without a map shows


def enter(libc) -> bool:
    """Whether there is no network from now on but a loopback device that is down."""
    alone = _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS
    if libc.unshare(_CLONE_NEWUSER | alone) and libc.unshare(alone):  # the second as root, where users may not
        return False
    with open("/proc/self/net/dev") as file:
        devices = [line.partition(":")[0].strip() for line in file.readlines()[2:]]
    return set(devices) <= {"lo"} and os.path.exists("/proc/self/ns/net")
