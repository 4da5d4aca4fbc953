"""Who is there: the processes of a run find each other over one TCP port before jax.distributed starts on it.

jax's own client aborts the process, and names nobody, where a process of the run never comes. Here process 0 listens
on the coordinator's port, the others say who they are, and at the deadline everybody learns who is missing.
"""

import json
import os
import socket
import time
import typing

from gptjax.errors import UserError

GREETING = "gptjax"


class Missing(Exception):
    """Processes of the run that did not come in time."""


class PortTaken(UserError):
    """Another process listens where process 0 has to."""


class Words(typing.NamedTuple):
    """Of whoever says which process is which, so that messages name what the user knows."""

    port: str  # process 0 cannot listen on ...
    other_port: str  # how to get another
    same_count: str  # how to start all with one number of processes
    own_index: str  # and each with a number of its own
    run: str = ""  # what tells its processes from those of another run that come to this port


def roll_call(address: str, count: int, index: int, seconds: float, words: Words) -> list[str]:
    """The hostname of every process. Raises Missing, PortTaken, or UserError for processes that don't belong together."""
    host, _, port = address.rpartition(":")
    if index == 0:
        return _listen(int(port), count, seconds, words)
    return _report(host.strip("[]"), int(port), count, index, seconds, words)


def _listen(port: int, count: int, seconds: float, words: Words) -> list[str]:
    deadline = time.monotonic() + seconds
    with _server(port, words, min(15.0, seconds / 2)) as server:
        hosts, connections = {0: socket.gethostname()}, []
        trouble = UserError
        try:
            error = _collect(server, count, deadline, hosts, connections, words)
            if error is None and len(hosts) < count:
                trouble, error = Missing, _missing(hosts, count, seconds)
            answer = {"hosts": [hosts[i] for i in range(count)]} if error is None else {"error": error}
            answer["missing"] = trouble is Missing
            for connection in connections:
                _send(connection, answer)
            for connection in connections:  # who closes first keeps the port busy: not us
                connection.settimeout(2)
                _read_line(connection)
        finally:
            for connection in connections:
                connection.close()
    if error is not None:
        raise trouble(error)
    return answer["hosts"]


def _server(port: int, words: Words, patience: float) -> socket.socket:
    """Listening on every interface, as jax's service will. A port that the run before us still holds is waited for."""
    deadline = time.monotonic() + patience
    while True:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
            return socket.create_server(("", port), backlog=4096)
        except OSError as error:
            if time.monotonic() > deadline:
                raise PortTaken(
                    f"process 0 cannot listen on {words.port}: {os.strerror(error.errno)}; {words.other_port}."
                ) from error
            time.sleep(0.5)


def _collect(server, count: int, deadline: float, hosts: dict[int, str], connections: list, words: Words) -> str | None:
    """Fills hosts and connections until all have come or the deadline; what is wrong with them, if something is."""
    while len(hosts) < count and (left := deadline - time.monotonic()) > 0:
        server.settimeout(left)
        try:
            connection, _ = server.accept()
        except TimeoutError:
            break
        connection.settimeout(5)
        hello = _parse(_read_line(connection))
        # A port scanner, the jax client of a run before, another run; an older gptjax names no run.
        if hello is None or hello.get("run", "") != words.run:
            connection.close()
            continue
        connections.append(connection)
        index, host = hello["process"], hello["host"]
        if hello["count"] != count:
            return (
                f"process {index} ({host}) was started as one of {hello['count']}, process 0 ({hosts[0]}) as one of"
                f" {count}; {words.same_count}."
            )
        if index in hosts:
            return f"two processes have the number {index}, one on {hosts[index]} and one on {host}; {words.own_index}."
        hosts[index] = host
    return None


def _missing(hosts: dict[int, str], count: int, seconds: float) -> str:
    absent = [i for i in range(count) if i not in hosts]
    here = ", ".join(f"{i} ({host})" for i, host in sorted(hosts.items()))
    return (
        f"process {_enumerate(absent)} of {count} did not come within {seconds:g} s; here: {here}."
        " See the log of its host, or give GPTJAX_START_SECONDS for hosts that start late."
    )


def _enumerate(numbers: list[int], most: int = 16) -> str:
    shown = ", ".join(map(str, numbers[:most]))
    return shown if len(numbers) <= most else f"{shown} and {len(numbers) - most} more"


def _report(host: str, port: int, count: int, index: int, seconds: float, words: Words) -> list[str]:
    deadline = time.monotonic() + seconds + 5  # process 0 judges first
    hello = {"process": index, "count": count, "host": socket.gethostname(), "run": words.run}
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=min(left, 5)) as connection:
                connection.settimeout(left)
                _send(connection, hello)
                answer = _parse(_read_line(connection))
        except OSError:
            answer = None
        if answer is not None:
            if "error" in answer:
                raise (Missing if answer["missing"] else UserError)(answer["error"])
            return answer["hosts"]
        time.sleep(0.2)
    raise Missing(
        f"process 0, which coordinates at {host}:{port}, did not come within {seconds:g} s; this is process {index}"
        f" of {count}. See the log of its host, or give GPTJAX_START_SECONDS for hosts that start late."
    )


def _send(connection, message: dict) -> None:
    try:
        connection.sendall(f"{GREETING} {json.dumps(message)}\n".encode())
    except OSError:  # it went away: jax's heartbeat will tell
        pass


def _read_line(connection) -> bytes:
    """Up to a newline; empty if none comes."""
    data = b""
    try:
        while not data.endswith(b"\n") and len(data) < 10_000_000:
            part = connection.recv(65536)
            if not part:
                return b""
            data += part
    except OSError:
        return b""
    return data


def _parse(line: bytes) -> dict | None:
    greeting, _, message = line.partition(b" ")
    try:
        return json.loads(message) if greeting == GREETING.encode() else None
    except ValueError:
        return None
