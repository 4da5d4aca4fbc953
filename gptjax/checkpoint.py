"""Checkpoints: Orbax, asynchronous, restored onto any mesh.

On disk a state is a plain nested dict of arrays, whatever optax and flax call their containers:

    checkpoints/STEP/params       the model's parameters
    checkpoints/STEP/opt_state    the optimizer's state
    checkpoints/STEP/ema          averaged parameters, if the run keeps them
    checkpoints/STEP/meta         {"schema": 1, "step": STEP, "batch_hash": of all rows read so far}

Data order and random keys are functions of the step and need no file of their own. Every process of a run takes part
in saving and restoring; Orbax writes each array's shards from where they are.
"""

import contextlib
import time

import jax
from etils import epath

from gptjax.errors import SaveFailed, UserError
from gptjax.step import TrainState

SCHEMA = 1


def to_plain(tree) -> dict:
    """A pytree as nested dicts keyed by field names and indices; containers without arrays vanish."""
    plain = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        *parents, last = [_name(key) for key in path]
        node = plain
        for name in parents:
            node = node.setdefault(name, {})
        node[last] = leaf
    return plain


def from_plain(plain: dict, like):
    """The inverse of to_plain: arrays of plain in the containers of `like`. Raises KeyError for one that is missing."""

    def leaf(path, _):
        node = plain
        for key in path:
            node = node[_name(key)]
        return node

    return jax.tree_util.tree_map_with_path(leaf, like)


def _name(key) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


def _items(state: TrainState) -> dict[str, dict]:
    """What is saved of a state, by folder name. A state of stateless SGD has no arrays there, so no folder."""
    items = {"params": state.params, "opt_state": to_plain(state.opt_state), "ema": state.ema}
    return {name: tree for name, tree in items.items() if tree}


class Checkpointer:
    """The checkpoints of one run directory. checkpoint: CheckpointConfig, or None to only read."""

    def __init__(self, directory, checkpoint=None):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._directory = epath.Path(directory)
        self._checkpoint = checkpoint
        self._last_save = time.monotonic()
        reading = checkpoint is None
        keep = {} if reading else {"max_to_keep": checkpoint.keep, "keep_period": checkpoint.keep_every}
        options = ocp.CheckpointManagerOptions(
            create=not reading, read_only=reading, enable_async_checkpointing=not reading, **keep
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def due(self, step: int) -> bool:
        """Whether a checkpoint should be written after so many steps, the same in every process."""
        checkpoint = self._checkpoint
        return checkpoint.every_steps is not None and step % checkpoint.every_steps == 0

    def overdue(self) -> bool:
        """Whether one should be written by this process's clock."""
        checkpoint = self._checkpoint
        minutes = (time.monotonic() - self._last_save) / 60
        return checkpoint.every_minutes is not None and minutes >= checkpoint.every_minutes

    def save(self, state: TrainState, step: int, **meta) -> None:
        """Starts writing; the state may be donated when this returns. Raises SaveFailed if this or the last save did.

        meta: JSON values kept beside the state; those of process 0 count.
        """
        args = {name: self._ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        meta = self._ocp.args.JsonSave({"schema": SCHEMA, "step": step, **meta})
        with self._writing():
            self._manager.save(step, args=self._ocp.args.Composite(meta=meta, **args), force=True)
        self._last_save = time.monotonic()

    def restore(self, step: int, abstract: TrainState, sharding: TrainState) -> TrainState:
        """The whole state of a step, laid out by sharding. Raises UserError if it is not such a state."""
        like = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract, sharding
        )
        items = self._read(step, _items(like))
        return TrainState(
            step=jax.device_put(jax.numpy.int32(step), sharding.step),
            params=items["params"],
            opt_state=from_plain(items.get("opt_state", {}), like.opt_state),
            ema=items.get("ema"),
        )

    def restore_params(self, step: int, abstract_params, name: str = "params"):
        """Only the parameters ("params" or "ema"), laid out as abstract_params says."""
        return self._read(step, {name: abstract_params})[name]

    def _read(self, step: int, like: dict) -> dict:
        self.meta(step)
        args = {name: self._ocp.args.StandardRestore(tree) for name, tree in like.items()}
        try:
            return dict(self._manager.restore(step, args=self._ocp.args.Composite(**args)).items())
        except (ValueError, KeyError, FileNotFoundError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"checkpoint {self._directory / str(step)} does not hold {', '.join(like)} of this model: {reason}"
            ) from error

    def meta(self, step: int) -> dict:
        """What `save` was given besides the state. Raises UserError: no such step, a newer schema."""
        if step not in self.steps():
            known = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{self._directory} has no checkpoint of step {step}; there are: {known}.")
        meta = self._manager.restore(step, args=self._ocp.args.Composite(meta=self._ocp.args.JsonRestore())).meta
        if meta["schema"] > SCHEMA:
            raise UserError(
                f"checkpoint {self._directory / str(step)} has schema {meta['schema']},"
                f" this gptjax reads up to {SCHEMA}; update gptjax."
            )
        return meta

    def wait(self) -> None:
        """Until the last save is on disk. Raises SaveFailed if it did."""
        with self._writing():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self):
        """A full disk, a lost mount, a network that stalled: whatever Orbax makes of it."""
        try:
            yield
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise SaveFailed(
                f"a checkpoint could not be written to {self._directory}: {reason}; those of earlier steps are intact:"
                " make room, then run the same command again."
            ) from error

    def close(self) -> None:
        self._manager.close()
