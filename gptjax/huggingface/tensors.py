"""safetensors files, one or sharded with an index, read and written tensor by tensor."""

import json

import ml_dtypes  # safetensors knows bfloat16 once this is there
import numpy as np

from gptjax.errors import UserError

bfloat16 = np.dtype(ml_dtypes.bfloat16)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = "model-{:05}-of-{:05}.safetensors"


class Reader:
    """The tensors of a folder by name, each read when asked for. Use it in a `with`."""

    def __init__(self, folder):
        self._folder, self._open = folder, {}
        self._file_of = _files_by_tensor(folder)

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def __iter__(self):
        return iter(self._file_of)

    def read(self, name: str) -> np.ndarray:
        """Raises UserError: a damaged file."""
        file = self._file_of[name]
        try:
            if file not in self._open:
                self._open[file] = _safe_open(self._folder / file)
            return self._open[file].get_tensor(name)
        except Exception as error:  # safetensors raises its own
            raise UserError(f"{self._folder / file}: {name} cannot be read: {error}; copy the file anew.") from error

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error) -> None:
        self._open.clear()


def _safe_open(path):
    import safetensors

    return safetensors.safe_open(str(path), framework="np")


def _files_by_tensor(folder) -> dict[str, str]:
    if (folder / INDEX).exists():
        try:
            files = json.loads((folder / INDEX).read_text())["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder / INDEX} cannot be read: {error!r}; copy the file anew.") from error
        missing = sorted({file for file in files.values() if not (folder / file).exists()})
        if missing:
            raise UserError(f"{folder} lacks {', '.join(missing)}, which {INDEX} names; copy them too.")
        return files
    if (folder / SINGLE).exists():
        try:
            return dict.fromkeys(_safe_open(folder / SINGLE).keys(), SINGLE)
        except Exception as error:
            raise UserError(f"{folder / SINGLE} cannot be read: {error}; copy the file anew.") from error
    pickled = [path.name for path in folder.iterdir() if path.name.endswith((".bin", ".pt", ".h5", ".msgpack"))]
    hint = (
        f"{pickled[0]} could run any code when it is loaded: load it in transformers and call"
        " save_pretrained(DIR, safe_serialization=True)"
        if pickled
        else "expected a folder that save_pretrained of transformers wrote"
    )
    raise UserError(f"{folder} has no {SINGLE}; {hint}.")


class Writer:
    """A folder's tensors, in shards of at most max_bytes. Tensors of a shard are held until it is full."""

    def __init__(self, folder, sizes: dict[str, int], max_bytes: int):
        self._folder = folder
        self._shards = _shards(sizes, max_bytes)
        self._file_of = {
            name: SINGLE if len(self._shards) == 1 else _SHARD.format(i + 1, len(self._shards))
            for i, names in enumerate(self._shards)
            for name in names
        }
        self._total = sum(sizes.values())
        self._held = {}

    def write(self, name: str, array: np.ndarray) -> None:
        """In the order of sizes."""
        self._held[name] = np.ascontiguousarray(array)
        if list(self._held) == self._shards[0]:
            from safetensors.numpy import save_file

            save_file(self._held, str(self._folder / self._file_of[name]), metadata={"format": "pt"})
            self._held = {}
            self._shards = self._shards[1:]

    def finish(self) -> None:
        assert not self._held and not self._shards
        if SINGLE not in self._file_of.values():
            index = {"metadata": {"total_size": self._total}, "weight_map": self._file_of}
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _shards(sizes: dict[str, int], max_bytes: int) -> list[list[str]]:
    shards, held = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and held + size > max_bytes:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += size
    return shards
