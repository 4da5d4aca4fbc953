"""Runs what a study declares, so many processes at a time, until nothing is left that can be run.

Every turn of the loop reads the folder: what has ended, what can start. Nothing else is remembered than which runs this
command has tried, so that it can be killed at any point and started again.

Order: stages as they are named (tune, trunk, grid, target), within a stage the most FLOPs first; a branch when its
trunk's checkpoint is there; the learning rates are chosen when the last tuning run has ended; the prediction is written
when all but the target runs have. A run that ends without being done is started again while it gains checkpoints.
"""

import contextlib
import dataclasses
import json
import shlex
import time
import typing

from gptjax import errors, supervisor, terminal
from gptjax.config import changes
from gptjax.errors import UserError
from gptjax.hosts import interrupt
from gptjax.rundir import run_directory, runlock
from gptjax.study.running import identity, jobs, launching, ledger, pace, status
from gptjax.study.running.layout import StudyDirectory, read_json, write_json
from gptjax.study.running.ledger import Entry

LOCAL_SECONDS, REMOTE_SECONDS = 1.0, 20.0  # between two looks at the folder


class Source(typing.Protocol):
    """A study file, as the runner sees it."""

    declared: dict  # for study.json

    def runs(self, results: dict[str, float]) -> list: ...  # PlannedRuns; results: {tuning run: loss, inf: diverged}

    def predict(self, directory: StudyDirectory) -> None: ...  # writes prediction.json

    def groups(self, configs: dict[str, typing.Any]) -> list[list[str]]: ...  # keys that share a process


@dataclasses.dataclass(frozen=True)
class Settings:
    launcher: launching.Launcher
    parallel: int | None = None
    old_code: str | None = None  # accept | rerun: finished runs of other code


