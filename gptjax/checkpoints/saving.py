"""A save that several processes make together: what one cannot do fails in all, with its reason, and nobody waits for it.

Each stage is agreed on: what is done before Orbax begins, the start of Orbax's writers, and their end. Orbax's own way to
wait for other processes is a collective of the devices, which waits without end for a process that has failed; here its
writers wait over the coordination service, and no longer than until one of them fails.
"""

import errno
import os

from gptjax.checkpoints import validity
from gptjax.errors import SaveFailed, first_line

DISK_FULL = (  # the system's words, and what TensorStore, whose message may be cut, begins with
    os.strerror(errno.ENOSPC),
    os.strerror(errno.EDQUOT),
    "RESOURCE_EXHAUSTED: Error writing",
)


class CheckpointFailed(SaveFailed):
    """A checkpoint could not be written to a folder. reason: why not; the message also says what is there."""

    def __init__(self, folder, reason: str):
        self.reason = f"a checkpoint could not be written to {folder}: {reason}"
        full = any(sign in reason for sign in DISK_FULL)
        mend = "free some space, then run the same command again" if full else "run the same command again to continue"
        super().__init__(f"{self.reason}; {validity.said(folder)}; {mend}.")


class Stages:
    """What the processes of a run know of each other's part in a save. folder: of the checkpoints."""

    def __init__(self, folder, peers):
        self._folder, self._peers, self._save = folder, peers, 0

    def next_save(self) -> None:
        """Before the first stage of one. Its number is in the names of what is gathered: of a save that fails, one process
        may have come to fewer of these than another, and the next may be of the same step."""
        self._save += 1

    def gather(self, name: str, value) -> list | None:
        """Of Group.gather, within this save. Raises SaveFailed if another process has failed in it."""
        return self._peers.gather(f"save {self._save} {name}", value, alive=self.check_others)

    def together(self, stage: str, act):
        """act(), which all processes do. Raises CheckpointFailed, in all, if it fails in one."""
        result, failure = None, None
        try:
            result = act()
        except Exception as error:
            failure = error
            self.say_failed(error)
        self.settle(stage, failure)
        return result

    def settle(self, stage: str, failure: BaseException | None) -> None:
        """After a stage, in all processes. Raises CheckpointFailed if it failed in one: with the reason of the first one."""
        reason = self._peers.agree(f"save {stage}", "" if failure is None else first_line(failure))
        if reason:
            raise CheckpointFailed(self._folder, self._peers.read(self._key()) or reason) from None  # all know it

    def say_failed(self, error: BaseException) -> None:
        """To those who would wait for this process."""
        process = f"{self._peers.name(self._peers.index)}: " if self._peers.count > 1 else ""
        self._peers.publish_first(self._key(), f"{process}{first_line(error)}")

    def check_others(self) -> None:
        """Raises SaveFailed if another process has failed in this save."""
        if reason := self._peers.read(self._key()):
            raise SaveFailed(reason)

    def temporary_name(self, step: int) -> str:
        """Of the folder that this save writes into, until it is whole. Each has its own: TensorStore's threads may still
        write for a save that has failed, and would make its folder again in the middle of the next one."""
        return f"{step}{validity.TEMPORARY}-{self._save}"

    def writer(self, in_place: bool):
        """Orbax's AsyncCheckpointer for all of them. in_place: of Checkpointer."""
        import orbax.checkpoint as ocp

        place = ocp.path.atomicity
        kind = place.CommitFileTemporaryPath if in_place else self._renamed(place.AtomicRenameTemporaryPath)
        options = {"temporary_path_class": kind}
        if self._peers.count == 1:
            return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), **options)
        several = ocp.options.MultiprocessingOptions(active_processes=set(range(self._peers.count)))
        composite = ocp.CompositeOptions(multiprocessing_options=several)
        return ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(composite_options=composite),
            multiprocessing_options=several,
            async_options=ocp.options.AsyncOptions(barrier_sync_fn=self._wait_for_writers),
            **options,
        )

    def _renamed(self, base: type) -> type:
        """Orbax's class of a folder that is renamed when it is whole, with the name that this save's has."""
        stages = self

        class OfThisSave(base):
            @classmethod
            def from_final(cls, final_path, **options):
                return cls(final_path.parent / stages.temporary_name(int(final_path.name)), final_path, **options)

        return OfThisSave

    def _wait_for_writers(self, *, key: str, timeout_ms: int) -> None:
        """In Orbax's thread. Raises SaveFailed if one of them has failed, PeerLost if one takes longer."""
        name, seconds = f"save {self._save} {key}", timeout_ms / 1000
        self._peers.gather(name, None, seconds, self.check_others)
        self._peers.tell(name, None, seconds, self.check_others)

    def _key(self) -> str:
        return f"save_failed/{self._save}"
