"""The checkpoints of a run that is going on: which one it goes on from, and what follows when one cannot be written.

A damaged checkpoint is set aside and the one before it taken; a save that fails stops the run or does not, as
checkpoint.on_save_failure says. Either is said on the terminal and in metrics.jsonl. All processes do the same.
"""

import typing

from gptjax.checkpoints import validity
from gptjax.checkpoints.checkpointer import Checkpointer
from gptjax.checkpoints.saving import CheckpointFailed
from gptjax.errors import Damaged, NoWayBack, UserError


class Resumed(typing.NamedTuple):
    """What a run goes on from."""

    step: int
    state: typing.Any  # TrainState
    data: dict  # what the manifest has besides: batch_hash ...
    branched: str | None = None  # from where, for people, where a run begins with another one's state


class Keeper:
    """say: prints a line (process 0's counts). What happens before `log` is set is logged then."""

    def __init__(self, checkpointer: Checkpointer, on_save_failure: str, peers, say):
        self._checkpointer, self._policy = checkpointer, on_save_failure
        self._peers, self._say = peers, say
        self._log, self._unlogged = None, []
        self.saved_step = self._before = -1  # newest on disk or on its way there; and the one before

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
                state = self._checkpointer.restore(step, abstract, sharding)
            except Damaged as error:
                bad.append(f"{step}: {error}")
                self._set_aside(step, str(error))
                continue
            self.saved_step = self._before = step
            if not self._checkpointer.keeps_skips(step, abstract):
                self._tell(
                    f"optim.skip or optim.skip_window was another at step {step}: what is known of updates left out begins"
                    " anew, and none is judged an outlier before half a window is full",
                    event="skips_begin_anew", checkpoint=step,
                )  # fmt: skip
            return Resumed(step, state, self._checkpointer.meta(step))
        if bad:
            raise UserError(_none_left(directory, bad))
        return None

    def rewind(self, directory, last: int, abstract, sharding) -> Resumed | None:
        """The newest state of at most `last` steps, as `resume`; None for a run that had saved nothing yet. Then later
        checkpoints are deleted: they are of steps that will be taken another way. Raises NoWayBack, in all processes: all
        are later, or damaged.
        """
        steps = self._peers.tell("rewind", validity.steps(directory.checkpoints) if self._peers.index == 0 else None)
        if steps and steps[0] > last:
            raise NoWayBack(f"none of at most {last} steps is left to go back to (checkpoint.keep)")
        self.saved_step = self._before = -1
        try:
            resumed = self.resume(directory, abstract, sharding, last)
        except UserError as error:
            raise NoWayBack(str(error)) from error
        if self._peers.index == 0:
            for step in reversed([step for step in steps if step > last]):
                validity.remove(directory.checkpoints / str(step))
        self._peers.tell("rewound", last)  # nobody saves before they are gone
        return resumed

    def _look(self, directory) -> tuple[list[str], list[int]]:
        """([what was wrong with a step that was one once], [steps to try]), by process 0."""
        known = validity.standings(directory.checkpoints)
        unfinished = [standing for standing in known if standing.state == validity.INCOMPLETE]
        for standing in unfinished:
            self._tell(
                f"the checkpoint of step {standing.step} does not count: {standing.reason}",
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
            f"the checkpoint of step {step} is set aside ({place}), the one before it is tried: {reason}",
            event="checkpoint_set_aside", checkpoint=step, reason=reason, place=place,
        )  # fmt: skip

    def _tell(self, line: str, **event) -> None:
        self._say(f"gptjax: {line}")
        if self._log is None:
            self._unlogged.append(event)
        else:
            self._log.write("event", event.pop("at", event.get("checkpoint")), **event)

    # ---- the run

    def save(self, state, step: int, last: bool = False, **data) -> None:
        """Starts writing; of the last one of a run, waits until it is written. Raises CheckpointFailed if this or the one
        before failed and the run is to stop; if the last one did, always. data: of `Checkpointer.save`."""
        self.settle(step)
        self._miss_what_is_gone(step)
        try:
            self._checkpointer.save(state, step, **data)
            before, self.saved_step = self.saved_step, step
            self._before = before
            if last:
                self._checkpointer.wait()
        except CheckpointFailed as error:
            self._failed(step, error, last)

    def settle(self, step: int) -> None:
        """Waits for the save before. Raises as `save`. step: where the run is now."""
        try:
            self._checkpointer.wait()
        except CheckpointFailed as error:
            self.saved_step = self._before
            self._failed(step, error, last=False)

    def _miss_what_is_gone(self, step: int) -> None:
        """Says so if somebody has taken away what was saved last."""
        if self._peers.index == 0 and self.saved_step > 0 and self.saved_step not in self._checkpointer.steps():
            self._tell(
                f"the checkpoint of step {self.saved_step}, which was written, is gone; those that follow are written all"
                " the same",
                event="checkpoint_gone", at=step, checkpoint=self.saved_step,
            )  # fmt: skip

    def _failed(self, step: int, error: CheckpointFailed, last: bool) -> None:
        if last or self._policy == "stop":
            raise error
        self._tell(
            f"{error.reason}; training goes on, and the next is tried when it is due (checkpoint.on_save_failure='continue').",
            event="save_failed", at=step, reason=error.reason,
        )  # fmt: skip


def _none_left(directory, bad: list[str]) -> str:
    return (
        f"--workdir={directory.path} has no checkpoint left that can be trusted ({'; '.join(bad)}). Put a copy of a good one"
        f" to {directory.checkpoints}/STEP, or delete {directory.checkpoints} to start over; gptjax verify shows more."
    )
