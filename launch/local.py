#!/usr/bin/env python3
"""Trains on this machine, as N processes that form one run.

    python launch/local.py --num_processes=2 -- --config=configs/quickstart.py --workdir=DIR --config.train.steps=100

Each process is told the coordinator, the number of processes and its own index through GPTJAX_COORDINATOR,
GPTJAX_NUM_PROCESSES and GPTJAX_PROCESS_ID. Without GPUs the config's mesh.cpu_devices are divided among the processes,
so that the mesh is the config's; GPUs are divided alike, through CUDA_VISIBLE_DEVICES. Lines of process i begin with
[i]. When one process fails the others have --grace_seconds to end by themselves; then all are started again together.
"""

import dataclasses
import glob
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

import common
from common import UserError, errors, supervisor

LAUNCHED = {"GPTJAX_LAUNCHED_BY": "launch/local.py"}  # so that messages blame no variable which the user has not set
HOST_DEVICES = "--xla_force_host_platform_device_count"


def add_flags(parser) -> None:
    parser.add_argument("--num_processes", type=int, default=1, metavar="N", help="default %(default)s")
    parser.add_argument(
        "--devices_per_process", type=int, metavar="D", help="default: what there is, divided by the processes"
    )
    parser.add_argument(
        "--grace_seconds",
        type=float,
        default=60.0,
        metavar="S",
        help="for the other processes when one has failed (default %(default)s)",
    )


def launch(args) -> int:
    run = common.read_run(args.train, "runs")
    devices = device_variables(args, run)
    limits = supervisor.Limits.from_args(args)
    if not 0 <= args.grace_seconds < float("inf"):
        raise UserError(f"--grace_seconds={args.grace_seconds}; expected 0 or more.")
    if args.dry_run:
        show(run, [{**rank, **extra} for rank, extra in zip(rank_variables(args.num_processes), devices)])
        return 0

    def start() -> Group:
        variables = zip(rank_variables(args.num_processes), devices)
        return Group(
            run.train_command(sys.executable),
            [common.environment(**rank, **extra, **LAUNCHED) for rank, extra in variables],
            args.grace_seconds,
        )

    return supervisor.supervise(start, lambda: supervisor.checkpoint_step(run.workdir), limits)


def show(run: common.Run, variables: list[dict[str, str]]) -> None:
    command = shlex.join(run.train_command("python"))
    for own in variables:
        words = [f"{name}={shlex.quote(value)}" for name, value in own.items()]
        print(" ".join([*words, command]) + (" &" if len(variables) > 1 else ""))
    if len(variables) > 1:
        print("wait")


def rank_variables(count: int) -> list[dict[str, str]]:
    """What each process is told of the others. The port is a free one, and a new one at every start."""
    if count == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    shared = {"GPTJAX_COORDINATOR": coordinator, "GPTJAX_NUM_PROCESSES": str(count)}
    return [{**shared, "GPTJAX_PROCESS_ID": str(i)} for i in range(count)]


def device_variables(args, run: common.Run) -> list[dict[str, str]]:
    """The variables that give each process its devices. Raises UserError if they cannot be divided."""
    count, each = args.num_processes, args.devices_per_process
    if count < 1 or (each is not None and each < 1):
        raise UserError(f"--num_processes={count} --devices_per_process={each}: both are 1 or more.")
    gpus = visible_gpus()
    if gpus:
        return gpu_variables(gpus, count, each)
    flags = os.environ.get("XLA_FLAGS", "")
    if each is None:
        if count == 1 or HOST_DEVICES in flags:  # nothing to divide, or given by the user
            return [{}] * count
        devices = common.load_config(run.arguments).mesh.cpu_devices
        typed = any(argument.startswith("--config.mesh.cpu_devices") for argument in run.arguments)
        given = f"--config.mesh.cpu_devices={devices}" if typed else f"mesh.cpu_devices={devices} of {run.config}"
        each = share(devices, count, given, "--config.mesh.cpu_devices to a multiple of it")
    others = re.sub(rf"{HOST_DEVICES}=\S*", "", flags).split()
    return [{"XLA_FLAGS": " ".join([*others, f"{HOST_DEVICES}={each}"])}] * count


