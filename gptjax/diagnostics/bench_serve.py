"""`gptjax bench --serve=RUN`: how fast `gptjax serve` answers, beside `transformers serve` on the same weights.

Each side is a server of its own, started by its command on a free port. They take turns: so many clients each ask for a text at
once, streamed and greedy, and the other servers are stopped (SIGSTOP) meanwhile, so that none of them takes time from the one
that answers. A first round of each is left out. This process is the clients alone and loads no JAX.
"""

import concurrent.futures
import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import typing

from gptjax.applications import client
from gptjax.errors import UserError, shorten

CLIENTS = (1, 8, 32)
NEW_TOKENS = 64
PLACES = 256  # of prompt and answer, with room: a whole context for each of many slots may be more than there is memory
PROMPT = "Once upon a time, in the town of number {}, there was a clerk who"
START_SECONDS = 600.0  # a server that compiles at its start takes minutes
LEAST_ROUNDS = 3
# Of the cache of continuous batching, which is otherwise as large as free memory: 1,024 blocks of 16 tokens.
BLOCKS = ("--cb-block-size", "16", "--cb-num-blocks", "1024")


class Answer(typing.NamedTuple):
    tokens: int
    seconds_to_first: float
    seconds: float


class Round(typing.NamedTuple):
    """What so many clients got at once."""

    tokens_per_second: float
    seconds_to_first: float  # the median of the clients


class Server:
    """A server that somebody's command starts. model: its name in requests; further: fields of its requests alone.

    Raises UserError: the command can't be run, ends, or answers nothing in time."""

    def __init__(self, command: list[str], port: int, model: str, further: dict, log: pathlib.Path):
        self.port, self.model, self.further, self._log = port, model, further, log
        try:
            self.process = subprocess.Popen(command, stdout=log.open("wb"), stderr=subprocess.STDOUT)
        except OSError as error:
            raise UserError(f"{command[0]}: {error.strerror}; it was to start {' '.join(command[1:4])}.") from error
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                end = self._log.read_text(errors="replace")[-500:]
                self.close()
                raise UserError(f"{' '.join(command)} did not begin to serve: {shorten(end, 500)}")
            time.sleep(0.5)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(self._connection(5)) as line:
            line.request("GET", "/health")
            return line.getresponse().status == 200
        return False

    def _connection(self, seconds: float) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)

    def ask(self, prompt: str, tokens: int = NEW_TOKENS) -> Answer:
        """Raises UserError: the server refuses, or its answer ends early."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
        body |= {"stream_options": {"include_usage": True}} | self.further
        begun = time.perf_counter()
        with contextlib.closing(self._connection(START_SECONDS)) as line:
            line.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = line.getresponse()
            if response.status != 200:
                raise UserError(f"{self.model}: {response.status}, {shorten(response.read().decode(), 300)}")
            try:
                return self._read(response, begun)
            except UserError as error:
                end = shorten(self._log.read_text(errors="replace")[-500:].strip(), 500)
                raise UserError(f"{self.model}: {error} Its log ends: {end or '(empty)'}") from error

    def _read(self, response, begun: float) -> Answer:
        first, made = None, None
        for event in client.events(response):
            if first is None and any(choice.get("text") for choice in event.get("choices") or ()):
                first = time.perf_counter() - begun
            if event.get("usage"):
                made = event["usage"]["completion_tokens"]
        if first is None or not made:
            raise UserError("the answer had no text, or no usage.")
        return Answer(made, first, time.perf_counter() - begun)

    @property
    def peak_bytes(self) -> int | None:
        """The most memory that the process had, as Linux counts it; None: this system does not say."""
        try:
            status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return None
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))

    @contextlib.contextmanager
    def turn(self):
        """The server runs within this `with`; outside of all turns it is stopped."""
        self.process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        """Stops it, and returns once it is: a signal is on its way for a moment, which would be another's turn."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def one_round(server: Server, clients: int) -> Round:
    """What so many clients get that ask at once, each something else."""
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        begun = time.perf_counter()
        answers = list(pool.map(server.ask, [PROMPT.format(i) for i in range(clients)]))
        seconds = time.perf_counter() - begun
    first = statistics.median(answer.seconds_to_first for answer in answers)
    return Round(sum(answer.tokens for answer in answers) / seconds, first)


