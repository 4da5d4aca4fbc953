"""Checkpoints: Orbax, asynchronous, restored onto any mesh, trusted only with a manifest (validity.py).

A step is some items by name, each a plain nested dict of arrays, whatever optax and flax call their containers; which
they are of a run in training is training.resume.items:

    checkpoints/STEP/params         the model's parameters
    checkpoints/STEP/opt_state      the optimizer's state
    checkpoints/STEP/ema            averaged parameters, if the run keeps them
    checkpoints/STEP/skips          counters and windows of updates left out, if the run leaves any out (skipping.py)
    checkpoints/STEP/importance     averages of an adapter's ranks, if it gives some up (rank_budget.py)
    checkpoints/STEP/meta           {"schema": 2, "step": STEP, and what `save` was given besides}
    checkpoints/STEP/manifest.json  written last, with a checksum of every shard of every array

Data order and random keys are functions of the step and need no file of their own. Every process of a run takes part
in saving and restoring; Orbax writes each array's shards from where they are, in chunks of CHUNK_BYTES at most. The
checksums are dispatched before the state is donated, and waited for by a thread, which then writes the manifest.
"""

import contextlib
import functools
import sys
import threading
import time

import jax
from etils import epath

from gptjax.checkpoints import checksums, saving, validity
from gptjax.errors import Damaged, UserError, first_line
from gptjax.hosts.coordination import Alone

CLEAN_TRIES, CLEAN_SECONDS = 20, 0.1  # of removing what a failed save has left, and between two of them
CHUNK_BYTES = 64 * 2**20  # what a reader has to hold of an array at a time
READ_ERRORS = (ValueError, KeyError, OSError)  # of Orbax and TensorStore, for a file that is not as it was


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


def named(tree) -> dict:
    """{"params/blocks/gain": array} of a tree: the names that a manifest has."""
    return {"/".join(_name(key) for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(key) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))


