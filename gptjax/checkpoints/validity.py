"""Which checkpoints can be trusted: the manifest of a step, and what is made of a step without one. Needs no JAX.

    checkpoints/STEP/manifest.json      written when all else of the step is on disk: with it the step is there
        schema, step, written           numbers
        run                             {"id", "tokenizer_hash", "text"}: of which run it is (consistency.py)
        config, data                    the resolved config; rows read so far, batch_hash, whatever `save` was given
        arrays                          {"params/embed": {"shape", "dtype", "pieces": [{"start", "shape", "checksum"}]}}
        files                           {path in the step: bytes}
        digests                         {path in the step: sha256} of the small files that describe the arrays
        sha256                          of all this, as canonical JSON
    checkpoints/STEP.damaged-N          a bad step that a training run has set aside: nobody takes it for one again.
                                        Object stores cannot rename: there STEP/damaged.json says so

A step's standing is told from names and sizes, in milliseconds; whether its bytes are those that were written, by the
checksums, when it is read (checkpointer.py) or by `gptjax verify`. One whose manifest says another step or run than it
lies in is misplaced, and does not count. Checkpoints of schema 1 (before manifests) have no checksums to hold them
against: they count, as unverified.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import time

from etils import epath

from gptjax.checkpoints import consistency
from gptjax.config import bounds
from gptjax.errors import UserError
from gptjax.storage.writing import partial_name, replace_whole

SCHEMA = 2
MANIFEST, ASIDE = "manifest.json", "damaged.json"
VALID, UNVERIFIED, INCOMPLETE, DAMAGED, SET_ASIDE = "valid", "unverified", "incomplete", "damaged", "set aside"
MISPLACED = "misplaced"  # whole, but of another step or run
TEMPORARY = ".orbax-checkpoint-tmp"  # in the names of what Orbax is writing, or was when it was killed


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a step is worth by names and sizes: VALID or UNVERIFIED (both count as steps), or why it does not."""

    step: int
    path: epath.Path
    state: str
    reason: str = ""

    @property
    def counts(self) -> bool:
        return self.state in (VALID, UNVERIFIED)


class Unreadable(Exception):
    """A manifest that is not as it was written."""


def steps(checkpoints) -> list[int]:
    """The steps that count, oldest first."""
    return [standing.step for standing in standings(checkpoints) if standing.counts]


def said(checkpoints) -> str:
    """What there is, for people, by a look at it now."""
    try:
        known = steps(checkpoints)
    except OSError as error:
        return f"what is there cannot be told ({error.strerror or error})"
    if not known:
        return "there is no checkpoint"
    shown = ", ".join(map(str, known[-5:])) + (" and older ones" if len(known) > 5 else "")
    plural = "s" if len(known) > 1 else ""
    return f"there {'are those' if plural else 'is that'} of step{plural} {shown}, whole by names and sizes"


def standings(checkpoints) -> list[Standing]:
    """Of every step in a folder of checkpoints, oldest first; those set aside before are among them."""
    checkpoints = epath.Path(checkpoints)
    found = [] if not checkpoints.exists() else list(checkpoints.iterdir())
    run = consistency.read(checkpoints.parent)
    numbered = [standing_of(path, run) for path in found if _step_named(path.name) is not None]
    aside = [
        Standing(step, path, SET_ASIDE, "found damaged before")
        for path in found
        if ".damaged-" in path.name and (step := _step_named(path.name.partition(".")[0])) is not None
    ]
    return sorted(numbered + aside, key=lambda standing: (standing.step, standing.path.name))


def _step_named(name: str) -> int | None:
    """The step of a folder's name; None: no folder of a step has it."""
    step = bounds.whole_number(name)
    return step if name == str(step) else None


