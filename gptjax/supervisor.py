"""Keeps a run going: starts it, and starts it again after a preemption or a crash, as long as it gains steps.

    python -m gptjax.supervisor --workdir=DIR [--max_restarts=N] [--max_stalled=N] -- COMMAND ...

One supervisor for every launcher: around `gptjax train` on each host of a pod or cluster, around all processes of
launch/local.py, around the machines themselves in launch/tpu_queued_resource.py. What it starts is a Job: a
subprocess.Popen, or anything with its `wait` and `send_signal`.

    code of the run                            what follows
    0 done, 2 user error, 76 diverged, 79, 80  the end, with that code
    any other: crash, signal, 74, 75, 77, 78   started again, unless the supervisor itself was told to stop

On SIGTERM or Ctrl-C it passes the signal on, waits until the run has saved, and ends with 75: run it again to go on.
A job belongs to a session of its own, so that Ctrl-C at a terminal reaches it once, through here.
"""

import argparse
import ctypes
import dataclasses
import signal
import subprocess
import sys
import time
import typing

from gptjax import errors
from gptjax.errors import UserError
from gptjax.hosts import interrupt

GAVE_UP = 79  # restarting did not help; nothing that runs the supervisor should try again
FINAL = {
    0: "done",
    errors.USER_ERROR: "a mistake in the command or the config",
    errors.DIVERGED: "the loss diverged",
    errors.MOVED: "the run directory was moved or removed",
    GAVE_UP: "restarting did not help",
}
PASSING = {  # the codes of gptjax train that a restart may mend
    errors.SAVE_FAILED: "a checkpoint could not be written, or another disk or network error",
    errors.SAVED_AND_STOPPED: "saved and stopped",
    errors.STALLED: "no step for too long",
    errors.PEER_LOST: "another process of the run was lost",
}
MAX_BACKOFF_SECONDS = 300.0


class Job(typing.Protocol):
    def wait(self) -> int: ...

    def send_signal(self, number: int) -> None: ...


