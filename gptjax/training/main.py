"""The training loop: from a config and a run directory to a trained model, through any number of interruptions.

    start     the other processes of the run, if there are any                  (distributed, peers)
    prepare   text -> tokens, config resolved, mesh, kernel, compiled program   (session)
    loop      call -> metrics of the call before -> evaluation, checkpoint      (Loop, Recorder)
    finish    last evaluation and checkpoint, a sample

What one step computes is in `step.py`. The device never waits for the host: metrics are read one call late. Every
process runs this same code; process 0 alone writes what is not a checkpoint. When to stop and to save, `agreement.py`.
"""

import contextlib
import os
import sys
import time

import jax

from gptjax import errors, schedule, terminal
from gptjax.checkpoints import consistency
from gptjax.checkpoints.checkpointer import Checkpointer
from gptjax.checkpoints.saving import CheckpointFailed
from gptjax.data import tokenizers
from gptjax.data.tokenizers import save_tokenizer
from gptjax.errors import Diverged, NoWayBack, UserError
from gptjax.evaluation import held_out
from gptjax.hosts import agreement, distributed, interrupt, watchdog
from gptjax.hosts.coordination import PeerLost
from gptjax.parallel import numerics
from gptjax.rundir import metrics, run_directory, runlock
from gptjax.schedule import Rewinds
from gptjax.tasks import task_evaluation
from gptjax.training import branching, report, resume
from gptjax.training.feed import Feed, Inputs
from gptjax.training.recorder import Recorder
from gptjax.training.recovery import advice, rewound
from gptjax.training.session import Session, prepare, with_executable


def train(config, workdir: str, allowed_changes: tuple = (), executable_path: str | None = None, origin=None) -> int:
    """Trains, or goes on with the run in workdir. Returns the exit code: 0 or one of `errors`.

    executable_path: a train step that `gptjax plan --save_executable` compiled for this config.
    origin: a branching.Origin that a new run begins with.

    Raises UserError for anything that stands in the way before the first step.
    """
    started = time.monotonic()
    with interrupt.StopRequest() as stop:  # before jax has threads that a signal could hit
        try:
            peers = distributed.start()
        except PeerLost as error:
            print(f"gptjax: {error}", file=sys.stderr)
            return errors.PEER_LOST
        try:
            directory = run_directory.open_run(workdir)
            if peers.index == 0:
                directory.check_may_hold_a_run()  # before text is read for hours
            code = _train_together(config, directory, allowed_changes, executable_path, origin, peers, stop, started)
        except BaseException as error:
            peers.blame(error)
            raise
        peers.finish()
        return code


def _train_together(config, directory, allowed_changes, executable_path, origin, peers, stop, started: float) -> int:
    if peers.count > 1:
        distributed.check_equal(peers, distributed.facts(config, str(directory.path), allowed_changes, origin))
    with (
        watchdog.Watchdog(directory.path, peers.index, config, peers.leave) as dog,
        open(os.devnull, "w") as nowhere,
    ):
        progress = terminal.Progress(nowhere if peers.index else sys.stderr)
        session = prepare(config, alive=dog.alive)
        if executable_path is not None:
            session = with_executable(session, executable_path)
        if peers.count > 1:
            facts = {"text": {"fingerprint": session.store.fingerprint}}
            facts |= {"tasks": session.tasks.digests} if session.tasks else {}
            distributed.check_equal(peers, facts, seconds=None, alive=dog.alive)  # some read for hours
        with _sole_writer(directory, session, allowed_changes, origin, peers) as lock:
            resumed = _open_directory(directory, session, allowed_changes, origin, peers)
            for line in report.header(session, directory, resumed):
                progress.message(line)
            for line in distributed.device_lines(peers) if peers.count > 1 else []:
                progress.message(line)
            return run_session(session, directory, progress, peers, stop, dog, started, lock)