class Checkpointer:
    """The checkpoints of one run directory. config: the run's, or None to only read. run: of `consistency.of_checkpoint`.

    in_place: write and mark steps where they are, as object stores have it, which cannot rename; None: by the path.
    """

    def __init__(self, directory, config=None, peers=None, in_place: bool | None = None, run: dict | None = None):
        self._directory = epath.Path(directory)
        self._config, self._peers, self._run = config, peers or Alone(), run
        self._in_place = "://" in str(directory) if in_place is None else in_place
        self._thread: threading.Thread | None = None  # that waits for the step `_saving`
        self._failure: BaseException | None = None
        self._stages = saving.Stages(self._directory, self._peers)
        if config is not None:
            self._hook = sys.excepthook
            sys.excepthook = self._quiet = _without_closed_loops(sys.excepthook)

    @functools.cached_property
    def _ocp(self):
        """Orbax, from the first save or restore on: a new run's first step need not wait for its import."""
        import orbax.checkpoint

        return orbax.checkpoint

    @functools.cached_property
    def _reader(self):
        return self._ocp.CompositeCheckpointHandler()

    @functools.cached_property
    def _writer(self):
        return self._stages.writer(self._in_place)

    def steps(self) -> list[int]:
        """Steps that count (validity.py), oldest first: none that is being written."""
        return validity.steps(self._directory)

    # ---- saving

    def save(self, items: dict[str, dict], step: int, then=lambda: None, **data) -> None:
        """Starts writing {folder: plain nested dict of arrays}, which may be donated when this returns. Raises
        CheckpointFailed, in all processes, if the last save did or if one process cannot start this one; what fails later
        is raised by the next save or `wait`.

        then: called by process 0, in a thread, when the step is whole; what it raises, the save has failed with.
        data: JSON values kept in the manifest; those of process 0 count.
        """
        self.wait()
        self._stages.next_save()
        try:
            begun = self._stages.together("begun", lambda: self._begin(step, items))
            self._stages.together("started", lambda: self._start(step, items, data))
        except saving.CheckpointFailed:
            self._give_up(step)
            raise
        self._saving = step
        self._thread = threading.Thread(target=self._finish, args=(step, begun, data, then), name="manifest")
        self._thread.start()

    def _begin(self, step: int, items) -> dict:
        """{name: (shape, dtype, what checksums.finish takes)}. Process 0 makes room, and sees whether it can write there: what
        it finds out in the middle of Orbax's save, the others would wait for."""
        if self._peers.index == 0:
            with contextlib.suppress(OSError):  # it may go on, in a folder that no other save writes into
                validity.remove_unfinished(self._directory)  # what a failed save wrote after it was cleaned up
            validity.remove(self._folder(step))
            temporary = self._directory / self._stages.temporary_name(step)
            temporary.mkdir(parents=True)
            temporary.rmdir()
        return {name: (leaf.shape, str(leaf.dtype), checksums.begin(leaf)) for name, leaf in named(items).items()}

    def _start(self, step: int, items, data: dict) -> None:
        meta = self._ocp.args.JsonSave({"schema": validity.SCHEMA, "step": step, **data})
        args = {name: self._ocp.args.StandardSave(tree, self._chunked(tree)) for name, tree in items.items()}
        self._writer.save(self._folder(step), args=self._ocp.args.Composite(meta=meta, **args), force=True)

    def _chunked(self, tree):
        return jax.tree.map(lambda _: self._ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), tree)

    def _finish(self, step: int, begun: dict, data: dict, then) -> None:
        """In a thread: the manifest, once the files are there. Process 0 writes it for all."""
        try:
            own = {name: checksums.finish(parts) for name, (_, _, parts) in begun.items()}
            everyones = self._stages.gather("checksums", own)
            self._writer.wait_until_finished()
            if everyones is None:
                return
            arrays = {
                name: {"shape": list(shape), "dtype": dtype, "pieces": [p for each in everyones for p in each[name]]}
                for name, (shape, dtype, _) in begun.items()
            }
            validity.write_manifest(self._folder(step), step, self._config.to_dict(), data, arrays, self._run)
            then()
        except BaseException as error:
            self._failure = error
            self._stages.say_failed(error)

    def remove_old(self, keep: int, keep_every: int | None, keep_steps: tuple[int, ...]) -> None:
        """Deletes the steps that are not kept (validity.remove_old). By process 0."""
        validity.remove_old(self._directory, keep, keep_every, keep_steps)

    def _give_up(self, step: int) -> None:
        """Of a save that has failed, in all processes, which know it. What is there is removed when nobody's writer is at
        work any more: TensorStore waits without end for a write whose folder has been taken away."""
        self._end_writer()
        self._peers.agree("save given up", "")
        self._clean(step)

    def _end_writer(self) -> None:
        """Of a save whose failure is known: Orbax would raise it again, in the next save or when it is closed."""
        with contextlib.suppress(Exception):
            self._writer.wait_until_finished()

    def _clean(self, step: int) -> None:
        """Removes what a failed save has left, which would fill the disk. TensorStore's threads may still write for a moment
        after Orbax has given up, and make again what was just removed: it is done when nothing is left twice in a row."""
        if self._peers.index:
            return
        clean_before = False
        for _ in range(CLEAN_TRIES):
            with contextlib.suppress(Exception):  # such as a folder that is written to while it is removed
                half_written = self._half_written(step)
                if clean_before and not half_written:
                    return
                clean_before = not half_written
                for path in half_written:
                    validity.remove(path)
            time.sleep(CLEAN_SECONDS)

    def _half_written(self, step: int) -> list[epath.Path]:
        """What lies there of saves that did not end, and this step's folder unless the step counts."""
        folder = self._folder(step)
        no_step = folder.exists() and not validity.standing_of(folder).counts
        return validity.unfinished(self._directory) + [folder] * no_step

    def wait(self) -> None:
        """Until the last save is on disk. Raises CheckpointFailed, in all processes, if it is not in one."""
        if self._thread is None:
            return
        self._thread.join()
        error, self._thread, self._failure = self._failure, None, None
        try:
            self._stages.settle("saved", error)
        except saving.CheckpointFailed:
            self._give_up(self._saving)
            raise

    def close(self) -> None:
        """After the last save is on disk, or has failed, which is said here if nobody waited for it."""
        if self._thread is not None:
            self._thread.join()
            if self._failure is not None:
                print(f"gptjax: a checkpoint could not be written: {first_line(self._failure)}", file=sys.stderr)
                self._end_writer()
                if self._peers.count == 1:  # else the writers of others may be at work, and the next run removes it
                    self._clean(self._saving)
        made = vars(self)
        if "_writer" in made:
            self._writer.close()
        if self._config is not None and sys.excepthook is self._quiet:  # not that of another, opened since
            sys.excepthook = self._hook
        if "_reader" in made:
            self._reader.close()

    # ---- restoring

    def restore(self, step: int, like: dict[str, dict]) -> dict[str, dict]:
        """Items of a step, checked. like: {folder: nested dict of shapes, dtypes and shardings}; each item is all there is
        in its folder. Raises UserError if it is not, and Damaged, in all processes, if it is not as it was written: what
        fails once is read once more, since a network or a memory may have erred."""
        known, stored, reason = None, None, ""
        try:
            known = self._description(step).get("arrays") or self._described_by_orbax(step, like)
            stored = as_stored(self._folder(step), known, like)
        except Damaged as error:
            reason = str(error)
        if reason := self._peers.agree("described", reason):
            raise Damaged(reason)
        for _ in range(2):
            items, reason = self._read_once(step, stored)
            reason = reason or self._difference(known, items)
            if not reason:
                return jax.tree.map(_cast, items, like)
            del items  # before there are two
        raise Damaged(f"checkpoint {self._folder(step)} is damaged: {reason}; see gptjax verify.")

    def shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """{"params/embed": shape} of all arrays of a step; {} for one without a manifest. Raises UserError as `meta`."""
        known = self._description(step).get("arrays") or {}
        return {name: tuple(about["shape"]) for name, about in known.items()}

    def meta(self, step: int) -> dict:
        """What `save` was given besides the items. Raises UserError: no such step, a newer schema."""
        return self._description(step)["data"]

    def set_aside(self, step: int, reason: str) -> str:
        """Makes a bad step none. Returns where its files are. Process 0 alone calls it."""
        return validity.set_aside(self._folder(step), reason, rename=not self._in_place)

    def _folder(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _description(self, step: int) -> dict:
        if step not in self.steps():
            standing = self._folder(step).exists() and validity.standing_of(self._folder(step))
            why = f" that counts: it is {standing.state} ({standing.reason})" if standing else ""
            known = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"{self._directory} has no checkpoint of step {step}{why}; there are: {known}.")
        return validity.description(self._folder(step))

    def _described_by_orbax(self, step: int, like: dict) -> dict:
        """{name: {"shape", "dtype"}} of a step of schema 1, which has no manifest."""
        folder, handler = self._folder(step), self._ocp.StandardCheckpointHandler()
        held = [name for name in like if (folder / name).exists()]
        try:
            trees = {name: dict(handler.metadata(folder / name).tree) for name in held}
        except READ_ERRORS as error:
            raise Damaged(f"checkpoint {folder} is damaged: {first_line(error)}.") from error
        return {name: {"shape": leaf.shape, "dtype": str(leaf.dtype)} for name, leaf in named(trees).items()}

    def _read_once(self, step: int, like: dict) -> tuple[dict | None, str]:
        """(items, why they could not be read in one of the processes)."""
        args = {name: self._ocp.args.StandardRestore(tree) for name, tree in like.items()}
        items, reason = None, ""
        try:
            items = dict(self._reader.restore(self._folder(step), args=self._ocp.args.Composite(**args)).items())
        except Exception as error:
            changed = validity.changed_files(self._folder(step), self._description(step))
            bare = type(error) is Exception  # as Orbax hands on what TensorStore says
            if not (isinstance(error, READ_ERRORS) or bare or changed):
                raise  # a mistake of ours, or no memory left
            reason = (
                f"{changed[0]} has changed" if changed else f"{', '.join(like)} cannot be read: {first_line(error)}"
            )
        return items, self._peers.agree("read", reason)

    def _difference(self, known: dict, items: dict) -> str:
        """Which arrays are not those that were saved; "" for none, and where no checksums were kept."""
        if not all("pieces" in each for each in known.values()):
            return ""
        begun = {name: checksums.begin(leaf) for name, leaf in named(items).items()}
        everyones = self._peers.gather("restored", {name: checksums.finish(parts) for name, parts in begun.items()})
        if everyones is None:
            return self._peers.tell("restored", None)
        wrong = [
            name
            for name in begun
            if checksums.total([p for each in everyones for p in each[name]]) != checksums.total(known[name]["pieces"])
        ]
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        return self._peers.tell("restored", f"checksums differ for {shown}" if wrong else "")