class Runner:
    def __init__(self, directory: StudyDirectory, source: Source, settings: Settings, progress: terminal.Progress):
        self._directory, self._source, self._settings, self._progress = directory, source, settings, progress
        self._texts, self._code = identity.Texts(), identity.code()
        self._gpus = jobs.visible_gpus() if settings.launcher.local else []
        jobs.check_gpus(self._gpus, settings.parallel)
        self._jobs: list[jobs.Job] = []
        self._tried: dict[str, int] = {}  # key: checkpoint's step when it was last started
        self._ended: dict[str, status.RunStatus] = {}
        self._code_changed = False
        self._problem = ""  # why runs that wait will not be run
        self._pace = pace.Pace()

    # ---- the command

    def run(self) -> int:
        """Until nothing is left to run, or until asked to stop. Returns the exit code.

        Raises UserError: another process runs the study, the study file is wrong, finished runs are of other code.
        """
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(interrupt.StopRequest("the runs save a checkpoint, then this command stops"))
            self._hold(stack)
            self._declare()
            self._write()
            stack.callback(self._end_jobs)
            self._say_beginning()
            return self._loop(stop)

    def dry_run(self) -> list[str]:
        """Command lines of the runs that would be started now, in their order. Writes nothing."""
        self._declare()
        lines = []
        for group in self._ready():
            order = self._order(group, 0)
            words = [f"{name}={value}" for name, value in order.variables.items()]
            lines.append(shlex.join([*words, *order.command]))
        waiting = [s for s in self._statuses if s.state == status.WAITING]
        return lines + [f"# later: {s.entry.name} ({s.entry.stage}) waits {s.reason}" for s in waiting]

    def _hold(self, stack: contextlib.ExitStack) -> None:
        try:
            stack.enter_context(runlock.hold(self._directory.path))
        except UserError as error:
            raise UserError(str(error).replace("--workdir", "--out")) from error

    # ---- what is declared

    def _declare(self) -> None:
        """Reads the study file's runs, as far as the tuning runs that have ended determine them."""
        self._results = {}
        self._take(self._source.runs({}))
        self._take_results()

    def _take(self, planned: list) -> None:
        made, self._configs = ledger.entries(planned, self._texts, self._code)
        self._ledger = ledger.succeed(ledger.read(self._directory), made, self._code, self._source.declared)
        self._decide_old_code()
        self._groups = self._grouped()
        self._ended = {}
        self._look()

    def _take_results(self) -> bool:
        """Once more tuning runs have ended: the runs that waited for them, with their configs. Whether there are any."""
        ended = {s.entry.name: s.loss for s in self._statuses if s.entry.stage == "tune" and s.state in status.ENDED}
        results = self._results | ended
        if results == self._results:
            return False
        self._results = results
        self._take(self._source.runs(results))
        return True

    def _decide_old_code(self) -> None:
        """Raises UserError: finished runs of other code, and nobody has said what to do with them."""
        finished = {}
        for key, others in ledger.of_other_code(self._ledger).items():
            for other in others:
                state = status.of_run(self._directory, self._ledger, other).state
                if state in status.ENDED:
                    finished[key] = other.key
        if not finished or self._settings.old_code == "rerun":
            return
        if self._settings.old_code == "accept":
            self._ledger = ledger.accept(self._ledger, finished)
            return
        names = [entry.name for entry in self._ledger.entries if entry.key in finished]
        raise UserError(
            f"{len(names)} finished runs of {self._directory.path} were made by other code ({names[0]}, ...); take them as"
            " they are with --accept_code, or run them again with --rerun_code."
        )

    def _grouped(self) -> dict[str, tuple[str, ...]]:
        """{key: the keys it is run with}: runs of one stage, whatever of them is done; branches alone."""
        found = {key: (key,) for key in self._configs}
        for stage in ledger.STAGES if self._settings.launcher.local else ():
            entries = [e for e in self._ledger.entries if e.stage == stage and e.branch is None]
            configs = {entry.key: self._configs[entry.key] for entry in entries if entry.key in self._configs}
            for keys in self._source.groups(configs):
                found |= {key: tuple(keys) for key in keys}
        return found

    def _write(self) -> None:
        """The ledger and the configs, for whoever reads the folder, and for the runs."""
        for entry in self._ledger.entries:
            if entry.key in self._configs:
                _write_config(self._directory.config(entry.key), self._configs[entry.key].to_dict())
        self._ledger.write(self._directory)

    # ---- the loop

    def _loop(self, stop: interrupt.StopRequest) -> int:
        pause = LOCAL_SECONDS if self._directory.local else REMOTE_SECONDS
        looked = -pause
        while True:
            ended = self._collect()
            if stop:
                return self._stop(stop)
            if ended or time.monotonic() - looked >= pause:
                looked = time.monotonic()
                self._look()
                self._unlock_stages()
                self._start_jobs()
                if not self._jobs and not self._held_by_others():
                    return self._finish()
            self._show()
            time.sleep(0.1)

    def _look(self) -> None:
        """Reads the folder. What has ended stays so; what was started here is running."""
        self._statuses, going = [], self._going()
        for entry in self._ledger.entries:
            found = self._ended.get(entry.key) or status.of_run(self._directory, self._ledger, entry)
            if found.state in status.ENDED:  # also one that a group in progress has among its runs, as a tuning run
                self._ended[entry.key] = found
            elif entry.key in going:
                found = dataclasses.replace(found, state=status.RUNNING, reason="")
            self._statuses.append(dataclasses.replace(found, entry=entry))
        flops = {s.entry.key: (s.entry.flops or 0) * s.fraction for s in self._statuses if s.entry.key}
        self._pace.look(
            time.monotonic(), flops, {(job.order.keys, job.order.attempt): job.order.keys for job in self._jobs}
        )

    def _going(self) -> set[str]:
        """Keys of the runs that were started here and have not ended."""
        return {key for job in self._jobs for key in job.order.keys}

    def _unlock_stages(self) -> None:
        """Chooses what the tuning runs were for, and writes the prediction, when their time has come."""
        if self._take_results():
            self._write()
        targets = [s for s in self._statuses if s.entry.stage == "target" and s.state not in status.ENDED]
        others = [s for s in self._statuses if s.entry.stage != "target"]
        ready = targets and all(s.state in status.ENDED for s in others)
        if ready and not self._problem and not self._directory.prediction.exists():
            self._predict()

    def _predict(self) -> None:
        try:
            self._source.predict(self._directory)
            self._look()  # targets wait no more
        except UserError as error:
            self._problem = str(error)

    def _start_jobs(self) -> None:
        for group in self._ready():
            if not self._has_room(group) or not self._code_is_the_same():
                return
            slot = min(set(range(len(self._jobs) + 1)) - {job.order.slot for job in self._jobs})
            order = self._order(group, slot)
            self._tried |= order.steps
            self._jobs.append(jobs.Job(self._directory, order, launching.environment()))

    def _has_room(self, keys: tuple[str, ...]) -> bool:
        """Whether one more process may be started: of so many as were asked for, else of so many as there are cores for."""
        others = len(self._held_by_others())
        if self._settings.parallel is not None or self._gpus or not self._settings.launcher.local:
            return len(self._jobs) + others < (self._settings.parallel or 1)
        used = others + sum(self._cores(job.order.keys) for job in self._jobs)
        return not used or used + self._cores(keys) <= jobs.cores()

    def _cores(self, keys: tuple[str, ...]) -> int:
        """That a process keeps busy."""
        return min(jobs.cores(), max(len(keys), *(self._configs[key].mesh.cpu_devices for key in keys)))

    def _ready(self) -> list[tuple[str, ...]]:
        """Groups of keys that can be started now, the first first."""
        going = self._going()
        order = sorted(self._statuses, key=lambda s: (ledger.STAGES.index(s.entry.stage), -(s.entry.flops or 0)))
        found = {}
        for known in order:
            if known.entry.key is not None and known.entry.key not in going and self._can_start(known):
                found.setdefault(self._groups.get(known.entry.key, (known.entry.key,)))
        return list(found)

    def _can_start(self, known: status.RunStatus) -> bool:
        if known.state not in (status.PLANNED, status.PARTIAL, status.FAILED):
            return False
        if known.entry.stage == "target" and not self._directory.prediction.exists():
            return False
        key = known.entry.key
        if key not in self._tried:
            return True
        code = status.last_exit(self._directory, key).get("code")
        return code not in supervisor.FINAL and known.step > self._tried[key]

    def _order(self, keys: tuple[str, ...], slot: int) -> jobs.Order:
        launcher, key = self._settings.launcher, keys[0]
        attempt = self._attempt(key)
        steps = {s.entry.key: s.step for s in self._statuses if s.entry.key in keys}
        if len(keys) > 1:
            command = [*launching.batched_command(), f"--out={self._directory.path}", *keys]
            return jobs.Order(keys, command, {}, attempt, slot, steps)
        command = launcher.command(self._directory, key, attempt, self._words(key))
        share = {}
        if launcher.local:
            share = jobs.variables(self._configs[key], self._gpus, slot, self._settings.parallel or 1)
        return jobs.Order(keys, command, share, attempt, slot, steps)

    def _attempt(self, key: str) -> int:
        """The number of the next; that of the last, where a cluster may still be at it."""
        last = status.last_exit(self._directory, key)
        cut_off = not self._settings.launcher.local and last.get("code") is None
        return last.get("attempt", 0 + cut_off) + (not cut_off)

    def _words(self, key: str) -> list[str]:
        """What `gptjax train` is told beside config and run directory."""
        entry = next(e for e in self._ledger.entries if e.key == key)
        words = []
        if entry.branch is not None:
            trunk = self._ledger.trunk_of(entry)
            words = [f"--branch_from={self._directory.run(trunk.key)}", f"--branch_step={entry.branch['step']}"]
        run = run_directory.open_run(str(self._directory.run(key)))
        if run.exists():
            try:
                before = run.config()
            except UserError:
                return words  # the run itself says so, and fails
            differing = changes.differing(before, self._configs[key])
            moved = [name for name in differing if changes.words()[name] == "place"]  # the text is known to be the same
            words += [f"--allow_change={','.join(moved)}"] if moved else []
        return words

    def _code_is_the_same(self) -> bool:
        if identity.code() != self._code and not self._code_changed:
            self._code_changed = True
            self._progress.message(
                "the code has changed since this command began, so no more runs are started; run the command again."
            )
        return not self._code_changed

    def _held_by_others(self) -> list[Entry]:
        """Runs that somebody else writes to: what an earlier command has started saves, or a job goes on."""
        going = self._going()
        return [s.entry for s in self._statuses if s.state == status.RUNNING and s.entry.key not in going]

    # ---- endings

    def _collect(self) -> bool:
        """Writes down what has ended. Whether something has."""
        done = [job for job in self._jobs if job.ended()]
        for job in done:
            self._jobs.remove(job)
            job.close()
            for key in job.order.keys:
                self._say_ended(key, job.seconds)
        return bool(done)

    def _say_ended(self, key: str, seconds: float) -> None:
        for entry in self._ledger.entries:
            if entry.key == key:
                known = status.of_run(self._directory, self._ledger, entry)
                loss = f"  loss {known.loss:.4f}" if known.state == status.DONE else ""
                reason = f"  {known.reason}" if known.reason else f"  step {known.step}" if not loss else ""
                self._progress.message(f"{known.state:<9} {entry.name}{loss}{reason}  {seconds:.0f} s")

    def _stop(self, stop: interrupt.StopRequest) -> int:
        for job in self._jobs:
            job.stop()
        try:
            while self._jobs:
                if self._collect():
                    self._look()
                    self._show()
                time.sleep(0.05)
        except KeyboardInterrupt:
            for job in self._jobs:
                job.kill()
            raise
        self._progress.close()
        self._say(f"{stop.name}: stopped; run the same command again to continue")
        if left := self._settings.launcher.survives:
            self._say(left)
        return errors.SAVED_AND_STOPPED

    def _end_jobs(self) -> None:
        """Where an error ends the command: the runs save first."""
        for job in self._jobs:
            job.stop()
        for job in self._jobs:
            job.close()

    def _finish(self) -> int:
        self._look()
        self._progress.close()
        for known in self._statuses:
            if known.state == status.FAILED and known.entry.key not in self._tried:  # else it was said
                self._say(f"failed    {known.entry.name}  {known.reason}")
        open_runs = [s for s in self._statuses if s.state not in status.ENDED]
        if self._problem:
            self._say(self._problem)
        self._say(f"{status.summary(self._statuses)}; {self._directory.path}")
        return 1 if open_runs else 0

    # ---- what is said

    def _say_beginning(self) -> None:
        self._say(f"study      {self._directory.path}: {len(self._statuses)} runs, {status.summary(self._statuses)}")
        if self._settings.launcher.local:
            on = f"{len(self._gpus)} GPUs" if self._gpus else f"{jobs.cores()} cores"
            self._say(
                f"processes  {self._settings.parallel or ('one' if self._gpus else 'as many as fit')} at a time on {on}"
            )

    def _say(self, line: str) -> None:
        self._progress.message(line)

    def _show(self) -> None:
        done, left = status.flops_done(self._statuses), status.flops_left(self._statuses)
        seconds = self._pace.seconds_left(time.monotonic(), left, self._starts_left())
        time_left = "" if seconds is None else f"  left {terminal.duration(seconds)}"
        share = f"{done / max(1, done + left):.0%} of {terminal.si(done + left)} FLOPs"
        self._progress.update(f"{status.summary(self._statuses)}  {share}{time_left}")

    def _starts_left(self) -> int:
        """Processes that are to be started yet: one for a group of runs, one for a run whose key is not known yet."""
        going = self._going()
        keys = [s.entry.key for s in self._statuses if s.state not in status.ENDED and s.entry.key not in going]
        return len({self._groups.get(key, (key,)) for key in keys if key}) + keys.count(None)


def _write_config(file, values: dict) -> None:
    """Unless it is there: writing a thousand anew takes an object store minutes."""
    if not file.exists() or read_json(file) != json.loads(json.dumps(values)):
        write_json(file, values)
