"""Checkpoints: Orbax, asynchronous, restored onto any mesh.

On disk a state is a plain nested dict of arrays, whatever optax and flax call their containers:

    checkpoints/STEP/params       the model's parameters
    checkpoints/STEP/opt_state    the optimizer's state
    checkpoints/STEP/ema          averaged parameters, if the run keeps them
    checkpoints/STEP/meta         {"schema": 2, "step": STEP, "batch_hash": of all rows read so far, ...}
    checkpoints/STEP/manifest.json     written last: sizes of all files, checksums of all arrays (see validity.py)

Data order and random keys are functions of the step and need no file of their own. Every process of a run takes part
in saving and restoring; Orbax writes each array's shards from where they are. What is restored is verified: its
checksums are those taken on the devices when it was saved.
"""

import contextlib
import json
import time
import typing

import jax
from etils import epath

from gptjax import checksums, sharding, validity
from gptjax.errors import SaveFailed, UserError
from gptjax.step import TrainState
from gptjax.validity import SCHEMA, DamagedStep

CHUNK_BYTES = 64 << 20  # an array lies on disk in chunks of at most so much, and is read by them


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


def _flat(items: dict) -> dict[str, typing.Any]:
    """{"params/blocks/...": leaf} of nested dicts."""
    return {"/".join(map(_name, path)): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(items)}


class Checkpointer:
    """The checkpoints of one run directory. checkpoint: CheckpointConfig, or None to only read.

    facts: what stands in every manifest beside the state's own, such as the config.
    """

    def __init__(self, directory, checkpoint=None, facts: dict | None = None):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._directory = epath.Path(directory)
        self._checkpoint, self._facts = checkpoint, facts or {}
        self._last_save = time.monotonic()
        self._saving = None  # (step, meta, arrays with checksums on their way from the devices)
        reading = checkpoint is None
        keep = {} if reading else {"max_to_keep": checkpoint.keep, "keep_period": checkpoint.keep_every}
        options = ocp.CheckpointManagerOptions(
            create=not reading,
            read_only=reading,
            enable_async_checkpointing=not reading,
            async_options=ocp.AsyncOptions(post_finalization_callback=None if reading else self._write_manifest),
            **keep,
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, marked as such and with a manifest, oldest first."""
        return validity.valid_steps(self._directory)

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
        self.wait()
        items = _items(state)
        self._saving = step, meta, {name: _described(leaf) for name, leaf in _flat(items).items()}
        args = {name: self._save_args(tree) for name, tree in items.items()}
        args["meta"] = self._ocp.args.JsonSave({"schema": SCHEMA, "step": step, **meta})
        with self._writing():
            self._manager.save(step, args=self._ocp.args.Composite(**args), force=True)
        self._last_save = time.monotonic()

    def _save_args(self, tree):
        chunked = jax.tree.map(lambda _: self._ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), tree)
        return self._ocp.args.StandardSave(tree, save_args=chunked)

    def _write_manifest(self) -> None:
        """Called by Orbax in process 0, in the thread that saves, when all other files are written and before it commits."""
        step, meta, arrays = self._saving
        arrays = {name: about | {"checksum": checksums.as_hex(about["checksum"])} for name, about in arrays.items()}
        facts = {"step": step, "data": meta, **self._facts, "arrays": arrays}
        validity.write_manifest(self._unfinished(step), facts)

    def _unfinished(self, step: int) -> epath.Path:
        """The folder that Orbax is writing: a temporary one, which it renames; on object stores the final one."""
        prefix = f"{step}.orbax-checkpoint-tmp"
        temporary = [path for path in self._directory.iterdir() if path.name.startswith(prefix)]
        return max(temporary, key=lambda path: path.stat().mtime, default=self._directory / str(step))

    def restore(self, step: int, abstract: TrainState, sharding: TrainState) -> TrainState:
        """The whole state of a step, laid out by sharding. Raises DamagedStep: it is not what was saved; UserError: it is
        not such a state."""
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
        """Items of a step in the shapes, dtypes and layouts of like, verified as they were stored."""
        self.meta(step)
        folder = self._directory / str(step)
        manifest = validity.read_manifest(folder)
        stored = {} if manifest is None else manifest["arrays"]
        as_stored = _with_dtypes(like, stored)
        args = {name: self._ocp.args.StandardRestore(tree) for name, tree in as_stored.items()}
        try:
            items = dict(self._manager.restore(step, args=self._ocp.args.Composite(**args)).items())
        except Exception as error:  # tensorstore and zstd have many for bytes they cannot make sense of
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if manifest is None or not _same_arrays(like, stored):
                raise UserError(
                    f"checkpoint {folder} does not hold {', '.join(like)} of this model: {reason}"
                ) from error
            raise DamagedStep(f"checkpoint {folder} is damaged: it cannot be read: {reason}") from error
        for name, leaf in _flat(items).items():
            if name in stored and (found := checksums.checksum(on_device(leaf))) != stored[name]["checksum"]:
                raise DamagedStep(
                    f"checkpoint {folder} is damaged: {name} has checksum {found}, but {stored[name]['checksum']} was saved"
                )
        return jax.tree.map(lambda leaf, wanted: leaf.astype(wanted.dtype), items, like)

    def meta(self, step: int) -> dict:
        """What `save` was given besides the state. Raises UserError: no such step, a newer schema; DamagedStep."""
        folder = self._directory / str(step)
        if not folder.exists():
            known = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{self._directory} has no checkpoint of step {step}; there are: {known}.")
        found = validity.condition(folder)
        if found.verdict == "newer":
            raise UserError(f"checkpoint {folder}: {found.reason}.")
        if not found.usable:
            raise DamagedStep(f"checkpoint {folder} is {found.verdict}: {found.reason}")
        return json.loads((folder / "meta" / "metadata").read_text())

    def wait(self) -> None:
        """Until the last save is on disk. Raises SaveFailed if it did."""
        with self._writing():
            self._manager.wait_until_finished()

    def quarantine(self, step: int, reason: str) -> str:
        """Takes a step out of the run, by one process. Returns where it is now."""
        return validity.quarantine(self._directory / str(step), reason)

    def reload(self) -> None:
        """After a step was taken out, by every process."""
        self._manager.reload()

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


def on_device(leaf):
    """leaf, from the host's memory if it waits there."""
    if leaf.sharding.memory_kind == sharding.HOST_MEMORY:
        return jax.device_put(leaf, leaf.sharding.with_memory_kind("device"))
    return leaf


def _described(leaf) -> dict:
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "checksum": checksums.lanes_of(on_device(leaf))}


def _with_dtypes(like: dict, stored: dict) -> dict:
    """like in the dtypes that arrays were stored in: checksums are of those."""

    def leaf(path, wanted):
        about = stored.get("/".join(map(_name, path)))
        dtype = wanted.dtype if about is None else jax.numpy.dtype(about["dtype"])
        return jax.ShapeDtypeStruct(wanted.shape, dtype, sharding=wanted.sharding)

    return jax.tree_util.tree_map_with_path(leaf, like)


def _same_arrays(like: dict, stored: dict) -> bool:
    return all(name in stored and stored[name]["shape"] == list(leaf.shape) for name, leaf in _flat(like).items())