def in_turn(servers: dict[str, Server], clients: int, seconds: float) -> dict[str, list[Round]]:
    """Rounds of each side, one after the other, at least LEAST_ROUNDS of each, after one that is left out."""
    taken, deadline, warm = {name: [] for name in servers}, None, False
    while deadline is None or len(next(iter(taken.values()))) < LEAST_ROUNDS or time.perf_counter() < deadline:
        for name, server in servers.items():
            with server.turn():
                made = one_round(server, clients)
            if warm:
                taken[name].append(made)
        warm, deadline = True, deadline or time.perf_counter() + seconds
    return taken


def bench(config, seconds: float, run: str, python: str | None = None, dtype: str | None = None, clients=None) -> dict:
    """Tokens a second and seconds to the first token for each number of clients and each side, the ratios of neighbouring rounds, and
    the peak memory of each. config: None. python: one that has transformers with its server; None: ours alone. dtype: of our
    weights. clients: numbers; None: CLIENTS.

    Raises UserError: a server does not start, or refuses."""
    counts = tuple(clients or CLIENTS)
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {name: _started(*made, folder / f"{i}.log", stack) for i, (name, made) in enumerate(
            _commands(run, python, dtype, max(counts), folder).items())}  # fmt: skip
        rows = []
        for count in counts:
            taken = in_turn(servers, count, seconds / len(counts))
            rows.append({"clients": count, "sides": {name: _summary(taken, name) for name in servers}})
        peaks = {name: server.peak_bytes for name, server in servers.items()}
    return {"new_tokens": NEW_TOKENS, "rows": rows, "peak_bytes": peaks}


def _commands(run: str, python: str | None, dtype: str | None, slots: int, folder: pathlib.Path) -> dict[str, tuple]:
    """{side: (its command, port, the name of its model, fields of its requests alone)}"""
    ours, port = [sys.executable, "-m", "gptjax"], free_port()
    further = [f"--dtype={dtype}"] if dtype else []
    command = [*ours, "serve", f"bench={run}", f"--port={port}", f"--slots={slots}", f"--places={PLACES}", *further]
    sides = {"gptjax serve": (command, port, "bench", {"ignore_eos": True})}
    if python is None:
        return sides
    exported = str(folder / "exported")
    made = subprocess.run([*ours, "export", run, "--to=hf", f"--out={exported}"], capture_output=True, text=True)
    if made.returncode:
        raise UserError(f"the run can't be exported for transformers: {shorten(made.stderr.strip(), 300)}")
    for name, flags in (("transformers serve", ()), ("with --continuous-batching", ("--continuous-batching", *BLOCKS))):
        port = free_port()
        command = [python, "-m", "transformers.cli.transformers", "serve", exported, "--device", "cpu"]
        sides[name] = ([*command, "--port", str(port), *flags], port, exported, {})
    return sides


def _started(command, port, model, further, log, stack: contextlib.ExitStack) -> Server:
    """Stopped, until its turn."""
    server = Server(command, port, model, further, log)
    stack.callback(server.close)
    server.pause()
    return server


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def _summary(taken: dict[str, list[Round]], name: str) -> dict:
    """Medians of a side, and of the ratios of ours to it: above 1 where ours is the faster."""
    ours, rounds = next(iter(taken.values())), taken[name]
    return {
        "tokens_per_second": statistics.median(each.tokens_per_second for each in rounds),
        "seconds_to_first": statistics.median(each.seconds_to_first for each in rounds),
        "ratio": statistics.median(a.tokens_per_second / b.tokens_per_second for a, b in zip(ours, rounds)),
        "ratio_to_first": statistics.median(b.seconds_to_first / a.seconds_to_first for a, b in zip(ours, rounds)),
        "rounds": len(rounds),
    }


def table(results: dict) -> str:
    """bench() for a person."""
    lines = [f"texts of {results['new_tokens']} tokens, streamed, greedy; medians of rounds that take turns"]
    for row in results["rows"]:
        for name, side in row["sides"].items():
            line = f"{row['clients']:>3} clients  {name:<28} {side['tokens_per_second']:8.1f} tokens/s, first after"
            line += f" {side['seconds_to_first'] * 1e3:.0f} ms ({side['rounds']} rounds)"
            if name != next(iter(row["sides"])):
                line += (
                    f"; ours is {side['ratio']:.2f} times as fast, its first token {side['ratio_to_first']:.2f} times"
                )
            lines.append(line)
    peaks = [f"{name} {peak / 2**20:,.0f} MiB" for name, peak in results["peak_bytes"].items() if peak is not None]
    return "\n".join([*lines, f"peak memory: {', '.join(peaks)}" if peaks else "peak memory: not told by this system"])
