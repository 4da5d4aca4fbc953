"""A folder that `gptjax prepare` fills: whether it may be filled, by whom, and what of it is done already.

    work/settings.json       what the folder is made of; written first
    work/NAME.json           a record of each part that is done, written whole when it is
    work/lock, lock.workers  held by the process that fills the folder, and by its workers

`work` goes when the manifest is there. Once a part is done, other settings than those it was begun with are refused;
nothing is deleted for them. Local folders are locked; on gs:// two commands that fill one folder at once are not noticed.
"""

import contextlib
import fcntl
import json
import pathlib
import time
from collections.abc import Iterator

from etils import epath

from gptjax.errors import UserError, shorten
from gptjax.storage import folder_kinds
from gptjax.storage.writing import replace_whole

WORK = "work"
_LOCK, _WORKERS_LOCK = "lock", "lock.workers"
_SECONDS_TO_END = 20  # of workers whose parent was killed


def check_free(folder) -> None:
    """Raises UserError: the folder holds something that is not of `gptjax prepare`, or is a file."""
    folder = epath.Path(folder)
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--out={folder} is a file; give a folder that is new or empty.")
    kind = folder_kinds.kind_of(folder)
    if kind in (folder_kinds.EMPTY, folder_kinds.SHARDS, folder_kinds.UNFINISHED) or (folder / WORK).exists():
        return
    raise UserError(f"--out={folder} is {folder_kinds.said(folder)}; give a folder that is new or empty.")


def finished_settings(folder) -> dict | None:
    """The settings of a finished folder; None: it is not finished. Raises UserError: others than prepare made it."""
    manifest = read_json(epath.Path(folder) / "manifest.json")
    if manifest is None:
        return None
    if not isinstance(manifest.get("settings"), dict):
        raise UserError(f"--out={folder} has a manifest.json that gptjax prepare did not write; give another folder.")
    return manifest["settings"]


def begin(folder, settings: dict) -> None:
    """Writes the settings, or compares them with those there are.

    Raises UserError: they differ, and a part of the folder is done with the others.
    """
    path = epath.Path(folder) / WORK / "settings.json"
    kept = read_json(path)
    if kept is not None and _is_any_done(folder):
        check_same(folder, kept, settings)
    elif kept != json.loads(json.dumps(settings)):
        abandon(folder)
        write_json(path, settings)


def _is_any_done(folder) -> bool:
    names = {path.name for path in (epath.Path(folder) / WORK).iterdir()}
    return any(name.endswith(".json") for name in names - {"settings.json"})


def abandon(folder) -> None:
    """Removes what was begun, of which nothing can be used: the same command, mended, may begin anew."""
    work = epath.Path(folder) / WORK
    for path in [*epath.Path(folder).iterdir(), *(work.iterdir() if work.exists() else ())]:
        if folder_kinds.SHARD.fullmatch(path.name):
            path.rmtree()
        elif path.parent == work and path.name not in (_LOCK, _WORKERS_LOCK):
            path.rmtree() if path.is_dir() else path.unlink()


def check_same(folder, kept: dict, settings: dict) -> None:
    """Raises UserError that names what differs."""
    changes = list(_differences(kept, json.loads(json.dumps(settings)), ""))
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise UserError(
            f"--out={folder} was begun with other settings: {'; '.join(changes[:3])}{more}. Use those settings, give"
            " another --out, or remove it."
        )


def _differences(old, new, name: str) -> Iterator[str]:
    """What differs in JSON values, by name: "val_fraction was 0.1, now 0.2"."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new)):
            about = a.get("path") if isinstance(a, dict) else None
            yield from _differences(a, b, f"{name} of {about}" if about else f"{name}[{i}]")
    elif old != new:
        yield f"{name} was {_short(old)}, now {_short(new)}"


def _short(value) -> str:
    if isinstance(value, list):
        return f"{len(value)} items"
    return shorten(json.dumps(value), 60)


# ---- records


def record_path(folder, name: str):
    return epath.Path(folder) / WORK / f"{name}.json"


def write_record(folder, name: str, value: dict) -> None:
    write_json(record_path(folder, name), value)


def read_record(folder, name: str) -> dict | None:
    """None: that part is not done."""
    return read_json(record_path(folder, name))


def write_json(path, value: dict) -> None:
    """All of it or nothing, also where the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path) -> dict | None:
    """None: there is no such file. Raises UserError: it is no JSON object."""
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} was altered ({error}); {_mend(path)}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} was altered (it holds no JSON object); {_mend(path)}.")
    return value


def _mend(path) -> str:
    """Only the records are removed, which gptjax made; never the folder that they lie in."""
    kept = path.parent.name == WORK
    return f"remove {path.parent} and run the command again" if kept else "restore it, or give another folder"


def end(folder) -> None:
    """Removes the records: the folder is complete."""
    work = epath.Path(folder) / WORK
    if work.exists():
        work.rmtree()


# ---- one command at a time


@contextlib.contextmanager
def sole_writer(folder) -> Iterator[None]:
    """Raises UserError: another command fills the folder. Workers of one that was killed are waited for."""
    if "://" in str(folder):
        yield
        return
    work = pathlib.Path(folder) / WORK
    work.mkdir(parents=True, exist_ok=True)
    with (work / _LOCK).open("w") as lock, (work / _WORKERS_LOCK).open("w") as workers:
        if not _locked(lock, fcntl.LOCK_EX):
            raise UserError(f"another gptjax prepare is filling --out={folder}; wait for it, or give another folder.")
        until = time.monotonic() + _SECONDS_TO_END
        while not _locked(workers, fcntl.LOCK_EX):
            if time.monotonic() > until:
                raise UserError(f"workers of an earlier gptjax prepare still fill --out={folder}; end them first.")
            time.sleep(0.05)
        fcntl.flock(workers, fcntl.LOCK_UN)
        yield


def hold_as_worker(folder):
    """The open lock that tells a later command that this process still writes; until it is closed or the process ends."""
    if "://" in str(folder):
        return None
    lock = (pathlib.Path(folder) / WORK / _WORKERS_LOCK).open("w")
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def _locked(file, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
