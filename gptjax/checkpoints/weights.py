"""Parameters of a checkpoint, chunk by chunk from disk into what stays loaded, in any dtype, on any mesh.

Beside what stays, a few chunks (AHEAD_BYTES) are in memory: each is read, summed into the checksum of its piece, and cast
to its place. On a CPU that place is the array itself, which JAX takes over without a copy; for an accelerator it is a
buffer for one shard of one array. A process reads the chunks that its devices hold, and whatever else belongs to the
pieces they are checked by, each chunk once.
"""

import collections
import math

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gptjax.checkpoints import base as bases
from gptjax.checkpoints import checksums, stored, validity
from gptjax.checkpoints.checkpointer import as_stored, named
from gptjax.errors import Damaged
from gptjax.parallel import numerics

AHEAD_BYTES = 96 * 2**20  # being read at a time: two chunks of 64 MiB overlap
ALIGNMENT = 64  # bytes: a NumPy array that begins so is taken over by JAX on a CPU


@numerics.settings()
def read(folder, item: str, abstract, shardings, dtype=None, others: bool = False) -> dict:
    """The arrays "params" or "ema" of the step in a folder: a tree like abstract, laid out by shardings.

    dtype: None: as they are stored. others: whether the step may hold more of the item; it may always hold a critic, which
    few want. Raises UserError: other arrays than abstract has, a newer schema; Damaged: they are not as they were written
    (of schema 1, which kept no checksums, as far as TensorStore can tell). What the step has left in its base is read from
    there.
    """
    base = bases.of(validity.description(folder))
    if base is None:
        return _read_own(folder, item, abstract, shardings, dtype, others)
    own, of_base = ({}, {}), ({}, {})
    held = validity.description(folder)["arrays"]
    for (name, leaf), place in zip(flatten_dict(abstract, sep="/").items(), flatten_dict(shardings, sep="/").values()):
        leaves, places = own if f"{item}/{name}" in held else of_base
        leaves[name], places[name] = leaf, place
    own, of_base = ([unflatten_dict(tree, sep="/") for tree in each] for each in (own, of_base))
    if not of_base[0]:
        return _read_own(folder, item, *own, dtype, others)
    frozen = read_base(base, *of_base, np.float32 if item == "ema" and dtype is None else dtype)
    return joined(_read_own(folder, item, *own, dtype, others), frozen)


def joined(a: dict, b: dict) -> dict:
    """Two nested dicts without a common leaf as one."""
    return unflatten_dict(flatten_dict(a) | flatten_dict(b))


def read_base(base: bases.Base, abstract, shardings, dtype=None) -> dict:
    """The parameters of a tree that lie in a base, as `read`; what is kept in bytes here is made of what lies there. Raises
    UserError: the base is not what it was."""
    from gptjax.models import int8

    base.check()
    scales = int8.scales_in(abstract)
    without_scales = {path: leaf for path, leaf in flatten_dict(shardings).items() if path not in scales}
    there = int8.in_floats(abstract), unflatten_dict(without_scales)
    try:
        params = read(base.folder, "params", *there, dtype, others=True)
        return int8.with_bytes(params, abstract, shardings) if scales else params
    except Damaged as error:
        raise base.refused(f"it is damaged: {error}") from error


def _read_own(folder, item: str, abstract, shardings, dtype, others: bool) -> dict:
    """`read` of what lies in the folder itself."""
    like = {item: jax.tree.map(_placed, abstract, shardings)}
    known = validity.description(folder).get("arrays")
    if known is not None:
        wanted = named(like)
        known = {
            name: about
            for name, about in known.items()
            if name in wanted or not (others or is_of_critic(name.removeprefix(f"{item}/")))
        }
    try:
        stores = {name: stored.open_array(folder, name) for name in named(like)}
    except Damaged:
        if known is not None:
            as_stored(folder, known, like)  # whose message is of another model
        raise
    known = known or {
        name: {"shape": tuple(store.shape), "dtype": str(store.dtype.name)} for name, store in stores.items()
    }
    as_stored(folder, known, like)
    fillings = [_Filling(name, stores[name], known[name], leaf.sharding, dtype) for name, leaf in named(like).items()]
    fillings.sort(key=lambda filling: -filling.num_bytes)  # so that little is in flight when nearly all is loaded
    arrays = dict(_filled(fillings))
    return jax.tree_util.tree_map_with_path(
        lambda path, _: arrays["/".join((item, *(key.key for key in path)))], abstract
    )


def is_of_critic(name: str) -> bool:
    """Whether a parameter, such as "critic/value/weight", is one of a critic's."""
    return name.startswith("critic/")


def _placed(leaf, place):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def _filled(fillings):
    """(name, array) of each. What fails once is read once more, since a network or a memory may have erred."""
    left = {filling.name: filling.count_jobs() for filling in fillings}
    again = set()
    for filling, job, outcome in _reading(fillings):
        if isinstance(outcome, Damaged):
            again.add(filling.name)
        else:
            filling.take(*job, outcome)
        left[filling.name] -= 1
        if left[filling.name] == 0:
            if filling.name in again or filling.wrong():
                filling.fill_again()
            yield filling.name, filling.finish()


