"""Runs that train together: each a `loop.Loop` of its own in a run directory of its own, over the lanes of one program.

    Feeds     the rows of each order, read once           Lanes    one dispatch for all runs (program.py)
    Member    a run and its lane: its loop does on the host what it does alone, with the state and the metrics of the lane
    Together  call -> advance each member -> call ...; a member that diverges leaves, its lane idles

All members are at the same step always. After a kill they go on from the newest step that all unfinished ones have. A
lane is where its run stands in the command, finished or not, so that the program and its numbers stay what they were.
"""

import contextlib
import dataclasses
import time
import typing

import jax

from gptjax import errors, schedule, terminal
from gptjax.checkpoints import validity
from gptjax.config import changes
from gptjax.data.rows.pipeline import TrainRows
from gptjax.errors import Diverged, UserError
from gptjax.evaluation import held_out
from gptjax.hosts import agreement, interrupt, watchdog
from gptjax.hosts.coordination import Alone
from gptjax.parallel import sharding
from gptjax.rundir import metrics, run_directory, runlock
from gptjax.schedule import NO_REWINDS
from gptjax.study.lanes import grouping
from gptjax.study.lanes import program as lanes
from gptjax.training import hooks, main, report, session
from gptjax.training.feed import Feed, Inputs, learning_rates
from gptjax.training.loop import Loop, Training
from gptjax.training.resume import BEGINNING, Keeper, Resumed


def ended(directory: run_directory.RunDirectory) -> int | None:
    """The exit code of a run that is over, as its directory says: 0, DIVERGED; None: it is not."""
    if not directory.exists():
        return None
    rows = metrics.read_metrics(directory.metrics) if directory.metrics.exists() else []
    if any(row.get("event") == "diverged" for row in rows):
        return errors.DIVERGED
    last = schedule.total_steps(directory.config())
    evaluated = any(row["kind"] == "eval" and row["step"] == last for row in rows)
    return 0 if evaluated and last in directory.steps() else None


def common_step(directories) -> int:
    """The newest step that all have a checkpoint of; 0: none."""
    return max(set.intersection(*(set(directory.steps()) for directory in directories)), default=0)


class Opened(typing.NamedTuple):
    """A run whose directory is open, and what it could go on from."""

    key: str
    lane: int
    directory: run_directory.RunDirectory
    progress: terminal.Progress
    keeper: Keeper
    start: Resumed


class Member(typing.NamedTuple):
    """A run that is going on in a lane."""

    key: str
    lane: int
    loop: Loop


class Feeds:
    """`next()` is the Inputs of each lane, of one call after the other. order_R: of `Together`. Use it in a `with`."""

    def __init__(self, sessions, order_R: list[int], step: int):
        self._configs, self._order_R = [each.config for each in sessions], order_R
        self._call = step // self._configs[0].train.steps_per_call
        firsts = [sessions[order_R.index(order)] for order in range(max(order_R) + 1)]
        self._feeds = [Feed(first, NO_REWINDS, step) for first in firsts]
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Feeds":
        with contextlib.ExitStack() as stack:
            self._feeds = [stack.enter_context(feed) for feed in self._feeds]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    def next(self) -> tuple[list[dict], list[Inputs]]:
        """(the batch of each order, Inputs of each lane)."""
        read = [feed.next() for feed in self._feeds]
        rates = [learning_rates(config, self._call) for config in self._configs]
        self._call += 1
        own = [read[order]._replace(learning_rate_S=rate) for order, rate in zip(self._order_R, rates)]
        return [inputs.batch for inputs in read], own


