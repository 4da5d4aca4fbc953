"""Training: from a config and a run directory to a trained model, through any number of interruptions.

    join      the other processes of the run, if there are any                  (distributed, peers)
    prepare   hooks; text -> tokens, config resolved, mesh, kernel, program     (hooks, session)
    open      one writer; the directory's files, or whether they may go on      (runlock, run_directory)
    start     the newest checkpoint, a branch's, another run's, or nothing      (resume, branching, starting)
    loop      call -> numbers -> hooks, checkpoint -> call ...                  (loop)

Every process runs this same code; process 0 alone writes what is not a checkpoint. When to stop and to save,
`agreement.py`.
"""

import contextlib
import functools
import os
import sys
import time

from gptjax import errors, terminal
from gptjax.checkpoints import consistency
from gptjax.checkpoints.checkpointer import Checkpointer
from gptjax.errors import UserError
from gptjax.hosts import agreement, coordination, interrupt, watchdog
from gptjax.parallel import numerics
from gptjax.rundir import metrics, run_directory, runlock
from gptjax.training import hooks, resume
from gptjax.training.loop import Loop, Training
from gptjax.training.resume import BEGINNING, Keeper
from gptjax.training.session import Session, prepare, with_executable


def train(
    config,
    workdir: str,
    allowed_changes: tuple = (),
    executable_path: str | None = None,
    origin=None,
    join=coordination.Alone,
) -> int:
    """Trains, or goes on with the run in workdir. Returns the exit code: 0 or one of `errors`.

    executable_path: a train step that `gptjax plan --save_executable` compiled for this config.
    origin: a branching.Origin that a new run begins with.
    join: gives the other processes of the run, as distributed.start does by the environment.

    Raises UserError for anything that stands in the way before the first step.
    """
    started = time.monotonic()
    with interrupt.StopRequest() as stop:  # before jax has threads that a signal could hit
        try:
            peers = join()
        except coordination.PeerLost as error:
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
    _check_equal_configs(peers, config, directory, allowed_changes, origin)
    with (
        watchdog.Watchdog(directory.path, peers.index, config, peers.leave) as dog,
        open(os.devnull, "w") as nowhere,
    ):
        progress = terminal.Progress(nowhere if peers.index else sys.stderr)
        if config.train.epochs is not None:
            from gptjax.training import epochs

            config = epochs.resolved(config, dog.alive)
        chosen = hooks.chosen(config)
        session = prepare(config, alive=dog.alive)
        for hook in chosen:
            hook.check(session)
        if executable_path is not None:
            session = with_executable(session, executable_path)
        _check_equal_text(peers, session, chosen, dog)
        with _sole_writer(directory, session, allowed_changes, origin, peers) as lock:
            resumed = _open_directory(directory, session, allowed_changes, origin, peers)
            from gptjax.training import report

            for line in [*report.header(session, directory, resumed), *_device_lines(peers)]:
                progress.message(line)
            return run_session(session, directory, progress, peers, stop, dog, started, lock, chosen)


def _check_equal_configs(peers, config, directory, allowed_changes, origin) -> None:
    """Raises UserError, in all processes, where they were not told the same."""
    if peers.count > 1:
        from gptjax.hosts import distributed

        distributed.check_equal(peers, distributed.facts(config, str(directory.path), allowed_changes, origin))


def _check_equal_text(peers, session: Session, chosen, dog) -> None:
    """Raises UserError, in all processes, where they do not read the same."""
    if peers.count > 1:
        from gptjax.hosts import distributed

        facts = {"text": {"fingerprint": session.store.fingerprint}}
        for hook in chosen:
            facts |= hook.facts()
        distributed.check_equal(peers, facts, seconds=None, alive=dog.alive)  # some read for hours


def _device_lines(peers) -> list[str]:
    if peers.count == 1:
        return []
    from gptjax.hosts import distributed

    return distributed.device_lines(peers)


def _sole_writer(directory, session: Session, allowed: tuple[str, ...], origin, peers):
    """Process 0 holds the directory for all. Raises UserError: another run has it, or it is none of ours; nothing is made
    for a new run that cannot start."""
    if peers.index:
        return contextlib.nullcontext(runlock.NO_LOCK)
    directory.check_may_hold_a_run()
    if not directory.exists():
        _described(directory, session, allowed, origin)
    return runlock.hold(directory.path)


def run_session(
    session: Session, directory, progress, peers, stop, dog, started: float, lock=runlock.NO_LOCK, chosen=()
) -> int:
    """The loop, in a run directory that is open. chosen: hooks. Returns the exit code."""
    closing = contextlib.ExitStack()
    with numerics.on_mesh(session.program.mesh), agreement.Agreement(peers, stop) as agreed:
        try:
            loop = open_loop(session, directory, progress, peers, agreed, dog, started, closing, lock, chosen)
            was_finished = loop.step >= loop.total_steps
            stop.wish = functools.partial(_wish, dog, peers, session.config)
            with runlock.judging(lock):
                code = loop.run()
                if code == 0:
                    say_ending(loop.training, was_finished)
                return code
        except BaseException as error:
            peers.blame(error)  # before closing, which would wait for the others
            raise
        finally:
            with dog.doing("closing"):
                closing.close()