def standing_of(path: epath.Path, run: dict | None = None) -> Standing:
    """Of the step in a folder. run: manifest.json of its run; None: it is read."""
    step = int(path.name)
    run = consistency.read(path.parent.parent) if run is None else run
    try:
        if (path / ASIDE).exists():
            return Standing(step, path, SET_ASIDE, json.loads((path / ASIDE).read_text())["reason"])
        if not (path / MANIFEST).exists():
            return _without_manifest(step, path)
        manifest = read_manifest(path)
        if wrong := consistency.wrong_checkpoint(step, manifest, run):
            return Standing(step, path, MISPLACED, wrong)
    except Unreadable as error:
        return Standing(step, path, DAMAGED, str(error))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not path.exists():  # deleted meanwhile, as the oldest step is by a run that goes on
            return Standing(step, path, INCOMPLETE, "is being deleted")
        return Standing(step, path, DAMAGED, f"cannot be read: {error!r}")
    if wrong := _wrong_files(path, manifest["files"]):
        return Standing(step, path, DAMAGED, wrong)
    return Standing(step, path, VALID)


def _without_manifest(step: int, path: epath.Path) -> Standing:
    """Schema 1 kept none; what later schemas have not finished has none yet, or no more."""
    committed, meta = _json(path / "_CHECKPOINT_METADATA"), _json(path / "meta" / "metadata")
    if not committed.get("commit_timestamp_nsecs"):
        return Standing(step, path, INCOMPLETE, "its writing never ended")
    if meta.get("schema") != 1:
        return Standing(step, path, INCOMPLETE, f"has no {MANIFEST}, which is written last")
    items = [item.name for item in path.iterdir() if item.is_dir() and item.name != "meta"]
    for item in items or ["params"]:
        for name in ("_METADATA", "manifest.ocdbt"):
            if not _size(path / item / name):
                return Standing(step, path, DAMAGED, f"{item}/{name} is missing or empty")
    if wrong := consistency.wrong_checkpoint(step, meta, {}):
        return Standing(step, path, MISPLACED, wrong)
    return Standing(step, path, UNVERIFIED, "schema 1 kept no checksums")


def _json(file: epath.Path) -> dict:
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _size(file: epath.Path) -> int | None:
    try:
        return file.stat().length
    except OSError:
        return None


def _wrong_files(path: epath.Path, files: dict[str, int]) -> str:
    """What is wrong with the first file that is not there with its size; "" if all are."""
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # on object stores each is a request
        sizes = list(pool.map(lambda name: _size(path / name), files))
    for (name, expected), size in zip(files.items(), sizes):
        if size is None:
            return f"{name} is missing"
        if size != expected:
            return f"{name} has {size:,} bytes, {expected:,} were written"
    return ""


# ---- the manifest


