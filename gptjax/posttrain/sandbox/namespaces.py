"""A network namespace of one's own, in a user namespace so that it needs no root (Linux, where the system allows it)."""

import os

_CLONE_NEWUTS, _CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x04000000, 0x08000000, 0x10000000, 0x40000000
_OWN_NETWORK = "/proc/self/ns/net"
UNMAPPED = 65534  # the user that a user namespace without a map shows


def enter(libc) -> bool:
    """Whether there is no network from now on but a loopback device that is down."""
    before = os.readlink(_OWN_NETWORK)
    alone = _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS
    if libc.unshare(_CLONE_NEWUSER | alone) and libc.unshare(alone):  # the second as root, where users may not
        return False
    return os.readlink(_OWN_NETWORK) != before