def _wish(dog, peers, config) -> str:
    """What follows a signal, for the user: calls that were dispatched cannot be taken back. One is running, one waits behind
    it, and where several processes have to agree, one more may be dispatched."""
    from gptjax.training import report

    calls = 2 if peers.count == 1 else 3
    return report.stopping(dog.now_doing, calls, config.train.steps_per_call, dog.call_seconds())


def open_loop(
    session: Session, directory, progress, peers, agreed, dog, started: float, closing, lock=runlock.NO_LOCK, chosen=()
) -> Loop:
    """The Loop of a run, where it starts or goes on. closing: the ExitStack that closes what was opened for it, also where
    it could not begin."""
    keeping = keeper_of(session, directory, progress, peers)
    closing.callback(keeping.close)
    with dog.doing("resuming or initialising"):
        start = _start(session, directory, keeping, peers)
    log = open_log(session, directory, start) if peers.index == 0 else metrics.NoLog()
    check_lock = functools.partial(runlock.check_together, lock, peers)
    training = Training(session, directory, log, progress, peers, agreed, dog, check_lock, started)
    loop = Loop(training, keeping, chosen)
    closing.callback(loop.close)
    loop.begin(start)
    return loop


def say_ending(training: Training, was_finished: bool = False) -> None:
    """What lies in the directory of a run that has come to its end, and how one that had ended before is made longer."""
    from gptjax.training import report

    for line in report.ending(training.session, training.directory):
        training.progress.message(line)
    if was_finished:
        from gptjax.rundir import resuming

        for line in resuming.finished(training.session.config):
            training.progress.message(line)


def keeper_of(session: Session, directory, progress, peers, alone: bool = True) -> Keeper:
    """The Keeper of a run directory that is open. alone: as the Keeper has it."""
    run = consistency.of_checkpoint(directory.manifest()) if peers.index == 0 else None  # who writes manifests
    checkpointer = Checkpointer(directory.checkpoints, session.config, peers, run=run)
    checkpoint = session.config.checkpoint
    best = tuple if checkpoint.keep_best is None else directory.best_steps
    if session.config.rl.prompts is not None and session.config.rl.reference == "start":
        best = functools.partial(_with_start, best)
    return Keeper(checkpointer, checkpoint, peers, progress.message, alone, best)


def _with_start(best) -> tuple[int, ...]:
    """Steps that stay, and step 0, whose parameters answers are held to."""
    return (*best(), 0)


def _start(session: Session, directory, keeping: Keeper, peers) -> resume.Resumed:
    """What a run goes on from, or begins with: a branch with its trunk's state, others with another run's parameters."""
    program = session.program
    start = keeping.resume(directory, program.abstract_state, program.state_sharding)
    if start is not None:
        return start
    manifest = directory.manifest() if peers.index == 0 else {}
    branched, started = peers.tell("lineage", [manifest.get("branched"), manifest.get("started_from")])
    if branched is not None:
        from gptjax.training import branching

        return branching.begin(branched, directory, program, keeping, peers)
    if started is not None:
        from gptjax.training import starting

        return starting.begin(started, session.config, program, keeping)
    return BEGINNING


def open_log(session: Session, directory, start: resume.Resumed) -> metrics.MetricsLog:
    """The log of a run that goes on from there."""
    config = session.config
    return metrics.MetricsLog(
        directory.path,
        resume_step=start.step,
        rollbacks=start.rewinds.count,
        tensorboard=config.train.tensorboard,
        wandb_project=config.train.wandb_project,
        config=config,
    )


def check_directory(directory: run_directory.RunDirectory, session: Session, allowed: tuple[str, ...], origin) -> bool:
    """Writes what describes a new run, or checks that an old one may go on. True if there is something to resume."""
    if directory.exists():
        directory.check_trained(
            f"trained further; a new run starts with its parameters by train.start_from={directory.path}"
        )
        from gptjax.rundir import resuming

        resuming.check(directory, session.config, session.store, allowed)
    resumed = bool(directory.steps())
    manifest = _described(directory, session, allowed, origin)
    directory.save_tokenizer(session.store.tokenizer)
    if session.config.data.chat is not None:
        from gptjax.data.chat import kinds

        kinds.keep(kinds.chat_format(session.config.data.chat), directory.tokenizer)
    directory.write_json("manifest.json", manifest)
    directory.write_config(session.config)  # last: with it the directory is a run
    return resumed


def _described(directory, session: Session, allowed: tuple[str, ...], origin) -> dict:
    """The manifest of a run that starts or goes on. Raises UserError: it cannot branch, or start, where it is asked to."""
    manifest = directory.begin_manifest(session.config, session.store, run_directory.command_line())
    if session.config.train.reference is not None and not directory.exists():  # else it has been read
        from gptjax.training import origins

        origins.origin_of("train.reference", session.config.train.reference, None, directory)
    if origin is None and not (directory.exists() and "branched" in directory.manifest()):
        if session.config.train.start_from is None:
            return manifest
        from gptjax.training import starting

        return manifest | starting.lineage(directory, session.config, session.store, session.program.abstract_params)
    from gptjax.training import branching

    return manifest | branching.lineage(directory, session.config, session.store, origin, allowed, manifest)


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
