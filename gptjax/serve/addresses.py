"""Where a server listens."""

import socket

from gptjax.errors import UserError, first_line

LOOPBACK = ("127.0.0.1", "localhost", "::1")  # this machine's names of itself, which no other machine reaches


def bound(host: str, port: int) -> socket.socket:
    """Bound before anything is loaded, so that a port that is taken is said at once. Raises UserError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"--host={host} --port={port}: {reason}; use others.") from None
    return door


def url(door: socket.socket, host: str, is_secure: bool) -> str:
    """Of a server that listens there."""
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if is_secure else 'http'}://{shown}:{door.getsockname()[1]}"
