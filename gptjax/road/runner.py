"""Runs the stages of a road that are not done, one process after the other.

Whatever is known is in road.json and in the folders of the stages, so that this can be killed at any point and started again.
A stage whose inputs have changed is never gone on with: it is refused with the reason, or moved away and made anew.

A stage's process outlives a killed road for as long as it saves. It holds STAGE_LOCK, which a new road waits for.
"""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import resource
import shutil
import subprocess
import time

from gptjax import errors, supervisor, terminal
from gptjax.errors import UserError
from gptjax.hosts import interrupt
from gptjax.road import inputs, ledger, progress
from gptjax.road.road import Road, Stage
from gptjax.rundir import runlock
from gptjax.storage import code
from gptjax.storage.writing import partial_name

STAGE_LOCK = "stage.lock"
FORMER, LOGS = "former", "logs"
SECONDS = 0.5  # between two looks at a stage


class StageFailed(UserError):
    """A stage ended with a code that is not 0, which is this error's too."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class Runner:
    def __init__(self, road: Road, folder: pathlib.Path, file: str, shown: terminal.Progress):
        self._road, self._folder, self._shown = road, folder, shown
        self._ledger = dataclasses.replace(ledger.read(folder), road=file, changes=road.changes)
        self._keys = inputs.keys(road)
        self._clock = progress.Clock(road)

    def changed(self) -> dict[str, str]:
        """{stage that was begun with other inputs: the reason}."""
        found, entries = {}, self._ledger.stages
        for stage in self._road.stages:
            entry = entries.get(stage.name)
            if entry is None or entry.key == self._keys[stage.name]:
                continue
            reasons = inputs.differences(entry.inputs, inputs.of_stage(self._road, stage))
            reasons += [f"it needs {need}, which changes" for need in stage.needs if need in found]
            found[stage.name] = "; ".join(reasons) or "it needs other stages than it did"
        return found

    def waiting(self) -> list[Stage]:
        """Those that are not done."""
        changed = self.changed()
        return [stage for stage in self._road.stages if stage.name in changed or not self._ledger.is_done(stage.name)]

    def run(self, rerun: bool) -> bool:
        """Until all is done. False: told to stop. Raises UserError: changed inputs, without rerun; StageFailed."""
        with _held(self._folder) as stage_lock, interrupt.StopRequest(self._wish) as stop:
            self._take_changes(rerun)
            waiting = self.waiting()
            self._check_places(waiting)
            done = len(self._road.stages) - len(waiting)
            if done:
                self._shown.message(f"{done} of {len(self._road.stages)} stages are done already")
            while waiting and not stop:
                self._run_stage(waiting[0], waiting[1:], stage_lock, stop)
                waiting = waiting[0 if stop else 1 :]
            return not waiting

    def _wish(self) -> str:
        return "the stage saves and stops; run the same command again to go on"

    def _take_changes(self, rerun: bool) -> None:
        changed = self.changed()
        if changed and not rerun:
            lines = "; ".join(f"{name}: {reason}" for name, reason in changed.items())
            raise UserError(
                f"--out={self._folder} was made by another road ({lines}). Nothing is mixed: give --rerun to make"
                f" {', '.join(changed)} anew (what is there is moved to {self._folder / FORMER}), or name another --out."
            )
        for name, reason in changed.items():
            self._shown.message(f"{name} is made anew: {reason}")
            self._move_away(self._road.by_name[name])
            self._ledger = self._ledger.with_entry(name, None).write()

    def _move_away(self, stage: Stage) -> None:
        made = self._folder / stage.made
        if made.exists():
            former = self._folder / FORMER
            former.mkdir(exist_ok=True)
            number = next(n for n in range(1, 10**6) if not (former / f"{stage.name}-{n}").exists())
            made.rename(former / f"{stage.name}-{number}")

    def check_folder(self) -> None:
        """Raises UserError: the folder has files of something else, in whose midst a road would be written."""
        if not self._folder.exists() or (self._folder / ledger.NAME).exists():
            return
        if not self._folder.is_dir():
            raise UserError(f"--out={self._folder} is a file; name a folder.")
        fitting = {pathlib.PurePath(stage.made).parts[0] for stage in self._road.stages if stage.resumes}
        fitting |= {runlock.NAME, STAGE_LOCK, LOGS, partial_name(ledger.NAME)}
        if others := sorted({path.name for path in self._folder.iterdir()} - fitting):
            raise UserError(
                f"--out={self._folder} is no road: it has no {ledger.NAME}, but {', '.join(others[:3])}; name a new folder."
            )

    def _check_places(self, waiting: list[Stage]) -> None:
        """Raises UserError: something lies where a stage writes that this road has not begun."""
        for stage in waiting:
            made = self._folder / stage.made
            if stage.name not in self._ledger.stages and not stage.resumes and made.exists():
                raise UserError(
                    f"stage {stage.name!r} makes {made}, which is there and not in {ledger.NAME}; move it, or name another --out."
                )

    # ---- a stage

    def _run_stage(self, stage: Stage, waiting: list[Stage], stage_lock: int, stop) -> None:
        """Returns when its process has ended; done, or stopped. Raises StageFailed."""
        made = self._folder / stage.made
        entry = self._ledger.stages.get(stage.name)
        if entry is not None and not stage.resumes and made.exists():  # what a killed process of it left
            shutil.rmtree(made) if made.is_dir() else made.unlink()
        entry = self._begun(stage, entry)
        began, cpu_began = time.monotonic(), _cpu_seconds()
        code_number = self._watched(stage, waiting, stage_lock, stop, fresh=entry.attempts == 1)
        seconds = time.monotonic() - began
        entry = dataclasses.replace(
            entry,
            done=code_number == 0 and made.exists(),
            counted=entry.counted + 1,
            seconds=round(entry.seconds + seconds, 2),
            cpu_seconds=round(entry.cpu_seconds + _cpu_seconds() - cpu_began, 2),
            code=code.digest(),
        )
        self._ledger = self._ledger.with_entry(stage.name, entry).write()
        if entry.done:
            self._shown.message(f"{stage.name}: done in {terminal.duration(entry.seconds)}")
        elif not stop:
            raise StageFailed(self._failure(stage, code_number), code_number or errors.USER_ERROR)

    def _begun(self, stage: Stage, entry: ledger.Entry | None) -> ledger.Entry:
        if entry is None:
            of_stage = inputs.of_stage(self._road, stage)
            entry = ledger.Entry(self._keys[stage.name], of_stage, self._road.shown_command(stage))
        entry = dataclasses.replace(entry, attempts=entry.attempts + 1)
        self._ledger = self._ledger.with_entry(stage.name, entry).write()
        return entry

    def _watched(self, stage: Stage, waiting: list[Stage], stage_lock: int, stop, fresh: bool) -> int:
        """The exit code of its process, which is asked to end when `stop` comes."""
        number = 1 + [each.name for each in self._road.stages].index(stage.name)
        how_far, began, told = progress.StageProgress(self._road, stage, self._folder), time.monotonic(), False
        with open(self._log(stage), "ab") as log:
            process = self._start(stage, log, stage_lock)
            try:
                while process.poll() is None:
                    if stop and not told:
                        process.terminate()
                        told = True
                    seconds = time.monotonic() - began
                    left = self._clock.left(stage, seconds, how_far.share(), waiting)
                    shown = progress.line(number, len(self._road.stages), stage, how_far.text(), seconds, left)
                    self._shown.update(shown)
                    _wait(process, SECONDS)
            except BaseException:  # a second Ctrl-C
                process.kill()
                process.wait()
                raise
            finally:
                self._shown.close()
        if fresh and process.returncode == 0:
            self._clock.took(stage, time.monotonic() - began)
        return supervisor.exit_code(process.returncode)

    def _start(self, stage: Stage, log, stage_lock: int) -> subprocess.Popen:
        log.write(f"$ {self._road.shown_command(stage)}\n".encode())
        log.flush()
        return supervisor.start_process(
            self._road.words(stage), cwd=self._folder, env=os.environ | {"PYTHONUNBUFFERED": "1"}, stdout=log,
            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, pass_fds=(stage_lock,),
        )  # fmt: skip

    def _log(self, stage: Stage) -> pathlib.Path:
        (self._folder / LOGS).mkdir(exist_ok=True)
        return self._folder / LOGS / f"{stage.name}.log"

    def _failure(self, stage: Stage, code_number: int) -> str:
        log = self._log(stage)
        last = next((line for line in reversed(log.read_text("utf-8", "replace").splitlines()) if line.strip()), "")
        if code_number == 0:
            return f"stage {stage.name!r} ended without {self._folder / stage.made}, which it makes; its log is {log}"
        return f"stage {stage.name!r} ended with {supervisor.describe(code_number)}; its log is {log}, and ends with: {last}"


@contextlib.contextmanager
def _held(folder: pathlib.Path):
    """The road's folder, for this process alone; yields the file that a stage's process holds locked while it lives. Raises
    UserError: another road runs here."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(runlock.hold(folder))
        except UserError as error:
            raise UserError(str(error).replace("--workdir", "--out")) from error
        file = held.enter_context(open(folder / STAGE_LOCK, "ab"))
        fcntl.flock(file, fcntl.LOCK_EX)  # of a stage that outlived its road: until it has saved
        yield file.fileno()


def _wait(process: subprocess.Popen, seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _cpu_seconds() -> float:
    """CPU seconds of all processes that this one has waited for, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