@dataclasses.dataclass(frozen=True)
class Limits:
    """When to give up. The pause before a restart doubles while no step is gained."""

    max_restarts: int = 100
    max_stalled: int = 3  # starts in a row that gain no step
    backoff_seconds: float = 10.0  # longer than the processes of a run are apart in noticing a lost one

    @classmethod
    def from_args(cls, args) -> "Limits":
        """Raises UserError for numbers that cannot be."""
        for name, least in (("max_restarts", 0), ("max_stalled", 1), ("backoff_seconds", 0)):
            if not least <= getattr(args, name) < float("inf"):
                raise UserError(f"--{name}={getattr(args, name)}; expected {least} or more.")
        return cls(args.max_restarts, args.max_stalled, args.backoff_seconds)

    def flags(self) -> list[str]:
        """These limits as flags of the command line above."""
        return [f"--{field.name}={getattr(self, field.name)}" for field in dataclasses.fields(self)]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The limits, for every launcher alike."""
    parser.add_argument(
        "--max_restarts", type=int, default=Limits.max_restarts, metavar="N", help="default %(default)s"
    )
    parser.add_argument(
        "--max_stalled",
        type=int,
        default=Limits.max_stalled,
        metavar="N",
        help="give up after this many starts in a row without a new step (default: %(default)s)",
    )
    parser.add_argument(
        "--backoff_seconds",
        type=float,
        default=Limits.backoff_seconds,
        metavar="S",
        help="seconds before a restart; doubled while there is no new step (default: %(default)s)",
    )


class Supervisor(interrupt.SignalHandler):
    """Starts jobs one after the other. Use as a context: it owns the signal handlers while the `with` lasts."""

    def __init__(self, start: typing.Callable[[], Job], read_step: typing.Callable[[], int], limits: Limits):
        """start: begins the run, or goes on with it. read_step: the step that a start would resume from."""
        self._start, self._read_step, self._limits = start, read_step, limits
        self._job: Job | None = None
        self._unsent: list[int] = []
        self._stop: signal.Signals | None = None

    def run(self) -> int:
        """Until the run has ended for good. Returns its exit code, SAVED_AND_STOPPED or GAVE_UP."""
        restarts = stalled = 0
        step = self._read_step()  # what it raises here is the user's to mend; later it is the network's
        while True:
            code = self._run_once()
            before, step = step, self._step_now(step)
            if self._stop:
                return self._stopped(code, step)
            if code in FINAL:
                if code:
                    say(f"not restarted: {describe(code)}; at step {step}")
                return code
            stalled = 0 if step > before else stalled + 1
            where = f"the run ended with {describe(code)} at step {step}, having gained {step - before}"
            if stalled >= self._limits.max_stalled:
                return self._give_up(f"{where}: {stalled} starts in a row without a new step")
            if restarts >= self._limits.max_restarts:
                return self._give_up(f"{where}: restarted {restarts} times, which is the limit")
            restarts += 1
            pause = min(self._limits.backoff_seconds * 2 ** max(0, stalled - 1), MAX_BACKOFF_SECONDS)
            say(f"{where}; restart {restarts} of {self._limits.max_restarts} in {pause:g} s")
            if self._pause(pause):
                return self._stopped(code, step)

    def _run_once(self) -> int:
        self._job = self._start()
        self._forward()  # a signal that came while it was started
        code = exit_code(self._job.wait())
        self._job = None
        return code

    def _on_signal(self, number, frame) -> None:
        self._stop = signal.Signals(number)
        self._unsent.append(number)
        self._forward()

    def _forward(self) -> None:
        while self._job is not None and self._unsent:
            self._job.send_signal(self._unsent.pop(0))

    def _pause(self, seconds: float) -> bool:
        """Waits. True, and at once, if told to stop."""
        end = time.monotonic() + seconds
        while not self._stop and time.monotonic() < end:
            time.sleep(min(0.1, max(0.0, end - time.monotonic())))
        return bool(self._stop)

    def _step_now(self, known: int) -> int:
        try:
            return self._read_step()
        except Exception as error:  # a bucket out of reach for a moment must not end the run
            say(f"the run directory could not be read ({type(error).__name__}: {error}); step {known} is assumed")
            return known

    def _stopped(self, code: int, step: int) -> int:
        say(f"told to stop by {self._stop.name}: the run ended with {describe(code)}; checkpoint of step {step}")
        return code if code in FINAL else errors.SAVED_AND_STOPPED

    def _give_up(self, why: str) -> int:
        say(f"giving up: {why}")
        return GAVE_UP


def supervise(start: typing.Callable[[], Job], read_step: typing.Callable[[], int], limits: Limits) -> int:
    """Exit code of a run that is started again until it is done or nothing helps."""
    with Supervisor(start, read_step, limits) as supervisor:
        return supervisor.run()


def start_process(command: list[str], **options) -> subprocess.Popen:
    """A Job: a process in a session of its own, which is asked to save (SIGTERM) should this one be killed.

    Raises UserError if there is no such program.
    """
    try:
        return subprocess.Popen(command, start_new_session=True, preexec_fn=_end_with_parent(), **options)
    except OSError as error:
        raise UserError(f"cannot start {command[0]!r}: {error.strerror}.") from error


def _end_with_parent() -> typing.Callable[[], None] | None:
    """What the child does before it becomes the program; None where the system cannot."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded here: little is safe between fork and exec
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    return lambda: libc.prctl(set_parent_death_signal, signal.SIGTERM)


def checkpoint_step(workdir: str) -> int:
    """The newest checkpoint's step, 0 if there is none. Raises UserError for a gs:// path that cannot be read here."""
    from gptjax.rundir import run_directory

    try:
        return max(run_directory.open_run(workdir).steps(), default=0)
    except ImportError as error:
        raise UserError(f"--workdir={workdir} cannot be read here: {error}; pip install 'etils[epath-gcs]'.") from error


def exit_code(returncode: int) -> int:
    """As a shell gives it: 128 + n for a process that signal n has ended."""
    return returncode if returncode >= 0 else 128 - returncode


def describe(code: int) -> str:
    """'code 137 (SIGKILL)'."""
    meaning = {**FINAL, **PASSING}.get(code)
    if meaning is None and 128 < code < 128 + signal.NSIG:
        try:
            meaning = signal.Signals(code - 128).name
        except ValueError:
            meaning = f"signal {code - 128}"
    return f"code {code}" + (f" ({meaning})" if meaning else "")


def say(line: str) -> None:
    print(f"supervisor: {line}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m gptjax.supervisor",
        usage="%(prog)s --workdir=DIR [flags] -- COMMAND ...",
        description="Runs COMMAND, and restarts it after a preemption or a crash, as long as the run in DIR makes new steps.",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run directory, local or gs://")
    add_flags(parser)
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index("--") if "--" in argv else len(argv)
    args, command = parser.parse_args(argv[:split]), argv[split + 1 :]
    try:
        if not command:
            raise UserError("no command given; it follows --, as in: --workdir=DIR -- gptjax train --config=FILE ...")
        return supervise(lambda: start_process(command), lambda: checkpoint_step(args.workdir), Limits.from_args(args))
    except UserError as error:
        print(f"supervisor: {error}", file=sys.stderr)
        return errors.USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
