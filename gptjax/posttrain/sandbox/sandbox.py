"""Programs run each in a locked-down child process of Python's, with its standard library alone.

    outcome = Sandbox().run("assert 1 + 1 == 2")      Outcome("passed", ...)
    Sandbox().run("print(input())", "a line", expected="a line")

The child gets no environment, no network, no file to write and no second process or thread (lockdown.py says by what), and
limits on time, memory and output. It always ends: it is killed at the limits, and with the process that started it. What it
does is its own outcome, never an error here. Hashes of texts have a fixed seed, so that a program does the same each time;
only limits of time depend on the machine.
"""

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import typing

import gptjax
from gptjax.errors import UserError
from gptjax.posttrain.sandbox import lockdown

RESULTS = {
    "passed": "the program came to its end, and printed what was expected",
    "failed": "an assertion did not hold, or the output is another",
    "error": "it raised an error",
    "denied": "it asked for what the sandbox denies: a file, a socket, a process",
    "timeout": "it took too much time",
    "memory": "it took too much memory",
    "output": "it printed too much",
    "exited": "it ended itself before its end",
    "crashed": "a signal ended it",
}
_SOURCE = str(pathlib.Path(gptjax.__file__).parents[1])
_PROGRAM = f"import sys; sys.path.insert(0, {_SOURCE!r}); from gptjax.posttrain.sandbox import child; child.main()"
_CHUNK = 1 << 16  # bytes read at once


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one program. cpu_seconds: of its own computing; wall_seconds: of the clock, start of Python included."""

    cpu_seconds: int = 3
    wall_seconds: float = 20.0
    memory_bytes: int = 512 << 20  # of address space, Python's own 20 MB among it
    output_bytes: int = 1 << 16  # of what it prints

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) <= 0:
                raise UserError(f"{field.name}={getattr(self, field.name)}; expected more than 0.")


class Outcome(typing.NamedTuple):
    """result: one of RESULTS. detail: the error, in a line. output: what it printed. locked: the mechanisms that held."""

    result: str
    detail: str
    output: str
    seconds: float
    locked: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.result == "passed"


class Job(typing.NamedTuple):
    """expected: what the program has to print, spaces at the ends of lines and of the text aside; None: anything."""

    program: str
    input: str = ""
    expected: str | None = None


@dataclasses.dataclass(frozen=True)
class Sandbox:
    """unlocked: run also where network, files and processes cannot be denied. mechanisms: those that may be used."""

    limits: Limits = Limits()
    unlocked: bool = False
    mechanisms: tuple[str, ...] = lockdown.MECHANISMS

    def run(self, program: str, input: str = "", expected: str | None = None) -> Outcome:
        """Raises UserError: this machine cannot lock the child down, and unlocked is False."""
        started = time.monotonic()
        with tempfile.TemporaryFile() as request, tempfile.TemporaryFile() as stdin:
            _fill(stdin, input.encode(errors="surrogatepass"))
            _fill(request, json.dumps(self._request(program, expected)).encode())
            child = _Child(request.fileno(), stdin)
            stopped_by = child.read(started + self.limits.wall_seconds, self.limits.output_bytes)
        return self._outcome(child, stopped_by, expected, time.monotonic() - started)

    def run_all(self, jobs: typing.Sequence[Job], workers: int | None = None) -> list[Outcome]:
        """Of each job in order, so many at a time; None: as many as there are CPUs. Raises UserError as `run`."""
        with concurrent.futures.ThreadPoolExecutor(workers or _cpus()) as pool:
            return list(pool.map(lambda job: self.run(*job), jobs))

    def _request(self, program: str, expected: str | None) -> dict:
        return {
            "program": program,
            "may_exit": expected is not None,
            "cpu_seconds": self.limits.cpu_seconds,
            "memory_bytes": self.limits.memory_bytes,
            "mechanisms": self.mechanisms,
            "unlocked": self.unlocked,
        }

    def _outcome(self, child: "_Child", stopped_by: str | None, expected: str | None, seconds: float) -> Outcome:
        locked, report = child.reports()
        if locked is not None and locked["missing"] and not self.unlocked:
            raise UserError(
                f"the sandbox cannot deny {' and '.join(locked['missing'])} on this machine (tried:"
                f" {', '.join(self.mechanisms)}); use Linux 5.13 or newer with seccomp, or say that code may run"
                " unlocked, as in code(unlocked=True), inside a virtual machine of its own."
            )
        if locked is None and stopped_by is None:
            raise UserError(
                f"the sandbox's child process ended ({_ending(child.returncode)}) before it ran the program; give it more"
                f" than {self.limits.memory_bytes >> 20} MiB of memory and {self.limits.cpu_seconds} s of CPU time."
            )
        output = child.output.decode(errors="replace")
        result, detail = _result(stopped_by, report, child.returncode, seconds >= self.limits.cpu_seconds)
        if result == "passed" and expected is not None and _lines(output) != _lines(expected):
            result, detail = "failed", "the output is another than expected"
        return Outcome(result, detail, output, seconds, tuple(locked["locked"]) if locked else ())


class _Child:
    """The child process, and what came from it."""

    def __init__(self, request: int, stdin: typing.IO[bytes]):
        self.output, self._report = bytearray(), bytearray()
        self._report_end, report = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-s", "-S", "-P", "-B", "-X", "utf8", "-c", _PROGRAM, str(request), str(report)],
                env={"PYTHONHASHSEED": "0"},
                cwd="/",
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(request, report),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._report_end)
            raise
        finally:
            os.close(report)

    def read(self, deadline: float, output_bytes: int) -> str | None:
        """Takes what comes until the child ends; then there is no process of its session any more. Returns the limit that
        ended it, "timeout" or "output", or None."""
        try:
            return self._read(deadline, output_bytes)
        finally:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._process.wait()
            self._process.stdout.close()
            os.close(self._report_end)

    def _read(self, deadline: float, output_bytes: int) -> str | None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ, self.output)
            selector.register(self._report_end, selectors.EVENT_READ, self._report)
            while selector.get_map():
                if (left := deadline - time.monotonic()) <= 0:
                    return "timeout"
                for key, _ in selector.select(left):
                    data = os.read(key.fd, _CHUNK)
                    key.data.extend(data[: output_bytes + 1])
                    if not data:
                        selector.unregister(key.fileobj)
                    if len(key.data) > output_bytes:
                        return "output"
        try:  # both ends are closed; it may still run
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return "timeout"
        return None

    @property
    def returncode(self) -> int:
        return self._process.returncode

    def reports(self) -> tuple[dict | None, dict | None]:
        """(what is locked, how the program ended), as far as the child said so."""
        reports = []
        for line in bytes(self._report).splitlines()[:2]:
            try:
                reports.append(json.loads(line))
            except ValueError:
                break
        return (*reports, None, None)[:2]


def _result(stopped_by: str | None, report, returncode: int, long: bool) -> tuple[str, str]:
    """(result, detail). long: it had the time to use up that of the CPU."""
    if stopped_by is not None:
        return stopped_by, RESULTS[stopped_by]
    if isinstance(report, dict) and report.get("result") in RESULTS:
        return report["result"], str(report.get("detail", ""))
    if returncode == -signal.SIGXCPU or (returncode == -signal.SIGKILL and long):
        return "timeout", RESULTS["timeout"]
    return "crashed" if returncode < 0 else "exited", _ending(returncode)


def _ending(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"exit code {returncode}"


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _fill(file: typing.IO[bytes], data: bytes) -> None:
    file.write(data)
    file.flush()
    file.seek(0)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]
