"""The checkpoints of a run that is going on: which one it goes on from, and what follows when one cannot be written.

A damaged checkpoint is set aside and the one before it taken; a save that fails stops the run or does not, as
checkpoint.on_save_failure says. Either is said on the terminal and in metrics.jsonl. All processes do the same.
"""

import time
import typing

import jax
import numpy as np

from gptjax.checkpoints import validity
from gptjax.checkpoints.checkpointer import Checkpointer, from_plain, named, to_plain
from gptjax.checkpoints.saving import CheckpointFailed
from gptjax.errors import Damaged, NoWayBack, UserError
from gptjax.schedule import Rewinds


class Resumed(typing.NamedTuple):
    """What a run goes on from."""

    step: int
    state: typing.Any  # TrainState; None: a new one
    data: dict  # what the manifest has besides: batch_hash ...
    branched: str | None = None  # from where, for people, where a run begins with another one's state

    @property
    def rewinds(self) -> Rewinds:
        return Rewinds.from_dict(self.data)

    @property
    def batch_hash(self) -> int | None:
        """Of the rows of the steps before; None if the checkpoint was made before they were hashed."""
        digits = self.data.get("batch_hash")
        return None if digits is None else int(digits, 16)


BEGINNING = Resumed(0, None, {"batch_hash": "0"})


def items(state, frozen=None) -> dict[str, dict]:
    """What is saved of a TrainState, by folder: all but the step, where there are arrays; stateless SGD has no opt_state.
    frozen: the frozen.Frozen that lies in a base instead."""
    trees = {name: to_plain(getattr(state, name)) for name in state._fields if name != "step"}
    if frozen is not None:
        trees |= {name: frozen.without(trees[name]) for name in ("params", "ema")}
    return {name: tree for name, tree in trees.items() if tree}


def frozen_of(checkpointer: Checkpointer, step: int, abstract):
    """The frozen.Frozen that a step has left in a base, or None. abstract: of the TrainState. Raises UserError as `meta`."""
    if checkpointer.meta(step).get("base") is None:
        return None
    from gptjax.training import frozen

    return frozen.of_step(checkpointer, step, abstract.params)


def read_state(checkpointer: Checkpointer, step: int, abstract, sharding):
    """The TrainState of a step, laid out by sharding, checked. abstract: of its shapes. Raises as `Checkpointer.restore`, and
    UserError: its base is not what it was. `skips` begin anew where `keeps_skips` is False."""
    frozen = frozen_of(checkpointer, step, abstract)
    keeps = keeps_skips(checkpointer, step, abstract)
    like = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, sharding
    )
    known = checkpointer.restore(step, items(like if keeps else like._replace(skips=None), frozen))
    if frozen is not None:
        known |= frozen.joined(known, like)
    fields = {name: from_plain(known.get(name, {}), getattr(like, name))
              for name in like._fields if name not in ("step", "skips")}  # fmt: skip
    fields["skips"] = from_plain(known.get("skips", {}), like.skips) if keeps else jax.tree.map(_zeros, like.skips)
    return like._replace(step=jax.device_put(jax.numpy.int32(step), sharding.step), **fields)


def keeps_skips(checkpointer: Checkpointer, step: int, abstract) -> bool:
    """Whether a step has the counters and windows that the state has: not if optim.skip was another then."""
    kept = {name: shape for name, shape in checkpointer.shapes(step).items() if name.startswith("skips/")}
    return abstract.skips is None or kept == {
        name: tuple(leaf.shape) for name, leaf in named({"skips": abstract.skips}).items()
    }


def _zeros(like):
    return jax.device_put(np.zeros(like.shape, like.dtype), like.sharding)


