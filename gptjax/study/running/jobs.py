"""Processes of a study: one for a run, or for a group of runs that share it, with its log and how it ended.

On a CPU the numbers of a run depend on how many threads XLA has, in the last bits. A run of a study therefore gets as
many as its config's mesh.cpu_devices, however many runs go on beside it and however many cores there are.
"""

import dataclasses
import glob
import os
import re
import signal
import subprocess
import tempfile
import time

from gptjax import supervisor
from gptjax.errors import UserError
from gptjax.study.running import status
from gptjax.study.running.layout import StudyDirectory, write_json

THREADS = "PJRT_NPROC"  # read by XLA's CPU client: the size of its pool of threads


@dataclasses.dataclass(frozen=True)
class Order:
    """What to start."""

    keys: tuple[str, ...]
    command: list[str]
    variables: dict[str, str]
    attempt: int
    slot: int = 0  # which share of the machine's devices it has
    steps: dict[str, int] = dataclasses.field(default_factory=dict)  # saved before, by key


class Job:
    """A process that was started, and what is written down when it has ended."""

    def __init__(self, directory: StudyDirectory, order: Order, environment: dict[str, str]):
        self.order, self._directory, self._began = order, directory, time.monotonic()
        self._stopped = self._killed = False
        for key in order.keys:
            self._note(key, code=None)
        self._log = self._open_log()
        try:
            self._process = supervisor.start_process(
                order.command, env=environment | order.variables, stdout=self._log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except BaseException:
            self._log.close()
            raise

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def ended(self) -> bool:
        return self._process.poll() is not None

    def stop(self) -> None:
        """Asks it to save and to end."""
        self._stopped = True
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """What it has saved counts, and how it ended does not."""
        self._killed = True
        self._process.kill()
        self._process.wait()

    def close(self) -> int:
        """After its end: writes down how it ended, for the runs that have not done so themselves. Returns the code."""
        code = supervisor.exit_code(self._process.wait())
        self._close_log()
        if self._stopped and code == supervisor.exit_code(-signal.SIGTERM):  # before it listened: that is no failure
            return code
        for key in self.order.keys:
            if not self._killed and status.last_exit(self._directory, key).get("code") is None:
                self._note(key, code)
        return code

    def _note(self, key: str, code: int | None) -> None:
        facts = {"code": code, "time": round(time.time(), 1), "seconds": round(self.seconds, 1)}
        own = self._directory.log(self.order.keys[0]).name
        shared = {"log": own} if key != self.order.keys[0] else {}
        write_json(self._directory.exit(key), facts | {"attempt": self.order.attempt} | shared)

    def _open_log(self):
        """Where the output goes. Object stores cannot append: there it is added to the log at the end."""
        file = self._directory.log(self.order.keys[0])
        if not self._directory.local:
            return tempfile.TemporaryFile()
        file.parent.mkdir(parents=True, exist_ok=True)
        return open(file, "ab")

    def _close_log(self) -> None:
        if not self._directory.local:
            file = self._directory.log(self.order.keys[0])
            self._log.seek(0)
            before = file.read_bytes() if file.exists() else b""
            file.write_bytes(before + self._log.read())
        self._log.close()


def variables(config, gpus: list[str], slot: int, parallel: int) -> dict[str, str]:
    """Environment variables that give a process on this machine its share of devices, and no more threads than its own."""
    if gpus:
        each = len(gpus) // parallel
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot * each : (slot + 1) * each])}
    return {} if THREADS in os.environ else {THREADS: str(max(1, config.mesh.cpu_devices))}


def check_gpus(gpus: list[str], parallel: int | None) -> None:
    """Raises UserError: more processes are to run at once than there are GPUs."""
    if gpus and (parallel or 1) > len(gpus):
        raise UserError(f"--parallel={parallel} processes need a GPU each, and there are {len(gpus)}; use {len(gpus)}.")


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """Indices of the NVIDIA GPUs that JAX would use."""
    if os.environ.get("JAX_PLATFORMS", "cuda").split(",")[0] not in ("cuda", "gpu", ""):
        return []
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [index for index in chosen.split(",") if index]
    found = [re.sub(r"\D", "", path) for path in glob.glob("/dev/nvidia[0-9]*")]
    return sorted(found, key=int)