def visible_gpus() -> list[str]:
    """Indices of the NVIDIA GPUs that JAX would use."""
    if os.environ.get("JAX_PLATFORMS", "cuda").split(",")[0] not in ("cuda", "gpu", ""):
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [index for index in chosen.split(",") if index]
    return sorted((re.sub(r"\D", "", path) for path in glob.glob("/dev/nvidia[0-9]*")), key=int)


def gpu_variables(gpus: list[str], count: int, each: int | None) -> list[dict[str, str]]:
    if count == 1 and each is None:
        return [{}]
    each = each or share(len(gpus), count, f"{len(gpus)} GPUs", "--devices_per_process or CUDA_VISIBLE_DEVICES")
    if each * count > len(gpus):
        raise UserError(
            f"--num_processes={count} with {each} GPUs each needs {each * count}, but there are {len(gpus)}."
        )
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * each : (i + 1) * each])} for i in range(count)]


def share(devices: int, count: int, what: str, flag: str) -> int:
    if devices % count:
        raise UserError(
            f"{what} cannot be divided among --num_processes={count}; choose another number, or set {flag}."
        )
    return devices // count


class Group:
    """The processes of one run, as one Job of the supervisor."""

    def __init__(self, command: list[str], environments: list[dict[str, str]], grace_seconds: float):
        self._grace_seconds = grace_seconds
        alone = len(environments) == 1
        piped = {} if alone else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._processes = [supervisor.start_process(command, env=own, **piped) for own in environments]
        self._readers = [] if alone else [Lines(i, process) for i, process in enumerate(self._processes)]

    def send_signal(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)

    def wait(self) -> int:
        """Until all have ended. Returns 0, SAVED_AND_STOPPED, or the code of the process that failed.

        Of several failures that is the first which is not the loss of another process.
        """
        codes: dict[int, int] = {}  # in the order in which the processes ended
        deadline = None
        while len(codes) < len(self._processes):
            time.sleep(0.05)
            codes |= {i: supervisor.exit_code(p.returncode) for i, p in self._ended(codes)}
            if deadline is None and failures(codes):
                deadline = time.monotonic() + self._grace_seconds
            if deadline is not None and len(codes) < len(self._processes) and time.monotonic() > deadline:
                cause = failures(codes)[0]
                self._kill()
                codes = {i: cause for i in range(len(self._processes))}
        for process in self._processes:
            process.wait()
        for reader in self._readers:
            reader.join()
        return failures(codes)[0] if failures(codes) else max(codes.values())

    def _ended(self, known: dict[int, int]) -> list[tuple[int, subprocess.Popen]]:
        return [(i, p) for i, p in enumerate(self._processes) if i not in known and p.poll() is not None]

    def _kill(self) -> None:
        for i, process in enumerate(self._processes):
            if process.poll() is None:
                common.note(f"[{i}] has not ended {self._grace_seconds:g} s after another process failed: killed")
                process.send_signal(signal.SIGKILL)


def failures(codes: dict[int, int]) -> list[int]:
    """The codes of processes that neither finished nor saved, the likeliest cause first."""
    failed = [code for code in codes.values() if code not in (0, errors.SAVED_AND_STOPPED)]
    return sorted(failed, key=lambda code: code == errors.PEER_LOST)


@dataclasses.dataclass
class Lines:
    """Copies the lines of a process to standard output, its index in front."""

    index: int
    process: subprocess.Popen

    def __post_init__(self):
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._thread.start()

    def _copy(self) -> None:
        for line in self.process.stdout:
            text = line.decode(errors="replace")
            sys.stdout.write(f"[{self.index}] {text}" if text.endswith("\n") else f"[{self.index}] {text}\n")
            sys.stdout.flush()

    def join(self) -> None:
        self._thread.join(timeout=5)  # a grandchild may hold the pipe open


if __name__ == "__main__":
    sys.exit(common.main(__doc__.splitlines()[0], add_flags, launch))
