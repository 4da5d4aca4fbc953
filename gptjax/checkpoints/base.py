"""The base of a checkpoint that holds trained parameters alone: the frozen ones lie in a checkpoint of another run.

A step's manifest names it in its data: {"base": {"run", "step", "sha256"}}, the last the digest of the base's own manifest,
in which every piece of every array has its checksum. So an adapter's steps have the size of the adapter, and are never read
with another base than that on which it was trained. A base may have a base of its own. Needs no JAX.
"""

import dataclasses

from etils import epath

from gptjax.checkpoints import validity
from gptjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Base:
    run: str  # its directory
    step: int
    sha256: str  # of its manifest

    def __str__(self) -> str:
        return f"step {self.step} of {self.run} (checkpoint {self.sha256[:12]})"

    @property
    def folder(self) -> epath.Path:
        return epath.Path(self.run) / "checkpoints" / str(self.step)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def wrong(self) -> str:
        """Why its checkpoint is not that on which an adapter was trained; "" where it is, by its manifest."""
        if not (self.folder / validity.MANIFEST).exists():
            return "it is not there"
        try:
            digest = validity.digest(validity.read_manifest(self.folder))
        except (validity.Unreadable, OSError) as error:
            return f"it is damaged: {error}"
        return "" if digest == self.sha256 else f"another checkpoint is there now ({digest[:12]})"

    def check(self) -> None:
        """Raises UserError: it is not there, or another."""
        if reason := self.wrong():
            raise self.refused(reason)

    def refused(self, reason: str) -> UserError:
        return UserError(f"the frozen parameters of this run lie in {self}: {reason}; put that checkpoint back there.")


def of(description: dict) -> Base | None:
    """Of a step by validity.description; None: the step holds all its arrays."""
    words = description["data"].get("base")
    return None if words is None else Base(**words)


def named(run_path, step: int) -> Base | None:
    """A step of a run as the base of another run; None: it has no manifest (schema 1), by which it could be named."""
    folder = epath.Path(run_path) / "checkpoints" / str(step)
    if not (folder / validity.MANIFEST).exists():
        return None
    return Base(str(run_path), step, validity.digest(validity.read_manifest(folder)))


def arrays(folder: epath.Path) -> dict | None:
    """{"params/embed": {"shape", "dtype", ...}} of a step with those of its base; None of schema 1, which does not say."""
    description = validity.description(folder)
    own, base = description.get("arrays"), of(description)
    if own is None or base is None:
        return own
    base.check()
    return (arrays(base.folder) or {}) | own