class Together:
    """The runs of a group. configs: {key: Config}, all lanes; study: a StudyDirectory."""

    def __init__(self, study, configs: dict, devices, stop, dog: watchdog.Watchdog):
        self._study, self.stop, self._dog, self._started = study, stop, dog, time.monotonic()
        self._saved = self._started
        self._keys = list(configs)
        self.codes = {key: ended(self.directory(key)) for key in configs}
        first = session.prepare(next(iter(configs.values())), devices[:1], dog.alive)
        padded = [*configs.values(), *[first.config] * (-len(configs) % len(devices))]
        self._configs = [config.with_vocabulary(first.store.tokenizer.vocab_size) for config in padded]
        self._program = lanes.build(self._configs[0], devices, len(padded))
        seeds = list(dict.fromkeys(config.data.seed for config in self._configs))
        self._order_R = [seeds.index(config.data.seed) for config in self._configs]
        self._rows = [self._train_rows(first, seed) for seed in seeds]
        self._first, self._compiled = first, False
        self._locks = {}
        self._evaluated = {}  # (step, prefix) -> {source: Sums of all lanes}

    def directory(self, key: str) -> run_directory.RunDirectory:
        return run_directory.open_run(str(self._study.run(key)))

    def _train_rows(self, first: session.Session, seed: int):
        config = first.config.replace(data={"seed": seed})
        return TrainRows(first.store, config.data, config.model.context_length, first.objective, self._dog.alive)

    def session_of(self, lane: int) -> session.Session:
        """What the run of a lane is made of; its program stands for that of all."""
        joint = self._program
        program = dataclasses.replace(
            joint.alone,
            mesh=joint.mesh,
            train_batch_sharding=sharding.replicated(joint.mesh),
            eval_batch_sharding=joint.eval_batch_sharding,
            init=lambda: self._lanes.state(lane),
        )
        return dataclasses.replace(
            self._first, config=self._configs[lane], rows=self._rows[self._order_R[lane]], program=program
        )

    # ---- from the start to the end

    def run(self) -> dict[str, int]:
        """Trains all that are not over. Returns the exit code of each. Raises UserError."""
        waiting = [key for key, code in self.codes.items() if code is None]
        if not waiting:
            return self.codes
        with self.opened(waiting):
            self._tick()
            while self.going:
                self.advance()
            self._finish()
        return self.codes

    @contextlib.contextmanager
    def opened(self, keys: list[str]):
        """With their directories held, their states on the devices, and rows on their way."""
        with contextlib.ExitStack() as stack:
            for key in keys:
                self._locks[key] = stack.enter_context(runlock.hold(self._study.run(key)))
            self._members = self._open_members(keys, stack)
            sessions = [self.session_of(lane) for lane in range(self._program.runs)]
            self._feeds = stack.enter_context(Feeds(sessions, self._order_R, self._step))
            yield

    def _open_members(self, keys: list[str], stack) -> list[Member]:
        """At one step, all of them: where a checkpoint turns out to be damaged, at an earlier one."""
        with self._dog.doing("resuming or initialising"):
            self._lanes = lanes.Lanes(self._program, self._configs, self._order_R)
        for key in keys:
            main.check_directory(self.directory(key), self.session_of(self._keys.index(key)), (), None)
        tried = set()
        while True:
            last = common_step([self.directory(key) for key in keys])
            if last in tried:
                raise UserError(f"runs {', '.join(keys)} cannot continue together from step {last}; see gptjax verify.")
            tried.add(last)
            with contextlib.ExitStack() as inner:
                runs = [self._open(key, last, inner) for key in keys]
                if all(run.start.step == last for run in runs):
                    stack.push(inner.pop_all())
                    break
        if last:
            self._lanes.put({run.lane: run.start.state for run in runs})
        return [self._member(run, stack) for run in runs]

    def _open(self, key: str, last: int, stack) -> Opened:
        """With what it says in logs/KEY.log. Its checkpoints of steps that not all have are taken anew."""
        directory, lane = self.directory(key), self._keys.index(key)
        log_file = stack.enter_context(open(_local(self._study.log(key)), "a"))
        run_session = self.session_of(lane)
        for line in report.header(run_session, directory, bool(last)):
            log_file.write(line + "\n")
        for step in directory.steps():
            if step > last:
                validity.remove(directory.checkpoints / str(step))
        progress, program = terminal.Progress(log_file), run_session.program
        keeping = main.keeper_of(run_session, directory, progress, Alone(), alone=False)
        stack.callback(self._close, keeping)
        with self._dog.doing("resuming or initialising"):
            start = keeping.resume(directory, program.abstract_state, program.state_sharding, last=last)
        return Opened(key, lane, directory, progress, keeping, start or BEGINNING)

    def _member(self, run: Opened, stack) -> Member:
        """Its loop, that goes on from the state in its lane."""
        run_session, start = self.session_of(run.lane), run.start
        if start.state is not None:
            start = start._replace(state=self._lanes.state(run.lane))
        training = Training(
            session=run_session,
            directory=run.directory,
            log=main.open_log(run_session, run.directory, start),
            progress=run.progress,
            peers=Alone(),
            agreed=agreement.Agreement(Alone(), self.stop),
            watchdog=self._dog,
            check_lock=self._locks[run.key].check,
            started=self._started,
        )
        loop = Loop(training, run.keeper, self._hooks(run.lane))
        stack.callback(self._close, loop)
        loop.begin(start)
        return Member(run.key, run.lane, loop)

    def _close(self, what) -> None:
        with self._dog.doing("closing"):
            what.close()

    def _hooks(self, lane: int) -> list[hooks.Hook]:
        """Those of its config, but that held-out text is evaluated for all lanes at once."""
        config = self._configs[lane]
        hook_of_lane = hooks.HeldOut(config, lambda state, prefix, should_stop: self.evaluation(prefix, lane))
        return [hook_of_lane, *(hook for hook in hooks.chosen(config) if not isinstance(hook, hooks.HeldOut))]

    @property
    def going(self) -> bool:
        return bool(self._members) and all(member.loop.going for member in self._members)

    def _tick(self) -> bool:
        """Whether all are to stop."""
        return any([member.loop.training.agreed.tick() for member in self._members])

    def advance(self) -> None:
        """One call of all lanes, and what is due after it."""
        batches, inputs_R = self._feeds.next()
        timed = self._call(batches, [inputs.learning_rate_S for inputs in inputs_R])

        def follow(member: Member) -> None:
            state, read = self._lanes.state(member.lane), self._lanes.metrics(member.lane)
            member.loop.take(inputs_R[member.lane], state, read, timed)
            member.loop.between_calls()

        self._each(follow)

    def drain(self) -> None:
        """Waits for what was dispatched, and logs it."""
        self._each(lambda member: member.loop.recorder.drain())

    def _finish(self) -> None:
        self._tick()
        self._settle()
        self._each(lambda member: member.loop.finish())
        self._settle()
        for member in self._members:
            self.codes[member.key] = member.loop.end()
            if self.codes[member.key] == 0:
                main.say_ending(member.loop.training)

    @property
    def _step(self) -> int:
        return self._members[0].loop.step

    def _call(self, batches, learning_rate_RS) -> bool:
        """Dispatches it. Returns whether nothing had to be compiled."""
        first, self._compiled = not self._compiled, True
        with self._dog.doing("compiling") if first else contextlib.nullcontext():
            self._lanes.train(batches, learning_rate_RS)
            if first:
                jax.block_until_ready(self._lanes.params())
        self._evaluated = {}
        self._dog.stepped()
        overdue = self._overdue()
        if overdue or self._members[0].loop.keeper.due(self._step + len(learning_rate_RS[0])):
            self._settle()
        if overdue:
            self._saved = time.monotonic()
            for member in self._members:
                member.loop.training.agreed.ask_to_save()
        return not first

    def _overdue(self) -> bool:
        """One clock for all, so that they save the same step."""
        every = self._configs[0].checkpoint.every_minutes
        return every is not None and (time.monotonic() - self._saved) / 60 >= every

    def _settle(self) -> None:
        """Waits until the last save of all is on disk; then those before are needed no more."""
        for member in self._members:
            member.loop.keeper.settle(member.loop.step)
        for member in self._members:
            member.loop.keeper.remove_old()

    def _each(self, act) -> None:
        """act(member) of all. One that diverges says so and leaves."""
        for member in list(self._members):
            try:
                act(member)
            except Diverged as error:
                member.loop.give_up(error)
                self.codes[member.key] = errors.DIVERGED
                self._members.remove(member)

    def evaluation(self, prefix: str, lane: int) -> dict[str, held_out.Evaluation] | None:
        """Of one lane; of all at once when the first asks. None: asked to stop meanwhile."""
        if prefix not in self._evaluated:
            params, size = self._lanes.params(prefix), self._configs[0].eval_batch_size
            self._evaluated[prefix] = held_out.sums_of_sources(
                self._program, params, self._first.eval_rows, size, should_stop=self._should_stop
            )
        found = self._evaluated[prefix]
        if found is None:
            return None
        return held_out.summarise_sources(
            {name: held_out.Sums(sums.loss_R[lane], sums.weight_R[lane], sums.bytes_R) for name, sums in found.items()}
        )

    def _should_stop(self) -> bool:
        self._dog.alive()
        return self._tick()


def check(configs: dict) -> None:
    """Raises UserError: these runs cannot train together."""
    for key, config in configs.items():
        if reason := grouping.obstacle(config):
            raise UserError(f"run {key} cannot train together with others: {reason}; start it with gptjax train.")
    by_shape = {grouping.shape(config): key for key, config in configs.items()}
    if len(by_shape) > 1:
        a, b = list(by_shape.values())[:2]
        changed = changes.differing(configs[a], configs[b])
        raise UserError(
            f"runs {a} and {b} cannot share a compiled step: {', '.join(changed)} differ; start them separately."
        )


def train_together(study, configs: dict, devices) -> dict[str, int]:
    """Trains runs of a study's folder, or goes on with them. Returns the exit code of each: 0 or one of `errors`.

    Raises UserError for anything that stands in the way before the first step.
    """
    check(configs)
    first = next(iter(configs))
    with (
        interrupt.StopRequest() as stop,
        watchdog.Watchdog(study.run(first), 0, configs[first]) as dog,
    ):
        return Together(study, configs, devices, stop, dog).run()


def _local(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
