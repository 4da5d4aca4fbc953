"""A folder of tokens, as `gptjax prepare` and the cache make it: shards of each split, the tokenizer, a manifest.

    train-00000-of-00001/, val-...    shards (see `shards`)
    tokenizer.json, tokenizer.model   the tokenizer
    manifest.json                     written last: what the text was, counts, size and SHA-256 of every file

A folder that is not complete, or was altered, is refused by the name of the file. It may lie on gs://.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
from collections.abc import Iterator

import numpy as np
from etils import epath

from gptjax.data.tokenizers.base import Tokenizer
from gptjax.data.tokenizers.folder import load_tokenizer, save_tokenizer
from gptjax.data.tokens.shards import WEIGHTS, Tokens, open_shard
from gptjax.errors import UserError
from gptjax.storage import folder_kinds
from gptjax.storage.writing import replace_whole

FORMAT = 4  # of the folder; raise it when the same config and text give other files
SPLITS = ("train", "val")
# Files are held against their SHA-256 at the start, the smallest first, up to so many bytes in all. The others against
# their size, and tokens block by block when they are read.
_HASHED_BYTES = {"local": 1_000_000_000, "remote": 50_000_000}


@dataclasses.dataclass(frozen=True)
class TextStore:
    """The tokens of one source."""

    train: Tokens
    val: Tokens
    fingerprint: str  # hex; equal for equal tokens and tokenizer, wherever and whenever they were made
    description: dict  # JSON values: the source, the tokenizer, what each split holds, the folder
    training_text: str  # what error messages call it


def open_folder(folder, name: str | None = None) -> tuple[Tokenizer, TextStore]:
    """The tokenizer and the tokens in a folder. Raises UserError: a file is missing or altered."""
    folder = epath.Path(folder).expanduser()
    manifest = _checked_manifest(folder)
    tokenizer = load_tokenizer(folder)
    splits = {split: _open_tokens(folder, manifest, split) for split in SPLITS}
    content = {shard: entry for entries in manifest["shards"].values() for shard, entry in entries.items()}
    fingerprint = digest({"format": manifest["format"], "tokenizer": tokenizer.hash, "files": content})
    about = {k: v for k, v in manifest.items() if k not in ("files", "shards")}
    said = "the training text" if name is None else f"the training text of {name!r}"
    return tokenizer, TextStore(
        **splits, fingerprint=fingerprint, description=about | {"folder": str(folder)}, training_text=said
    )


# ---- writing


def with_end(ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """The tokens of a whole document: with end-of-text, if the tokenizer has it."""
    if tokenizer.eot_id is None:
        return ids
    whole = np.empty(len(ids) + 1, ids.dtype)  # np.append takes five times as long, which short documents notice
    whole[:-1] = ids
    whole[-1] = tokenizer.eot_id
    return whole


def write_manifest(folder, about: dict, tokenizer: Tokenizer, shards: dict, **counts: dict[str, int]) -> None:
    """Completes a folder of shards. about: JSON values on the text; shards: {split: {name: what its writer's close()
    returned}}; counts: more counts of each split."""
    folder = epath.Path(folder)
    save_tokenizer(tokenizer, folder)
    files = {name: _size_and_hash(folder / name) for name in ("tokenizer.json", "tokenizer.model")}
    summed = ("documents", "tokens", "bytes") + (("targets",) if "chat" in about else ())
    splits = {
        split: {count: sum(entry[count] for entry in entries.values()) for count in summed}
        | {count: n[split] for count, n in counts.items()}
        for split, entries in shards.items()
    }
    manifest = about | {
        "format": FORMAT,
        "tokenizer": about.get("tokenizer", {})
        | {"kind": tokenizer.kind, "hash": tokenizer.hash, "vocab_size": tokenizer.vocab_size},
        "dtype": token_dtype(tokenizer).name,
        "splits": splits,
        "shards": shards,
        "files": files,
    }
    replace_whole(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


def _size_and_hash(path) -> dict:
    data = path.read_bytes()
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def digest(value: dict) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# ---- checking


def read_manifest(folder) -> dict:
    """What manifest.json says, its files not looked at. Raises UserError: it is missing, damaged, or of another format."""
    kind = folder_kinds.kind_of(folder)
    path, mend = folder / "manifest.json", _mend(folder)
    if kind == folder_kinds.UNFINISHED:
        raise UserError(
            f"{folder} has no manifest.json, the last file to be written: it is {folder_kinds.said(folder)}."
        )
    if kind != folder_kinds.SHARDS and not _has_shards(folder):
        raise UserError(f"{folder} is {folder_kinds.said(folder)}; expected a folder of gptjax prepare.")
    if not path.exists():
        raise UserError(f"{folder} has no manifest.json, the last file to be written; {mend}.")
    try:
        manifest = json.loads(path.read_text())
        if manifest["format"] != FORMAT:
            raise UserError(f"{folder} has format {manifest['format']}, and {FORMAT} is read here; make it again.")
        {name: (file["size"], file["sha256"]) for name, file in all_files(manifest)}
        np.dtype(manifest["dtype"])
        for split in SPLITS:
            [int(entry["tokens"]) for entry in manifest["shards"][split].values()]
            int(manifest["splits"][split]["bytes"])
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error}); {mend}.") from error
    return manifest


def _has_shards(folder) -> bool:
    """Whether folders named as shards are lie in it, so that gptjax made it, whatever its manifest says."""
    return folder.is_dir() and any(folder_kinds.SHARD.fullmatch(entry.name) for entry in folder.iterdir())


def _mend(folder) -> str:
    return f"it is damaged or not complete: remove {folder} and make it again"


def _checked_manifest(folder) -> dict:
    manifest, mend = read_manifest(folder), _mend(folder)
    files = {name: (file["size"], file["sha256"]) for name, file in all_files(manifest)}
    for entry in sorted(folder.iterdir()):
        if (
            entry.name.partition("-")[0] in SPLITS
            and entry.name not in manifest["shards"][entry.name.partition("-")[0]]
        ):
            raise UserError(f"{entry} is not in its manifest; {mend}.")
    found = _sizes(folder, files)
    left = _HASHED_BYTES["remote" if "://" in str(folder) else "local"]
    for name, (size, sha256) in sorted(files.items(), key=lambda item: item[1]):
        file = folder / name
        if found[name] is None:
            raise UserError(f"{file} is missing; {mend}.")
        if found[name] != size:
            raise UserError(f"{file} has {found[name]} bytes, but was written with {size}; {mend}.")
        left -= size
        if left >= 0 and _hash_of_file(file) != sha256:
            raise UserError(f"{file} was altered after it was written; {mend}.")
    return manifest


def _sizes(folder, names) -> dict[str, int | None]:
    """Bytes of files in a folder; None: missing. In threads where each is a request to a store, and there are thousands."""

    def size(name: str) -> int | None:
        file = folder / name
        return file.stat().length if file.exists() else None

    if "://" not in str(folder):
        return {name: size(name) for name in names}
    with concurrent.futures.ThreadPoolExecutor(32) as threads:
        return dict(zip(names, threads.map(size, names)))


def all_files(manifest: dict) -> Iterator[tuple[str, dict]]:
    """(path in the folder, {"size", "sha256"}) of every file but the manifest."""
    yield from manifest["files"].items()
    for entries in manifest["shards"].values():
        for shard, entry in entries.items():
            yield from ((f"{shard}/{name}", file) for name, file in entry["files"].items())


def _hash_of_file(path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while data := stream.read(1 << 22):
            digest.update(data)
    return digest.hexdigest()


def _open_tokens(folder, manifest: dict, split: str) -> Tokens:
    entries, counts = manifest["shards"][split], manifest["splits"][split]
    shards = [
        open_shard(folder / name, entry["tokens"], manifest["dtype"], entry["files"]["documents.bin"]["sha256"])
        for name, entry in entries.items()
    ]
    if "chat" not in manifest:
        return Tokens(shards, counts["bytes"])
    weights = Tokens(
        [open_shard(folder / name / WEIGHTS, entry["tokens"], "float32") for name, entry in entries.items()]
    )
    return Tokens(shards, counts["bytes"], weights, counts["targets"])