def _reading(fillings):
    """(filling, job, its values or Damaged) of all jobs in order, AHEAD_BYTES being read."""
    waiting, ahead = collections.deque(), 0
    for filling in fillings:
        for job in filling.jobs():
            waiting.append((filling, job, stored.begin_read(filling.store, job[1])))
            ahead += filling.job_bytes(job)
            while ahead > AHEAD_BYTES and len(waiting) > 1:
                filling_then, job_then, _ = waiting[0]
                ahead -= filling_then.job_bytes(job_then)
                yield _outcome(*waiting.popleft())
    while waiting:
        yield _outcome(*waiting.popleft())


def _outcome(filling, job, future):
    try:
        return filling, job, stored.result(future)
    except Damaged as error:
        return filling, job, error


class _Filling:
    """An array that is being read: its parts on this process's devices, and the checksums of its pieces so far."""

    def __init__(self, name: str, store, about: dict, place, dtype):
        self.name, self.store, self._place = name, store, place
        self._shape = tuple(store.shape)
        stored_dtype = store.dtype.numpy_dtype  # an integer is no number that another format could hold
        self._dtype = np.dtype(stored_dtype if dtype is None or np.dtype(stored_dtype).kind in "iu" else dtype)
        self._regions = {
            device: tuple(part.indices(size)[:2] for part, size in zip(index, self._shape))
            for device, index in place.addressable_devices_indices_map(self._shape).items()
        }
        whole = [{"start": [0] * len(self._shape), "shape": list(self._shape)}]
        self._pieces = about.get("pieces", whole)
        self._buffers, self._lanes = {}, {}

    @property
    def num_bytes(self) -> int:
        return math.prod(self._shape) * self.store.dtype.numpy_dtype.itemsize

    def job_bytes(self, job) -> int:
        return math.prod(end - first for first, end in job[1]) * self.store.dtype.numpy_dtype.itemsize

    def jobs(self):
        """(number of a piece, chunk) that this process needs."""
        regions = set(self._regions.values())
        for number, piece in enumerate(self._pieces):
            bounds = [(begin, begin + size) for begin, size in zip(piece["start"], piece["shape"])]
            if not any(_common(bounds, region) is not None for region in regions):
                continue
            for chunk in stored.chunks(self.store, piece["start"], piece["shape"]):
                if "checksum" in piece or any(_common(chunk, region) is not None for region in regions):
                    yield number, chunk

    def count_jobs(self) -> int:
        return sum(1 for _ in self.jobs())

    def take(self, number: int, chunk, values: np.ndarray) -> None:
        if "checksum" in self._pieces[number]:
            lanes = checksums.lanes_on_host(values, [first for first, _ in chunk], self._shape)
            self._lanes[number] = checksums.add([self._lanes.get(number, np.zeros(2, np.uint32)), lanes])
        for region in set(self._regions.values()):
            common = _common(chunk, region)
            if common is not None:
                here, there = _within(common, region), _within(common, chunk)
                self._buffer(region)[here] = values[there]

    def _buffer(self, region) -> np.ndarray:
        if region not in self._buffers:
            self._buffers[region] = _aligned([end - first for first, end in region], self._dtype)
        return self._buffers[region]

    def wrong(self) -> bool:
        found = {number: checksums.as_hex(lanes) for number, lanes in self._lanes.items()}
        return any(self._pieces[number]["checksum"] != checksum for number, checksum in found.items())

    def fill_again(self) -> None:
        """Raises Damaged."""
        self._lanes.clear()
        for job in self.jobs():
            try:
                self.take(*job, stored.result(stored.begin_read(self.store, job[1])))
            except Damaged as error:
                raise Damaged(f"{self.name} cannot be read: {error}") from error
        if self.wrong():
            raise Damaged(f"{self.name} has another checksum")

    def finish(self) -> jax.Array:
        """The array. What was read is given away."""
        buffers, self._buffers = self._buffers, {}
        parts = [jax.device_put(buffers[region], device) for device, region in self._regions.items()]
        return jax.block_until_ready(jax.make_array_from_single_device_arrays(self._shape, self._place, parts))


def _common(a, b):
    """What two boxes of (first, last + 1) have in common; None: nothing."""
    both = [(max(first, start), min(end, stop)) for (first, end), (start, stop) in zip(a, b)]
    return None if any(first >= end for first, end in both) else both


def _within(box, outer):
    return tuple(slice(first - start, end - start) for (first, end), (start, _) in zip(box, outer))


def _aligned(shape, dtype) -> np.ndarray:
    count = math.prod(shape) * dtype.itemsize
    raw = np.empty(count + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count].view(dtype).reshape(shape)