def _sole_writer(directory, session: Session, allowed: tuple[str, ...], origin, peers):
    """Process 0 holds the directory for all. Raises UserError: another run has it, or it is none of ours; nothing is made
    for a new run that cannot start."""
    if peers.index:
        return contextlib.nullcontext(runlock.NO_LOCK)
    directory.check_may_hold_a_run()
    if not directory.exists():
        _described(directory, session, allowed, origin)
    return runlock.hold(directory.path)


def run_session(session: Session, directory, progress, peers, stop, dog, started: float, lock=runlock.NO_LOCK) -> int:
    """The loop, in a run directory that is open. Returns the exit code."""
    with numerics.on_mesh(session.program.mesh), agreement.Agreement(peers, stop) as agreed:
        run = consistency.of_checkpoint(directory.manifest()) if peers.index == 0 else None  # who writes manifests
        checkpointer = Checkpointer(directory.checkpoints, session.config, peers, run=run)
        loop = Loop(session, directory, checkpointer, progress, peers, agreed, dog, started, lock)
        try:
            with runlock.judging(lock):
                return loop.run()
        except BaseException as error:
            peers.blame(error)  # before closing, which would wait for the others
            raise
        finally:
            loop.close()


def check_directory(directory: run_directory.RunDirectory, session: Session, allowed: tuple[str, ...], origin) -> bool:
    """Writes what describes a new run, or checks that an old one may go on. True if there is something to resume."""
    if directory.exists():
        directory.check_trained(
            f"trained further; a new run starts with its parameters by train.start_from={directory.path}"
        )
        run_directory.check_resume(directory.config(), session.config, allowed, directory.removed_fields())
        tokenizers.check_same(session.store.tokenizer, directory.read_tokenizer())
        before = directory.fingerprint()
        if before != session.store.fingerprint and "data" not in allowed:
            raise UserError(
                f"the text or tokenizer is not the one this run was started with (fingerprint"
                f" {before[:12]}, now {session.store.fingerprint[:12]}); restore the text,"
                " use a new --workdir, or allow it with --allow_change=data."
            )
    resumed = bool(directory.steps())
    manifest = _described(directory, session, allowed, origin)
    save_tokenizer(session.store.tokenizer, directory.tokenizer)
    directory.write_json("manifest.json", manifest)
    directory.write_config(session.config)  # last: with it the directory is a run
    return resumed


def _described(directory, session: Session, allowed: tuple[str, ...], origin) -> dict:
    """The manifest of a run that starts or goes on. Raises UserError: it cannot branch where it is asked to."""
    manifest = directory.begin_manifest(session.config, session.store, run_directory.command_line())
    branched = branching.lineage(directory, session.config, session.store, origin, allowed, manifest)
    if branched or session.config.train.start_from is None:
        return manifest | branched
    from gptjax.training import starting

    return manifest | starting.lineage(directory, session.config, session.store, session.program.abstract_params)


def _open_directory(directory: run_directory.RunDirectory, session: Session, allowed, origin, peers) -> bool:
    """check_directory by process 0, whose word counts. Raises UserError in a process that does not see the result."""
    checked = check_directory(directory, session, allowed, origin) if peers.index == 0 else None
    resumed = peers.tell("resumed", checked)
    deadline = time.monotonic() + 10  # a network disk may show new files late
    while not directory.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"{peers.name(peers.index)} does not see the run that {peers.name(0)} keeps in"
                f" --workdir={directory.path}; put it on a disk that all hosts share, or on gs://."
            )
        time.sleep(0.2)
    return resumed


def _hash_before(resumed) -> int | None:
    """Of the rows of the steps before, from the checkpoint; None if it was made before they were hashed."""
    known = "0" if resumed is None else resumed.data.get("batch_hash")
    return None if known is None else int(known, 16)