def write_manifest(
    path: epath.Path, step: int, config: dict, data: dict, arrays: dict, run: dict | None = None
) -> None:
    """Makes the finished files of a folder a valid step: whole or not at all. run: of `consistency.of_checkpoint`."""
    body = {"schema": SCHEMA, "step": step, "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    body |= {} if run is None else {"run": run}
    files = file_sizes(path)
    digests = file_digests(path, [name for name, size in files.items() if _describes(name, size)])
    body |= {"config": config, "data": data, "arrays": arrays, "files": files, "digests": digests}
    replace_whole(path / MANIFEST, json.dumps(body | {"sha256": digest(body)}, indent=1) + "\n")


def read_manifest(path: epath.Path) -> dict:
    """Of the step in a folder. Raises Unreadable: it is not as it was written."""
    text = (path / MANIFEST).read_bytes()
    try:
        manifest = json.loads(text)
        schema = int(manifest["schema"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Unreadable(f"{MANIFEST} is no manifest: {error!r}") from error
    given = manifest.pop("sha256", None)
    if schema <= SCHEMA and given != digest(manifest):
        raise Unreadable(f"{MANIFEST} is not as it was written: its own checksum differs")
    if not isinstance(manifest.get("files"), dict):
        raise Unreadable(f"{MANIFEST} names no files")
    return manifest


def digest(body: dict) -> str:
    """sha256 of a manifest without its own, as it is kept there."""
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_sizes(path: epath.Path) -> dict[str, int]:
    """{path in the folder: bytes} of everything in it but the manifest."""
    files, folders = {}, [""]
    while folders:
        folder = folders.pop()
        for entry in (path / folder).iterdir() if folder else path.iterdir():
            name = f"{folder}/{entry.name}".lstrip("/")
            if entry.is_dir():
                folders.append(name)
            elif name not in (MANIFEST, partial_name(MANIFEST)):
                files[name] = entry.stat().length
    return dict(sorted(files.items()))


def _describes(name: str, size: int) -> bool:
    """Not the arrays themselves, which have checksums, and lie in folders d of OCDBT."""
    return size <= 2**20 and "/d/" not in name


def file_digests(path: epath.Path, names) -> dict[str, str]:
    """{path in the folder: sha256}; "" of a file that cannot be read."""

    def sha256(name: str) -> str:
        try:
            return hashlib.sha256((path / name).read_bytes()).hexdigest()
        except OSError:
            return ""

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        return dict(zip(names, pool.map(sha256, names)))


def changed_files(path: epath.Path, manifest: dict) -> list[str]:
    """Of the small files of a step, those that are not as they were written."""
    digests = manifest.get("digests", {})
    found = file_digests(path, list(digests))
    return [name for name, digest in digests.items() if found[name] != digest]


def description(path: epath.Path) -> dict:
    """The manifest of a step; of schema 1, what it kept instead: {"schema": 1, "step", "data"}.

    Raises UserError: neither is there, or a newer schema.
    """
    try:
        known = read_manifest(path) if (path / MANIFEST).exists() else _old_description(path)
    except Unreadable as error:
        raise UserError(f"checkpoint {path} is damaged: {error}; take another step, or see gptjax verify.") from error
    if known["schema"] > SCHEMA:
        raise UserError(
            f"checkpoint {path} has schema {known['schema']}, this gptjax reads up to {SCHEMA}; update gptjax."
        )
    return known


def saved_configs(checkpoints) -> list[dict]:
    """The configs of the checkpoints that count and keep one, oldest first, each once."""
    configs = []
    for standing in standings(checkpoints):
        config = description(standing.path).get("config") if standing.counts else None
        if config is not None and config not in configs:
            configs.append(config)
    return configs


def _old_description(path: epath.Path) -> dict:
    meta = _json(path / "meta" / "metadata")
    if "schema" not in meta:
        raise Unreadable(f"it has neither {MANIFEST} nor meta/metadata")
    data = {name: value for name, value in meta.items() if name not in ("schema", "step")}
    return {"schema": meta["schema"], "step": meta.get("step", int(path.name)), "data": data}


# ---- bad and old steps


def set_aside(path: epath.Path, reason: str, rename: bool) -> str:
    """Makes a bad step none, but keeps its files. Returns where they are now. rename: not on object stores."""
    text = json.dumps({"reason": reason, "found": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}) + "\n"
    if not rename:
        (path / ASIDE).write_text(text)
        return str(path / ASIDE)
    number = 1
    while (target := path.parent / f"{path.name}.damaged-{number}").exists():
        number += 1
    path.rename(target)
    (target / ASIDE).write_text(text)
    return str(target)


def remove(path: epath.Path) -> None:
    """Deletes a step. First its manifest: interrupted, it leaves no step that looks whole."""
    (path / MANIFEST).unlink(missing_ok=True)
    path.rmtree(missing_ok=True)


def remove_old(checkpoints, keep: int, keep_every: int | None, keep_steps: tuple[int, ...] = ()) -> None:
    """Deletes all but the newest `keep` steps, keep_steps and those divisible by keep_every; and what is left of others.

    Steps that do not count are not counted. An unfinished one goes if it is older than those kept.
    """
    known = standings(checkpoints)
    good = [standing.step for standing in known if standing.counts]
    kept = {*good[-keep:], *keep_steps} | {
        step for step in good if keep_every is not None and step > 0 and step % keep_every == 0
    }
    for standing in known:
        old = standing.counts or (standing.state == INCOMPLETE and good and standing.step < good[-1])
        if old and standing.step not in kept:
            remove(standing.path)


def unfinished(checkpoints) -> list[epath.Path]:
    """What Orbax is writing, or was writing when it was killed."""
    checkpoints = epath.Path(checkpoints)
    return [path for path in checkpoints.iterdir() if TEMPORARY in path.name] if checkpoints.exists() else []


def remove_unfinished(checkpoints) -> None:
    """Deletes what Orbax was writing when it was killed. Only for who alone writes here, and while nothing is saved."""
    for path in unfinished(checkpoints):
        path.rmtree(missing_ok=True)
