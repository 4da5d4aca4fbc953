"""Which steps of a run can be trusted. Orbax alone would offer a torn or altered step as the latest.

A step is valid if Orbax marked it as committed, its manifest can be read, and every file has the size it was written
with; its arrays are valid if their checksums are those of the manifest (see `checksums.py`). The manifest is the last
file written into a step before Orbax commits it:

    checkpoints/STEP/manifest.json    {"schema": 2, "step", "config": of the run, "data": what was read so far,
                                       "arrays": {"params/...": {"shape", "dtype", "checksum"}}, "files": {path: bytes}}

Steps of schema 1 have none: they are read, and said to be unverified. A step found damaged is renamed to
STEP.damaged-N; object stores cannot rename, so there it gets a file DAMAGED that says why.
"""

import dataclasses
import json

from etils import epath

from gptjax.errors import UserError

SCHEMA = 2
MANIFEST, MARKER, DAMAGED = "manifest.json", "commit_success.txt", "DAMAGED"
_WRITTEN_LATER = (MANIFEST, MARKER, DAMAGED, "_CHECKPOINT_METADATA")  # than the files were listed


class DamagedStep(UserError):
    """A step of a run is not what was saved."""


@dataclasses.dataclass(frozen=True)
class Condition:
    """Of one step. verdict: valid | unverified (schema 1) | incomplete (saving never ended) | damaged | newer."""

    verdict: str
    reason: str = ""

    @property
    def usable(self) -> bool:
        return self.verdict in ("valid", "unverified")


def write_manifest(folder: epath.Path, facts: dict) -> None:
    """Into a step whose other files are all there. facts: all but the files."""
    text = json.dumps({"schema": SCHEMA, **facts, "files": file_sizes(folder)}, indent=1)
    (folder / MANIFEST).write_text(text + "\n")


def file_sizes(folder: epath.Path, parent: str = "") -> dict[str, int]:
    """{path within the folder: bytes} of every file but those that are written after the manifest's list was made."""
    sizes = {}
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        name = f"{parent}{path.name}"
        if path.is_dir():
            sizes |= file_sizes(path, f"{name}/")
        elif name not in _WRITTEN_LATER and path.name != MARKER:
            sizes[name] = path.stat().length
    return sizes


def read_manifest(folder: epath.Path) -> dict | None:
    """None: a step of schema 1. Raises DamagedStep: there is none and should be, or it cannot be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if isinstance(manifest["files"], dict) and isinstance(manifest["arrays"], dict) and manifest["schema"] >= 2:
            return manifest
        raise DamagedStep(f"{folder / MANIFEST} is not a manifest")
    except FileNotFoundError:
        if _first_schema(folder):
            return None
        raise DamagedStep(f"{folder} has no {MANIFEST}, which is written last: saving it never ended") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedStep(f"{folder / MANIFEST} cannot be read: {error!r}") from error


def _first_schema(folder: epath.Path) -> bool:
    try:
        return json.loads((folder / "meta" / "metadata").read_text())["schema"] == 1
    except (OSError, ValueError, KeyError, TypeError):
        return False


def condition(folder: epath.Path, sizes: bool = True) -> Condition:
    """Of a step by its marker and manifest, and the sizes of its files if asked; no array is read."""
    if (folder / DAMAGED).exists():
        return Condition("damaged", (folder / DAMAGED).read_text().strip())
    if not (folder / MARKER).exists():
        return Condition("incomplete", f"it has no {MARKER}: saving it never ended")
    if not (folder / MANIFEST).exists() and not _first_schema(folder):
        return Condition("incomplete", f"it has no {MANIFEST}, which is written last")
    try:
        manifest = read_manifest(folder)
    except DamagedStep as error:
        return Condition("damaged", str(error))
    if manifest is None:
        return Condition("unverified", "made before checkpoints had checksums (schema 1)")
    if manifest["schema"] > SCHEMA:
        return Condition(
            "newer", f"it has schema {manifest['schema']}, this gptjax reads up to {SCHEMA}: update gptjax"
        )
    wrong = _wrong_size(folder, manifest["files"]) if sizes else None
    return Condition("damaged", wrong) if wrong else Condition("valid")


def _wrong_size(folder: epath.Path, files: dict[str, int]) -> str | None:
    for name, size in files.items():
        try:
            found = (folder / name).stat().length
        except FileNotFoundError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found} bytes instead of {size}"
    return None


def step_folders(checkpoints: epath.Path) -> dict[int, epath.Path]:
    """Every folder named like a step, whatever its condition, oldest first."""
    if not checkpoints.exists():
        return {}
    found = {int(path.name): path for path in checkpoints.iterdir() if path.name.isdigit() and path.is_dir()}
    return dict(sorted(found.items()))


def valid_steps(checkpoints: epath.Path) -> list[int]:
    """Steps with marker and manifest, oldest first."""
    return [step for step, folder in step_folders(checkpoints).items() if condition(folder, sizes=False).usable]


def quarantine(folder: epath.Path, reason: str) -> str:
    """Takes a step out of the run; nothing is deleted. Returns where it is now."""
    (folder / DAMAGED).write_text(reason + "\n")
    if "://" in str(folder):
        return str(folder)
    for number in range(1000):
        aside = folder.parent / f"{folder.name}.damaged-{number}"
        if not aside.exists():
            folder.rename(aside)
            return str(aside)
    raise UserError(f"{folder.parent} holds a thousand damaged steps; find out what destroys them.")
