"""The loop of a run: call -> numbers of the call before -> hooks and checkpoint, where they are due -> call ...

What one step computes is in `step.py`, what else a run does beside training in `hooks.py`; saving, stopping and going back
are the loop's. The device never waits for the host: metrics are read one call late.
"""

import contextlib
import dataclasses
import functools
import time
import typing

import jax

from gptjax import errors, schedule
from gptjax.errors import Diverged, NoWayBack, UserError
from gptjax.training.feed import Inputs
from gptjax.training.recorder import Recorder


@dataclasses.dataclass(frozen=True)
class Training:
    """What a run that is being trained reads and writes, and who watches over it."""

    session: typing.Any  # what it is made of
    directory: typing.Any  # its RunDirectory
    log: typing.Any  # MetricsLog
    progress: typing.Any  # the terminal
    peers: typing.Any  # the other processes
    agreed: typing.Any  # the Agreement when to stop and to save
    watchdog: typing.Any
    check_lock: typing.Callable[[], None]  # raises in all processes where the directory is this run's no more
    started: float  # time.monotonic() when the command began

    def should_stop(self) -> bool:
        """Asked between two batches of whatever takes long: a sign of life, and a point to stop at."""
        self.watchdog.alive()
        return self.agreed.tick()


class Loop:
    """A run that is going on, once `begin` was called; `close` it whether or not it could begin."""

    def __init__(self, training: Training, keeper, hooks=()):
        self.training, self.keeper, self.hooks = training, keeper, hooks
        self.total_steps = schedule.total_steps(training.session.config)
        self.rows_read = 0  # of the training text, by this process
        self.carried = {}  # JSON values that the feed hands from call to call, kept in checkpoints
        self._first = True  # whether no call has been made yet
        self._compiled = set()  # shapes of batches, of which a ramp has several
        self._begun = []  # hooks, in the order in which they began

    def begin(self, start) -> None:
        """start: the resume.Resumed that the run goes on from."""
        self.rewinds = start.rewinds
        self.keeper.log_to(self.training.log, start.step)
        self._go_on_from(start)
        self.resumes = start.state is not None and not start.branched
        self._say_where(start)

    def _go_on_from(self, start) -> None:
        session, training = self.training.session, self.training
        with training.watchdog.doing("resuming or initialising"):
            self.state = session.program.init() if start.state is None else start.state
        self.step, self.carried = start.step, start.data.get("carried", {})
        self.recorder = Recorder(training, start.batch_hash, self.rewinds)
        for hook in self.hooks:
            hook.begin(training, self.step)
            if hook not in self._begun:
                self._begun.append(hook)

    def _say_where(self, start) -> None:
        training = self.training
        if start.branched:
            training.progress.message(start.branched)
        elif self.resumes:
            training.progress.message(f"resumed from step {self.step} of {training.directory.checkpoints}")
            training.log.write("event", self.step, event="resumed", processes=training.peers.count)

    # ---- from the start to the end

    def run(self) -> int:
        """Trains to the end, or until asked to stop. Returns the exit code."""
        self.training.agreed.tick()
        for hook in self.hooks:
            if self.resumes and self.going and hook.catches_up and hook.due(self.step):
                self._run_hook(hook)
        while (error := self._train_on()) is not None:
            if not self._roll_back(error):
                return errors.DIVERGED
        return self.end()

    @property
    def ended(self) -> str | None:
        """Why the run ends before its last step, if a hook says so."""
        return next((hook.ended for hook in self.hooks if hook.ended is not None), None)

    @property
    def going(self) -> bool:
        return self.step < self.total_steps and self.ended is None and not self.training.agreed.stopping

    def _train_on(self) -> Diverged | None:
        """Trains and saves, to the end of the run or until asked to stop. Returns what went wrong, if it did."""
        try:
            with self.training.session.feed(self) as inputs:
                while self.going and (call := inputs.next()) is not None:
                    self.advance(call)
            self.finish()
        except Diverged as error:
            return error
        except UserError as error:
            if type(error) is UserError and self.training.peers.count == 1:
                self._save_what_was_learnt()
            raise
        return None

    def _save_what_was_learnt(self) -> None:
        """Before the run ends with a mistake in what a reward, a tool or a hook gave; nothing, where the run has diverged."""
        with contextlib.suppress(Diverged):
            self.recorder.drain()
            self._save(last=True)

    def advance(self, inputs: Inputs) -> None:
        """One call of the train step, and what is due after it. Raises Diverged."""
        known = jax.tree.leaves(inputs.batch)[0].shape in self._compiled
        dispatch = self.training.session.program.train if known else self._compile
        state, on_device = dispatch(self.state, inputs.batch, inputs.learning_rate_S)
        self.take(inputs, state, functools.partial(jax.device_get, on_device), timed=known)
        self.training.watchdog.stepped()
        self.between_calls()

    def finish(self) -> None:
        """After the last call: what is left to be read, saved and run. Raises Diverged."""
        self.recorder.drain()
        with self.recorder.throughput.paused("saving"):
            self._save(last=True)  # first: a run killed while its hooks run has lost no step
        for hook in self.hooks:
            if hook.due(self.step) or (self.ended is not None and hook.due(self.total_steps)):
                with self.recorder.throughput.paused(hook.doing):
                    self._run_hook(hook)
        counts = self.training.peers.gather("rows_read", self.rows_read)
        if counts is not None:  # what each process read of the text: 1/processes of it, unless they share rows
            _, spent = self.recorder.throughput.take()  # since the last training row
            finished = self.step >= self.total_steps or self.ended is not None
            self.training.log.write(
                "event", self.step, event="rows_read", by_process=counts, finished=finished, **spent
            )

    def end(self) -> int:
        """Says how the run has ended, or stopped, after `finish`. Returns the exit code."""
        agreed, progress = self.training.agreed, self.training.progress
        if agreed.stopping:
            who = f"{agreed.reason}: " if agreed.reason else ""
            last = self.keeper.saved_step
            saved = f"saved step {last}" if last else "stopped before the first step"
            progress.message(f"{who}{saved}; run the same command again to continue")
            return errors.SAVED_AND_STOPPED
        progress.close()
        if self.ended is not None:
            progress.message(f"the run ends at step {self.step} of {self.total_steps}: {self.ended}")
        for hook in self.hooks:
            with self.training.watchdog.doing(hook.doing):
                lines = hook.end(self.state)
            for line in lines:
                progress.message(line)
        return 0

    def close(self) -> None:
        """Its hooks, the terminal and the log; the keeper is its owner's."""
        for hook in self._begun:
            hook.close(self.state)
        self.training.progress.close()
        self.training.log.close()

    # ---- a call, and what follows it

    def take(self, inputs: Inputs, state, read, timed: bool) -> None:
        """The state after a call that was just dispatched, whose metrics read() gives; logs those of the call before, and of
        the first one its own. timed: whether the throughput's clock ran during the call. Raises Diverged."""
        self.state, first_step = state, self.step
        self.step += len(inputs.learning_rate_S)
        self.rows_read += inputs.rows_read
        self.recorder.add(first_step, inputs.learning_rate_S, inputs.hash_S, read, timed)
        if self._first:  # the clock starts after them
            self._first = False
            self.recorder.drain()
            self.recorder.throughput.take()
            facts = {"seconds": time.monotonic() - self.training.started, "devices": self.training.session.devices}
            self.training.log.write("event", self.step, event="first_call", **facts)

    def _compile(self, state, batch, learning_rates) -> tuple:
        """program.train of a batch of a new shape: with the watchdog's other allowance, and in no step's time."""
        self.recorder.drain()
        with self.recorder.throughput.paused("compiling"), self.training.watchdog.doing("compiling"):
            # until the last process has done so, whom the devices wait for
            called = jax.block_until_ready(self.training.session.program.train(state, batch, learning_rates))
        self._compiled.add(jax.tree.leaves(batch)[0].shape)
        return called

    def between_calls(self) -> None:
        """Hooks and checkpoint, where they are due; of the last step, hooks are run by `finish`."""
        agreed = self.training.agreed
        if self.training.peers.index == 0 and self.keeper.overdue():
            agreed.ask_to_save()
        agreed.tick()
        due = [hook for hook in self.hooks if self.going and hook.due(self.step)]
        save = self.keeper.due(self.step) or agreed.save_due
        if save or any(hook.drains for hook in due):
            self.recorder.drain()
        for hook in due:
            with self.recorder.throughput.paused(hook.doing) if hook.drains else contextlib.nullcontext():
                self._run_hook(hook)
        if save or any(hook.wants_save for hook in due):
            with self.recorder.throughput.paused("saving"):
                self._save()

    def _run_hook(self, hook) -> None:
        if not self.training.agreed.stopping:
            with self.training.watchdog.doing(hook.doing):
                hook.run(self.state, self.step, self.training.should_stop)

    def _save(self, last: bool = False) -> None:
        """last: waits until it is on disk."""
        with self.training.watchdog.doing("saving"):
            self.training.check_lock()
            if last:
                self.keeper.settle(self.step)
            if self.keeper.saved_step != self.step and self.step > 0:
                rows_read = schedule.rows_before(self.training.session.config, self.step)
                batch_hash = self.recorder.batch_hash()
                skipped = self.rewinds.as_dict() | ({"carried": self.carried} if self.carried else {})
                self.keeper.save(self.state, self.step, last, batch_hash=batch_hash, rows_read=rows_read, **skipped)
        self.training.agreed.saved()
        self.training.log.flush()

    # ---- where it goes wrong

    def _roll_back(self, error: Diverged) -> bool:
        """Goes back to before what went wrong, and on with the text after it. False, and said why, where the run ends."""
        from gptjax.training import recovery

        config, program, log = self.training.session.config, self.training.session.program, self.training.log
        if self.rewinds.count >= config.train.max_rollbacks:
            return self.give_up(error)
        self.state = self.recorder = None  # there may be no room for two
        try:
            with self.training.watchdog.doing("rolling back"):
                self.keeper.settle(self.step)
                layout = program.abstract_state, program.state_sharding
                start = self.keeper.rewind(self.training.directory, error.first_bad, *layout)
        except NoWayBack as reason:
            return self.give_up(error, f"; {reason}")
        self.rewinds = recovery.rewound(config, self.rewinds, start.rewinds, start.step, error)
        log.rewind(start.step, self.rewinds.count)
        self._go_on_from(start)
        self.training.progress.message(self.rewinds.said(config, self.step, error))
        facts = {"failed_step": error.step, "reason": error.why, **self.rewinds.as_dict()}
        log.write("event", self.step, event="rolled_back", **facts)
        return True

    def give_up(self, error: Diverged, reason: str = "") -> bool:
        """Says that the run ends here. Returns False."""
        from gptjax.training import recovery

        failure = self.keeper.failure_of_last_save(error.step)
        reason = f"; {failure}{reason}" if failure else reason
        steps = self.training.directory.steps()
        saved = f"the last checkpoint is of step {steps[-1]}" if steps else "no checkpoint yet"
        help = recovery.advice(self.training.session.config, self.rewinds)
        self.training.progress.message(f"gptjax: {error}; {saved}{reason}{help}")
        self.training.log.write("event", error.step, event="diverged", reason=error.why)
        return False