class Keeper:
    """checkpoint: a CheckpointConfig. say: prints a line (process 0's counts). What happens before `log_to` is logged then.

    alone: whether this run's own clock says when to save, and its own settings what to delete. best: gives the steps that
    stay because none is better (checkpoint.keep_best).
    """

    def __init__(self, checkpointer: Checkpointer, checkpoint, peers, say, alone: bool = True, best=tuple):
        self._checkpointer, self.checkpoint, self._alone, self._best = checkpointer, checkpoint, alone, best
        self._peers, self._say = peers, say
        self._log, self._unlogged = None, []
        self._last_save = time.monotonic()
        self.frozen = None  # a frozen.Frozen: what is not saved, since it lies in a base
        self.saved_step = self._before = None  # newest on disk or on its way there; and the one before

    def log_to(self, log, step: int) -> None:
        """Events go to this MetricsLog from now on; those before are logged at `step`."""
        self._log = log
        for event in self._unlogged:
            log.write("event", step, **event)
        self._unlogged = []

    # ---- the start

    def resume(self, directory, abstract, sharding, last: int | None = None) -> Resumed | None:
        """The newest state that is as it was written, of at most `last` steps if given; None for a run without checkpoints.
        Raises UserError: there were some, and none is left; starting over is the user's to decide."""
        if self._peers.index == 0:
            validity.remove_unfinished(directory.checkpoints)
        bad, steps = self._peers.tell("standings", self._look(directory) if self._peers.index == 0 else None)
        for step in reversed([step for step in steps if last is None or step <= last]):
            try:
                state = read_state(self._checkpointer, step, abstract, sharding)
            except Damaged as error:
                bad.append(f"{step}: {error}")
                self._set_aside(step, str(error))
                continue
            self.saved_step = self._before = step
            self.frozen = frozen_of(self._checkpointer, step, abstract)
            if not keeps_skips(self._checkpointer, step, abstract):
                self._tell(
                    f"optim.skip or optim.skip_window differed at step {step}: the statistics of skipped updates start"
                    " again, and no update counts as an outlier before half a window is full",
                    event="skips_begin_anew", checkpoint=step,
                )  # fmt: skip
            return Resumed(step, state, self._checkpointer.meta(step))
        if bad:
            raise UserError(_none_left(directory, bad))
        return None

    def rewind(self, directory, last: int, abstract, sharding) -> Resumed:
        """The newest state of at most `last` steps, as `resume`; BEGINNING for a run that had saved nothing yet. Then later
        checkpoints are deleted: they are of steps that will be taken another way. Raises NoWayBack, in all processes: all
        are later, or damaged.
        """
        steps = self._peers.tell("rewind", validity.steps(directory.checkpoints) if self._peers.index == 0 else None)
        if steps and steps[0] > last:
            raise NoWayBack(f"no checkpoint from step {last} or before is left (checkpoint.keep)")
        self.saved_step = self._before = None
        try:
            resumed = self.resume(directory, abstract, sharding, last)
        except UserError as error:
            raise NoWayBack(str(error)) from error
        if self._peers.index == 0:
            for step in reversed([step for step in steps if step > last]):
                validity.remove(directory.checkpoints / str(step))
        self._peers.tell("rewound", last)  # nobody saves before they are gone
        return resumed or BEGINNING

    def _look(self, directory) -> tuple[list[str], list[int]]:
        """([what was wrong with a step that was one once], [steps to try]), by process 0."""
        known = validity.standings(directory.checkpoints)
        unfinished = [standing for standing in known if standing.state == validity.INCOMPLETE]
        for standing in unfinished:
            self._tell(
                f"the checkpoint of step {standing.step} is not valid: {standing.reason}",
                event="checkpoint_incomplete", checkpoint=standing.step, reason=standing.reason,
            )  # fmt: skip
        counting = [standing.step for standing in known if standing.counts]
        for standing in known:
            if standing.state == validity.DAMAGED or (standing.state == validity.MISPLACED and counting):
                self._rename(standing.step, standing.reason)
        lost = [s for s in known if s.state in (validity.DAMAGED, validity.MISPLACED, validity.SET_ASIDE)]
        if len(unfinished) > 1:  # a crash leaves one
            lost += unfinished
        return [f"{s.step}: {s.reason}" for s in lost], counting

    def _set_aside(self, step: int, reason: str) -> None:
        """By process 0 for all, who wait until it is done."""
        if self._peers.index == 0:
            self._rename(step, reason)
        self._peers.tell("set_aside", step)  # nobody looks for the one before until this one is gone

    def _rename(self, step: int, reason: str) -> None:
        place = self._checkpointer.set_aside(step, reason)
        self._tell(
            f"the checkpoint of step {step} is set aside ({place}) and the one before it is tried: {reason}",
            event="checkpoint_set_aside", checkpoint=step, reason=reason, place=place,
        )  # fmt: skip

    def _tell(self, line: str, **event) -> None:
        self._say(f"gptjax: {line}")
        if self._log is None:
            self._unlogged.append(event)
        else:
            self._log.write("event", event.pop("at", event.get("checkpoint")), **event)

    # ---- the run

    def due(self, step: int) -> bool:
        """Whether a checkpoint should be written after so many steps, the same in every process."""
        every = self.checkpoint.every_steps
        return (every is not None and step % every == 0) or step in self.checkpoint.keep_steps

    def overdue(self) -> bool:
        """Whether one should be written by this process's clock."""
        every = self.checkpoint.every_minutes
        return self._alone and every is not None and (time.monotonic() - self._last_save) / 60 >= every

    def save(self, state, step: int, last: bool = False, **data) -> None:
        """Starts writing; of the last one of a run, waits until it is written. Raises CheckpointFailed if this or the one
        before failed and the run is to stop; if the last one did, always. data: of `Checkpointer.save`."""
        self.settle(step)
        self._miss_what_is_gone(step)
        self._last_save = time.monotonic()
        try:
            data |= {} if self.frozen is None else {"base": self.frozen.base.to_dict()}
            self._checkpointer.save(items(state, self.frozen), step, self._tidy, **data)
            before, self.saved_step = self.saved_step, step
            self._before = before
            if last:
                self._checkpointer.wait()
        except CheckpointFailed as error:
            self._failed(step, error, last)

    def _tidy(self) -> None:
        if self._alone:
            self.remove_old()

    def remove_old(self) -> None:
        """Deletes the steps that the settings do not keep. By process 0."""
        checkpoint = self.checkpoint
        kept = (*checkpoint.keep_steps, *self._best())
        self._checkpointer.remove_old(checkpoint.keep, checkpoint.keep_every, kept)

    def settle(self, step: int) -> None:
        """Waits for the save before. Raises as `save`. step: where the run is now."""
        try:
            self._checkpointer.wait()
        except CheckpointFailed as error:
            self.saved_step = self._before
            self._failed(step, error, last=False)

    def failure_of_last_save(self, step: int) -> str | None:
        """Waits for the save before, and says why it failed if the run was to stop for that."""
        try:
            self.settle(step)
        except CheckpointFailed as error:
            return error.reason
        return None

    def close(self) -> None:
        self._checkpointer.close()

    def _miss_what_is_gone(self, step: int) -> None:
        """Says so if somebody has taken away what was saved last."""
        if self._peers.index == 0 and self.saved_step and self.saved_step not in self._checkpointer.steps():
            self._tell(
                f"the checkpoint of step {self.saved_step}, which was written, is gone; later checkpoints will still be"
                " written",
                event="checkpoint_gone", at=step, checkpoint=self.saved_step,
            )  # fmt: skip

    def _failed(self, step: int, error: CheckpointFailed, last: bool) -> None:
        if last or self.checkpoint.on_save_failure == "stop":
            raise error
        self._tell(
            f"{error.reason}; training continues, and the next save is tried when it is due (checkpoint.on_save_failure='continue').",
            event="save_failed", at=step, reason=error.reason,
        )  # fmt: skip


def _none_left(directory, bad: list[str]) -> str:
    return (
        f"--workdir={directory.path} has no valid checkpoint left ({'; '.join(bad)}). Copy a good one"
        f" to {directory.checkpoints}/STEP, or delete {directory.checkpoints} to start over; gptjax verify tells more."
    )
