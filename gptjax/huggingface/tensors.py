"""safetensors files, one or sharded with an index, read and written tensor by tensor."""

import json
import pathlib

import ml_dtypes  # safetensors knows bfloat16 once this is there
import numpy as np

from gptjax.errors import UserError

bfloat16 = np.dtype(ml_dtypes.bfloat16)
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARD = "model-{:05}-of-{:05}.safetensors"


class Reader:
    """The tensors of a folder by name, each read when asked for. Use it in a `with`. notes: on files that are not read."""

    def __init__(self, folder):
        self._folder, self._open, self.notes = folder, {}, []
        self._file_of = _files_by_tensor(folder)
        if (folder / SINGLE).exists() and (folder / INDEX).exists():
            self.notes.append(f"{INDEX} and its files are not read: {SINGLE} goes before them, as for transformers")

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
            raise UserError(f"{self._folder / file}: {name} cannot be read: {error}; copy the file again.") from error

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error) -> None:
        self._open.clear()


def _safe_open(path):
    import safetensors

    return safetensors.safe_open(str(path), framework="np")


def _files_by_tensor(folder) -> dict[str, str]:
    of_index = _files_of_index(folder) if (folder / INDEX).exists() else None  # refused beside a single file, too
    if (folder / SINGLE).exists():
        return dict.fromkeys(_names_in(folder, SINGLE), SINGLE)
    if of_index is not None:
        return of_index
    pickled = [path.name for path in folder.iterdir() if path.name.endswith((".bin", ".pt", ".h5", ".msgpack"))]
    hint = (
        f"{pickled[0]} could run any code when it is loaded: load it in transformers and call"
        " save_pretrained(DIR, safe_serialization=True)"
        if pickled
        else "expected a folder that save_pretrained of transformers wrote"
    )
    raise UserError(f"{folder} has no {SINGLE}; {hint}.")


def _files_of_index(folder) -> dict[str, str]:
    """The file of each tensor, of those that an index names. Raises UserError: it names others than those of its folder,
    or tensors that they lack."""
    try:
        files = dict(json.loads((folder / INDEX).read_text())["weight_map"])
        outside = sorted({file for file in files.values() if not _stays_inside(file)})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / INDEX} cannot be read: {error!r}; copy the file again.") from error
    if outside:
        raise UserError(
            f"{folder / INDEX} names {outside[0]!r}, which lies outside of its folder; expected files beside it: copy them"
            " there and name them so, if you trust them."
        )
    missing = sorted({file for file in files.values() if not (folder / file).exists()})
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}, which {INDEX} names; copy them too.")
    stored = {(name, file) for file in sorted(set(files.values())) for name in _names_in(folder, file)}
    if lacking := sorted(files.items() - stored):
        name, file = lacking[0]
        raise UserError(f"{folder / file} has no {name}, which {INDEX} says it has; copy both files again.")
    return dict(sorted(stored)) | files  # transformers reads what the index leaves out, too


def _stays_inside(file: str) -> bool:
    """Whether a path of an index leads to a file of its folder, by its words; a link there may lead elsewhere, as those
    of Hugging Face's cache do. Raises TypeError: it is no path."""
    paths = (pathlib.PurePosixPath(file), pathlib.PureWindowsPath(file))
    return "://" not in file and not any(path.is_absolute() or path.drive or ".." in path.parts for path in paths)


def _names_in(folder, file: str) -> list[str]:
    try:
        return list(_safe_open(folder / file).keys())
    except Exception as error:  # safetensors raises its own
        raise UserError(f"{folder / file} cannot be read: {error}; copy the file again.") from error


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
    shards, bytes_of_last = [[]], 0
    for name, size in sizes.items():
        if shards[-1] and bytes_of_last + size > max_bytes:
            shards.append([])
            bytes_of_last = 0
        shards[-1].append(name)
        bytes_of_last += size
    return shards