def _without_closed_loops(hook):
    """An excepthook without what TensorStore prints when a save has failed: for every array that was on its way, a
    traceback that Orbax's event loop is closed, from a thread of its own. The failure itself is raised by `wait`."""

    def shown(kind, error, trace):
        main = threading.current_thread() is threading.main_thread()
        if main or kind is not RuntimeError or str(error) != "Event loop is closed":
            hook(kind, error, trace)

    return shown


def as_stored(folder, known: dict, like: dict) -> dict:
    """like with the dtypes on disk. Raises UserError: other arrays than the step holds."""
    wanted = named(like)
    held = {name for name in known if name.partition("/")[0] in like}
    if missing := sorted(wanted.keys() - held) or sorted(held - wanted.keys()):
        whose = "the checkpoint" if missing[0] in wanted else "this model"
        raise UserError(
            f"checkpoint {folder} does not hold {', '.join(like)} of this model: {whose} has no {missing[0]}"
            f"{f' nor {len(missing) - 1} others' if len(missing) > 1 else ''}."
        )
    for name, leaf in wanted.items():
        if tuple(known[name]["shape"]) != leaf.shape:
            raise UserError(
                f"checkpoint {folder} does not hold {', '.join(like)} of this model: {name} has shape"
                f" {tuple(known[name]['shape'])} there and {leaf.shape} here."
            )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.ShapeDtypeStruct(
            leaf.shape, known["/".join(_name(key) for key in path)]["dtype"], sharding=leaf.sharding
        ),
        like,
    )


def _cast(array, like):
    return array if array.dtype == like.dtype else array.astype(like.dtype)