class Loop:
    """The state of a run that is going on."""

    def __init__(
        self, session: Session, directory, checkpointer: Checkpointer, progress, peers, agreed, dog, started, lock
    ):
        config = session.config
        self._lock = lock
        self.session, self.config, self.program = session, config, session.program
        self.directory, self.checkpointer, self.progress = directory, checkpointer, progress
        self.peers, self.agreed, self.dog, self.started = peers, agreed, dog, started
        self.total_steps = schedule.total_steps(config)
        self.keeper = resume.Keeper(checkpointer, config.checkpoint.on_save_failure, peers, progress.message)
        with dog.doing("resuming or initialising"):
            resumed = self._resume()
        self.rewinds = Rewinds.from_dict(resumed.data if resumed else {})
        self._take_state(resumed)
        self.log = self._open_log()
        self.keeper.log_to(self.log, self.step)
        self._record_from_here(resumed)
        if resumed and resumed.branched:
            self.progress.message(resumed.branched)
        elif resumed:
            self.progress.message(f"resumed from step {self.step} of {self.directory.checkpoints}")
            self.log.write("event", self.step, event="resumed", processes=self.peers.count)
        self.resumes = resumed is not None and not resumed.branched
        self.rows_read = 0  # of the training text, by this process
        self.compiled = set()  # shapes of batches, of which a ramp has several
        self.profiling = False

    def _resume(self) -> resume.Resumed | None:
        """What this run goes on from, or as a branch begins with."""
        program = self.program
        resumed = self.keeper.resume(self.directory, program.abstract_state, program.state_sharding)
        return resumed or branching.begin(self.directory, program, self.keeper, self.peers) or self._start_from()

    def _start_from(self) -> resume.Resumed | None:
        """The parameters of another run, where this one begins with some."""
        if self.config.train.start_from is None:
            return None
        from gptjax.training import starting

        started = self.directory.manifest()["started_from"] if self.peers.index == 0 else None
        return starting.begin(self.peers.tell("started_from", started), self.config, self.program, self.keeper)

    def _take_state(self, resumed) -> None:
        with self.dog.doing("resuming or initialising"):
            self.state = self.program.init() if resumed is None else resumed.state
        self.step = 0 if resumed is None else resumed.step
        evaluated = self.peers.tell("evaluated", self.peers.index == 0 and self._is_evaluated())
        self.evaluated_step = self.step if resumed and evaluated else -1

    def _is_evaluated(self) -> bool:
        """Whether the log has the evaluation of this step: a run may have been killed between saving its last and that."""
        file = self.directory.metrics
        rows = metrics.read_metrics(file, "eval") if file.exists() else []
        last = "loss" if self.program.abstract_state.ema is None else "ema_loss"  # of those that are logged one by one
        return any(row["step"] == self.step and last in row for row in rows)

    def _record_from_here(self, resumed) -> None:
        before = _hash_before(resumed)
        self.recorder = Recorder(self.session, self.log, self.progress, self.peers, before, self.rewinds)
        done = task_evaluation.logged(self.directory.metrics, self.step) if self.peers.index == 0 else None
        done = self.peers.tell("tasks that are done", done)
        self.tasks = task_evaluation.TaskEvaluation(self.session, self.directory, self.progress, self.log, done)

    def _open_log(self) -> metrics.MetricsLog | metrics.NoLog:
        if self.peers.index:
            return metrics.NoLog()
        return metrics.MetricsLog(
            self.directory.path,
            resume_step=self.step,
            rollbacks=self.rewinds.count,
            tensorboard=self.config.train.tensorboard,
            wandb_project=self.config.train.wandb_project,
            config=self.config,
        )

    def run(self) -> int:
        """Trains to the end, or until asked to stop. Returns the exit code."""
        self.agreed.tick()
        if self.resumes and self.tasks.due(self.step):  # it may have been stopped in them
            self._evaluate_tasks()
        while (error := self._train_on()) is not None:
            if not self._roll_back(error):
                return errors.DIVERGED
        return self.end()

    def end(self) -> int:
        """Says how the run has ended, or stopped, after `finish`. Returns the exit code."""
        if self.agreed.stopping:
            who = f"{self.agreed.reason}: " if self.agreed.reason else ""
            last = self.keeper.saved_step
            saved = f"saved step {last}" if last > 0 else "stopped before the first step"
            self.progress.message(f"{who}{saved}; run the same command again to go on")
            return errors.SAVED_AND_STOPPED
        self.progress.close()
        for line in self.tasks.ending():
            self.progress.message(line)
        with self.dog.doing("sampling"):
            for line in report.ending(self.session, self.directory, self.state):
                self.progress.message(line)
        return 0

    def _train_on(self) -> Diverged | None:
        """Trains and saves, to the end of the run or until asked to stop. Returns what went wrong, if it did."""
        try:
            with Feed(self.session, self.rewinds, self.step) as inputs:
                while self.going:
                    self.advance(inputs.next())
            self.finish()
        except Diverged as error:
            return error
        return None

    @property
    def going(self) -> bool:
        return self.step < self.total_steps and not self.agreed.stopping

    def advance(self, inputs: Inputs) -> None:
        """One call of the train step, and what is due after it. Raises Diverged."""
        self._call(inputs)
        self._between_calls()

    def finish(self) -> None:
        """After the last call: what is left to be read, evaluated and saved. Raises Diverged."""
        self.recorder.drain()
        if not self.agreed.stopping:
            self._evaluate()
            self._evaluate_tasks()
        self._save(last=True)
        self._log_rows_read()

    def _roll_back(self, error: Diverged) -> bool:
        """Goes back to before what went wrong, and on with the text after it. False, and said why, where the run ends."""
        if self.rewinds.count >= self.config.train.max_rollbacks:
            return self.give_up(error)
        self.state = self.recorder = None  # there may be no room for two
        try:
            with self.dog.doing("rolling back"):
                self.keeper.settle(self.step)
                abstract, sharding = self.program.abstract_state, self.program.state_sharding
                resumed = self.keeper.rewind(self.directory, error.first_bad, abstract, sharding)
        except NoWayBack as reason:
            return self.give_up(error, f"; {reason}")
        self._take_state(resumed)
        known = Rewinds.from_dict(resumed.data if resumed else {})
        self.rewinds = rewound(self.config, self.rewinds, known, self.step, error)
        self.log.rewind(self.step, self.rewinds.count)
        self._record_from_here(resumed)
        self.progress.message(self.rewinds.said(self.config, self.step, error))
        facts = {"failed_step": error.step, "reason": error.why, **self.rewinds.as_dict()}
        self.log.write("event", self.step, event="rolled_back", **facts)
        return True

    def give_up(self, error: Diverged, reason: str = "") -> bool:
        try:
            self.keeper.settle(error.step)
        except CheckpointFailed as failed:
            reason = f"; {failed.reason}{reason}"
        steps = self.directory.steps()
        saved = f"the last checkpoint is of step {steps[-1]}" if steps else "no checkpoint yet"
        self.progress.message(f"gptjax: {error}; {saved}{reason}{advice(self.config, self.rewinds)}")
        self.log.write("event", error.step, event="diverged", reason=error.why)
        return False

    def close(self) -> None:
        with self.dog.doing("closing"):
            self._profile(stop=True)
            self.progress.close()
            self.log.close()
            self.checkpointer.close()

    def _call(self, inputs: Inputs) -> None:
        """Dispatches the next steps and reads the metrics of those before."""
        batch, learning_rates, hash_S, rows_read = inputs
        self._profile()
        first, known = not self.compiled, batch["token_BT"].shape in self.compiled
        dispatch = self.program.train if known else self._compile
        self.state, on_device = dispatch(self.state, batch, learning_rates)
        first_step, self.step = self.step, self.step + len(learning_rates)
        self.rows_read += rows_read
        self.recorder.add(first_step, learning_rates, hash_S, on_device, timed=known)
        if first:  # the first numbers at once, and the clock starts after them
            self.recorder.drain()
            self.recorder.throughput.take()
            self.log.write("event", self.step, event="first_call", seconds=time.monotonic() - self.started)
        self.dog.stepped()

    def _compile(self, state, batch, learning_rates) -> tuple:
        """program.train of a batch of a new shape: with the watchdog's other allowance, and in no step's time."""
        self.recorder.drain()
        self.recorder.throughput.pause()
        with self.dog.doing("compiling"):  # until the last process has done so, whom the devices wait for
            called = jax.block_until_ready(self.program.train(state, batch, learning_rates))
        self.recorder.throughput.resume()
        self.compiled.add(batch["token_BT"].shape)
        return called

    def _between_calls(self) -> None:
        """Evaluation and checkpoint, where they are due."""
        every = self.config.eval.every_steps
        if self.peers.index == 0 and self.checkpointer.overdue():
            self.agreed.ask_to_save()
        self.agreed.tick()
        evaluation_due = every is not None and self.step % every == 0
        checkpoint_due = self.checkpointer.due(self.step) or self.agreed.save_due
        tasks_due = self.tasks.due(self.step)
        if evaluation_due or tasks_due or checkpoint_due:
            self.recorder.drain()
        self.recorder.throughput.pause()
        if evaluation_due:
            self._evaluate()
        if tasks_due:
            self._evaluate_tasks()
        if checkpoint_due:
            self._save()
        self.recorder.throughput.resume()

    def _evaluate(self) -> None:
        if self.evaluated_step == self.step:
            return
        with self.dog.doing("evaluating"):
            for prefix in ("",) if self.program.abstract_state.ema is None else ("", "ema_"):
                results = self._evaluation(prefix)
                if results is None:
                    return
                self._log_evaluation(prefix, results)
        self.evaluated_step = self.step

    def _evaluation(self, prefix: str) -> dict[str, held_out.Evaluation] | None:
        """Of the parameters as they are, or of their average. None: asked to stop meanwhile."""
        params = self.state.ema if prefix else self.state.params
        rows, size = self.session.eval_rows, self.config.eval_batch_size
        return held_out.evaluate_sources(self.program, params, rows, size, should_stop=self._should_stop)

    def _log_evaluation(self, prefix: str, results: dict[str, held_out.Evaluation]) -> None:
        for i, (source, result) in enumerate(results.items()):
            name = f"{source:>12}" if i else "eval"
            self.progress.message(f"step {self.step:>7}  {prefix}{name} {result}")
        self.log.write("eval", self.step, **held_out.logged(prefix, results))

    def _evaluate_tasks(self) -> None:
        if not self.agreed.stopping:
            with self.dog.doing("evaluating tasks"):
                self.tasks.evaluate(self.state, self.step, self._should_stop)

    def _should_stop(self) -> bool:
        self.dog.alive()
        return self.agreed.tick()

    def _save(self, last: bool = False) -> None:
        """last: waits until it is on disk."""
        with self.dog.doing("saving"):
            runlock.check_together(self._lock, self.peers)
            if last:
                self.keeper.settle(self.step)
            if self.keeper.saved_step != self.step and self.step > 0:
                rows_read = schedule.rows_before(self.config, self.step)
                batch_hash = self.recorder.batch_hash()
                skipped = self.rewinds.as_dict()
                self.keeper.save(self.state, self.step, last, batch_hash=batch_hash, rows_read=rows_read, **skipped)
        self.agreed.saved()
        self.log.flush()

    def _log_rows_read(self) -> None:
        """What each process read of the training text since it started: 1/processes of it, unless they share rows."""
        counts = self.peers.gather("rows_read", self.rows_read)
        if counts is not None:
            self.log.write("event", self.step, event="rows_read", by_process=counts)

    def _profile(self, stop: bool = False) -> None:
        """Starts and stops a trace of process 0 so that it holds train.profile_steps whole."""
        if not self.config.train.profile_steps or self.peers.index:
            return
        first, last = self.config.train.profile_steps
        if self.profiling and (stop or self.step >= last):
            jax.block_until_ready(self.state)  # not recorder.drain, in which all processes take part
            jax.profiler.stop_trace()
            self.profiling = False
            self.progress.message(f"profile of steps {first}-{last} in {self.directory.path / 'profile'}")
        elif (
            not stop
            and not self.profiling
            and self.step < last
            and self.step + self.config.train.steps_per_call >= first
        ):
            jax.profiler.start_trace(str(self.directory.path / "profile"))
            self.profiling = True
