"""The arrays of a checkpoint as they lie on disk, read chunk by chunk with TensorStore: no Orbax, no mesh, no device."""

import itertools

import numpy as np
from etils import epath

from gptjax.checkpoints.checkpointer import READ_ERRORS
from gptjax.errors import Damaged, first_line


def open_array(path: epath.Path, name: str):
    """The TensorStore of an array of a step by its name, such as "params/blocks/mlp/up/weight". Raises Damaged."""
    import tensorstore

    item, _, key = name.partition("/")
    base = str(path / item)
    if base.startswith("gs://"):
        bucket, _, inside = base.removeprefix("gs://").partition("/")
        store = {"driver": "gcs", "bucket": bucket, "path": f"{inside}/"}
    else:
        store = {"driver": "file", "path": f"{base}/"}
    kvstore = {"driver": "ocdbt", "base": store, "path": f"{key.replace('/', '.')}/"}
    return _result(tensorstore.open({"driver": "zarr", "kvstore": kvstore}, read=True))


def chunks(array, start, shape):
    """[(first, last + 1) of each dimension] of the parts of a piece that lie on disk as one."""
    block = array.chunk_layout.read_chunk.shape or ()  # None of a scalar
    edges = [range(begin - begin % size, begin + extent, size) for begin, extent, size in zip(start, shape, block)]
    for corner in itertools.product(*edges):
        yield [
            (max(first, begin), min(first + size, begin + extent))
            for first, begin, extent, size in zip(corner, start, shape, block)
        ]


def begin_read(array, chunk):
    """Starts reading a part of an array; what `result` takes."""
    return array[tuple(slice(*part) for part in chunk)].read()


def result(future) -> np.ndarray:
    """Of begin_read. Raises Damaged."""
    return np.asarray(_result(future))


def _result(future):
    try:
        return future.result()
    except READ_ERRORS as error:
        raise Damaged(first_line(error)) from error
