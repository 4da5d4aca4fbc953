"""Every byte of a run's checkpoints against what was written: what `gptjax verify` does. No model, no mesh, no device
but the CPU, and two chunks of an array in memory at a time.
"""

import dataclasses
import math

import jax
from etils import epath

from gptjax.checkpoints import base, checksums, stored, validity
from gptjax.errors import Damaged, UserError, first_line
from gptjax.rundir import metrics, run_directory
from gptjax.storage import folder_kinds


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Of one thing: a step, or a file of the run. state: of validity, or "readable", "unreadable" (not to be read, or not
    the run's own), "missing", "deleted"."""

    name: str
    state: str
    reasons: tuple[str, ...] = ()
    checked_bytes: int = 0
    step: int | None = None

    @property
    def good(self) -> bool:
        return self.state in (validity.VALID, validity.UNVERIFIED, "readable", "deleted")


def verify(
    directory: run_directory.RunDirectory, step: int | None = None, report=lambda outcome: None
) -> list[Outcome]:
    """Of a step or of all, and of what else a run directory holds. report: is given each as it is found.

    Raises UserError: this is no run directory, or has no such step.
    """
    kind = folder_kinds.kind_of(directory.path)
    if kind not in (folder_kinds.RUN, folder_kinds.BEGUN) and (kind in folder_kinds.SAID or not directory.has_traces()):
        directory.config()  # whose message names the kind, and directories of like names
    known = validity.standings(directory.checkpoints)
    chosen = [standing for standing in known if step in (None, standing.step)]
    if step is not None and not chosen:
        there = ", ".join(str(standing.step) for standing in known) or "none"
        raise UserError(f"--step={step}: {directory.checkpoints} has no such step; there are: {there}.")
    outcomes = []
    for check in [*_files(directory), *(lambda s=standing: _step(s) for standing in chosen)]:
        outcomes.append(check())
        report(outcomes[-1])
    return outcomes


# ---- steps


def _step(standing: validity.Standing) -> Outcome:
    name, step = standing.path.name, standing.step
    if standing.state != validity.VALID:
        return Outcome(name, standing.state, (standing.reason,), step=step)
    manifest = validity.read_manifest(standing.path)
    if manifest["schema"] > validity.SCHEMA:
        return Outcome(name, "newer", (f"schema {manifest['schema']}; update gptjax",), step=step)
    return outcome_of_arrays(standing, manifest)


def outcome_of_arrays(standing: validity.Standing, manifest: dict) -> Outcome:
    """Of every piece of every array of a step, and of its small files."""
    reasons, checked = [f"{name} has changed" for name in validity.changed_files(standing.path, manifest)], 0
    for name, about in manifest["arrays"].items():
        try:
            reasons += wrong_pieces(standing.path, name, about)
        except Damaged as error:
            reasons.append(f"{name} cannot be read: {error}")
        checked += math.prod(about["shape"]) * jax.numpy.dtype(about["dtype"]).itemsize
    of_base = base.of(manifest)
    if of_base is not None and (wrong := of_base.wrong()):
        reasons.append(f"its frozen parameters lie in {of_base}: {wrong}")
    if reasons and not (standing.path / validity.MANIFEST).exists():
        return Outcome(standing.path.name, "deleted", ("by a run that goes on",), step=standing.step)
    state = validity.DAMAGED if reasons else validity.VALID
    return Outcome(standing.path.name, state, tuple(reasons), checked, standing.step)


def wrong_pieces(path: epath.Path, name: str, about: dict) -> list[str]:
    """What is wrong with the pieces of an array of a step. Raises Damaged: one cannot be read."""
    array = stored.open_array(path, name)
    if tuple(array.shape) != tuple(about["shape"]):
        return [f"{name} has shape {tuple(array.shape)}, {tuple(about['shape'])} was written"]
    wrong = []
    for piece in about["pieces"]:
        start, shape = piece["start"], piece["shape"]
        if checksums.as_hex(checksums.add(_lanes(array, start, shape))) != piece["checksum"]:
            where = ", ".join(f"{begin}:{begin + size}" for begin, size in zip(start, shape))
            wrong.append(f"{name}[{where}] has another checksum")
    return wrong


def _lanes(array, start, shape):
    """Of the chunks of a piece, the next one being read while one is summed."""
    before = None
    for chunk in stored.chunks(array, start, shape):
        reading = chunk, stored.begin_read(array, chunk)
        if before is not None:
            yield _lanes_of_chunk(*before, array.shape)
        before = reading
    yield _lanes_of_chunk(*before, array.shape)


def _lanes_of_chunk(chunk, future, shape):
    return checksums.lanes_on_host(stored.result(future), [first for first, _ in chunk], shape)


# ---- the rest of a run directory


def _files(directory: run_directory.RunDirectory) -> list:
    """A check of each."""
    return [
        lambda: _read("config.json", directory.path / "config.json", lambda _: directory.config()),
        lambda: _read("manifest.json", directory.path / "manifest.json", lambda _: directory.manifest()["data"]),
        lambda: _metrics(directory.metrics),
        lambda: _read("tokenizer", directory.tokenizer, lambda _: directory.read_tokenizer()),
    ]


def _read(name: str, path: epath.Path, read) -> Outcome:
    if not path.exists():
        return Outcome(name, "missing")
    try:
        read(path)
    except Exception as error:  # whatever a damaged file makes of a reader
        return Outcome(name, "unreadable", (first_line(error),))
    return Outcome(name, "readable")


def _metrics(file: epath.Path) -> Outcome:
    """Readable with a torn line: whoever reads it leaves that out."""
    if not file.exists():
        return Outcome("metrics.jsonl", "missing")
    torn = metrics.torn_lines(file)
    return Outcome("metrics.jsonl", "readable", (f"{torn} of its lines are torn and left out",) if torn else ())
