"""A run that begins with another one's checkpoint: `gptjax train --branch_from=RUN --branch_step=N`.

A branch is what its own config gives from scratch, bit for bit (on the same mesh), less the time its first N steps take:
so one trunk at a constant rate, with a cooldown from each of several checkpoints, is several whole runs (Hägele et al.
2024). That holds where the trunk's first N steps are the branch's own, which is checked before anything is written:

    config      equal but for what its words (changes.py) let a branch change: length and rates, where the text lies, what
                a resume may change
    each step   before N has the same learning rate, batch size and first row under both configs, and in the trunk's log
    text        the same fingerprint and tokenizer
    program     the same code, packages, mesh and kernels; where one is another, that is said and recorded, for it may
                change last digits

The state, verified, becomes the branch's own first checkpoint, and the trunk's rows of metrics.jsonl up to N become its
own, marked `taken_over`: from there on a branch is a run like any other and does not need its trunk. Its lineage stands in
manifest.json under "branched". What it computed itself, so that nothing is counted twice: `own_steps`, `own_flops`.
"""

import dataclasses
import hashlib
import json

import numpy as np

from gptjax import flops, schedule
from gptjax.checkpoints import validity
from gptjax.config import bounds, changes, removed
from gptjax.config.values import from_dict
from gptjax.errors import UserError
from gptjax.rundir import metrics, resuming, run_directory
from gptjax.schedule import Rewinds
from gptjax.storage import folder_kinds


@dataclasses.dataclass(frozen=True)
class Origin:
    """A checkpoint that a run begins with."""

    run: run_directory.RunDirectory
    step: int

    def __str__(self) -> str:
        return f"step {self.step} of {self.run.path}"


def asked(run: str | None, step: str | None) -> Origin | None:
    """What the flags of `gptjax train` ask for. Raises UserError: one without the other, or no number of a step."""
    if run is None and step is None:
        return None
    if run is None or step is None:
        raise UserError("--branch_from=RUN_DIR and --branch_step=N belong together; give both, or neither.")
    if (number := bounds.whole_number(step)) is None:
        raise UserError(f"--branch_step={step} is no step of a run; give the number of a checkpoint of {run}.")
    return Origin(run_directory.open_run(run), number)


def lineage(directory, config, store, origin: Origin | None, allowed: tuple[str, ...], manifest: dict) -> dict:
    """{"branched": {...}} for the manifest of a run that is a branch, else {}. `manifest` is the one about to be written,
    config the resolved one, store the TokenStore.

    A branch that has no checkpoint yet, since it was killed before, is checked anew. Raises UserError: the run cannot
    branch there, or has begun in another way.
    """
    known = directory.manifest().get("branched") if directory.exists() else None
    if directory.exists() and origin is not None:
        _check_same_origin(directory, known, origin)
    if known is not None and directory.steps():
        return {"branched": known}
    if origin is None and known is not None:
        origin = Origin(run_directory.open_run(known["run"]), known["step"])
    return {} if origin is None else {"branched": check(origin, directory, config, store, allowed, manifest)}


def _check_same_origin(directory, known: dict | None, origin: Origin) -> None:
    begun = f"branched from step {known['step']} of {known['run']}" if known else "not branched"
    same = known is not None and known["step"] == origin.step
    if same and str(origin.run.path) != known["run"]:  # it may have been moved
        same = known["checkpoint_sha256"] is not None and digest(origin) == known["checkpoint_sha256"]
    if not same:
        raise UserError(
            f"--branch_from={origin.run.path} --branch_step={origin.step}: the run in {directory.path} was {begun};"
            " leave the two flags out to continue that run, or use a new --workdir."
        )


def digest(origin: Origin) -> str | None:
    """Of the checkpoint's manifest; None of one that has none (schema 1), or is not there."""
    try:
        return json.loads((origin.run.checkpoints / str(origin.step) / validity.MANIFEST).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ---- whether the trunk's first steps are the branch's own


def check(origin: Origin, directory, config, store, allowed: tuple[str, ...], manifest: dict) -> dict:
    """The lineage of a run that begins with a checkpoint. Raises UserError, naming what differs and where.

    allowed: keys that the user lets differ, which make it another run than its config gives from scratch.
    """
    _check_there(origin, directory)
    trunk = config_at(origin)
    differing = _check_config(origin, trunk, config, allowed)
    _check_text(origin, store, allowed)
    _check_steps(origin, trunk, config)
    saved = validity.description(origin.run.checkpoints / str(origin.step))["data"]
    _check_log(origin, config, Rewinds.from_dict(saved))
    theirs = origin.run.manifest()
    values = json.dumps(trunk.to_dict(), sort_keys=True, separators=(",", ":"))
    return {
        "run": str(origin.run.path),
        "step": origin.step,
        "config_sha256": hashlib.sha256(values.encode()).hexdigest(),
        "checkpoint_sha256": digest(origin),
        "rollbacks": Rewinds.from_dict(saved).count,
        "allowed": differing,
        "other_program": [*_other_code(theirs, manifest), *_rounded(trunk, config)],
        "trunk": theirs.get("branched"),
    }


def _refused(origin: Origin, why: str, mend: str, allow: tuple[str, ...] = ()) -> UserError:
    """allow: the keys of an --allow_change that would let it."""
    ending = f", or {resuming.adding(allow)}" if allow else "."
    return UserError(f"this run cannot branch from {origin}: {why}; {mend}{ending}")


def _check_there(origin: Origin, directory) -> None:
    path = origin.run.path
    if path == directory.path:
        raise UserError(
            f"--branch_from={path} is --workdir itself; give the run to branch from, or leave the flag out."
        )
    if folder_kinds.kind_of(path) != folder_kinds.RUN:
        lacks = "" if origin.run.exists() else "has no config.json, and "
        said = f"it {lacks}is {folder_kinds.said(path)}; give the directory of the run to branch from."
        raise UserError(f"--branch_from={path} is not a run directory: {said}")
    origin.run.check_trained(f"branched from; a new run starts with its parameters by train.start_from={path}")
    try:
        origin.run.config()  # these files are of one run
        origin.run.read_tokenizer()
    except UserError as error:
        raise _refused(origin, str(error).rstrip("."), "repair that run") from error
    if origin.step not in (steps := origin.run.steps()):
        there = f"it has {', '.join(map(str, steps))}" if steps else "it has none"
        mend = f"take one of them, or save it with checkpoint.keep_steps=({origin.step},) in that run's config"
        if origin.step == 0:
            mend = "take one of them, or leave --branch_from out: step 0 is the start of a run of its own"
        raise _refused(origin, f"there is no such checkpoint ({there})", mend)


def config_at(origin: Origin):
    """The trunk's config when the checkpoint was written: a later resume may have changed it."""
    values = validity.description(origin.run.checkpoints / str(origin.step)).get("config")
    return origin.run.config() if values is None else from_dict(values, removed.whatever)


def _check_config(origin: Origin, trunk, config, allowed: tuple[str, ...]) -> list[str]:
    """Keys that differ and were allowed to."""
    telling = {key: values for key, values in changes.differing(trunk, config).items() if not _may_differ(key, *values)}
    telling |= origin.run.removed_fields()
    refused = [key for key in telling if not changes.is_named(key, allowed)]
    if refused:
        shown = ", ".join(f"{key} ({telling[key][0]!r} there, {telling[key][1]!r} here)" for key in refused)
        why = f"it was trained with another config: {shown}"
        raise _refused(
            origin,
            why,
            "only the length and the learning rate may differ; branch from another run",
            (*allowed, *refused),
        )
    return list(telling)


def _may_differ(key: str, there, here) -> bool:
    return changes.word(key).branch and changes.names_of(there) == changes.names_of(here)


def _check_text(origin: Origin, store, allowed: tuple[str, ...]) -> None:
    manifest = origin.run.manifest()
    there, here = (manifest.get("data") or {}).get("fingerprint"), store.fingerprint
    tokenizers = manifest.get("tokenizer_hash"), store.tokenizer.hash
    if tokenizers[0] != tokenizers[1]:
        raise _refused(
            origin, f"its tokenizer differs ({tokenizers[0]}, here {tokenizers[1]})", "use the tokenizer of that run"
        )
    if there != here and "data" not in allowed:
        why = f"its text differs (fingerprint {str(there)[:12]}, here {here[:12]})"
        raise _refused(origin, why, "restore the text", (*allowed, "data"))


def _check_steps(origin: Origin, trunk, config) -> None:
    """Each step before the branch does the same under both configs. Steps are named as the log does, from 1."""
    last = schedule.total_steps(config)
    if origin.step >= last:
        raise _refused(origin, f"its config ends at step {last}", "branch earlier, or increase train.steps")
    facts = {"batch size": schedule.batch_size, "first row": schedule.rows_before, "learning rate": _taken_rate}
    for step in range(origin.step):
        for name, of in facts.items():
            if (there := of(trunk, step)) != (here := of(config, step)):
                why = f"the {name} of step {step + 1} is {there} there and {here} here"
                agreed = (
                    f"branch at step {step} or before" if step else "branch elsewhere, for not one step is the same"
                )
                raise _refused(
                    origin, f"{why}; this is the first step that differs", f"{agreed}, or correct the schedule"
                )


def _taken_rate(config, step: int) -> np.float32:
    """The learning rate as the step takes it."""
    return np.float32(schedule.learning_rate(config, step))


def _check_log(origin: Origin, config, rewinds: Rewinds) -> None:
    """What the trunk logged is what these steps do: a trunk whose schedule was changed under way is found here."""
    if not origin.run.metrics.exists():
        raise _refused(origin, "it has no metrics.jsonl", "restore it")
    for row in metrics.read_until(origin.run.metrics, origin.step, rewinds.count):
        if row["kind"] != "train":
            continue
        expected = {"learning_rate": _taken_rate(config, row["step"] - 1)}
        expected["tokens"] = schedule.tokens_before(config, row["step"])
        for name, value in expected.items():
            if np.float32(row[name]) != np.float32(value):
                why = f"the {name} of step {row['step']} is {row[name]} in its metrics.jsonl and {value} here"
                raise _refused(origin, why, "its config was changed during training; branch from another run")


def _other_code(there: dict, here: dict) -> list[str]:
    """How the programs of two manifests differ, for people; a trunk from before `code` was kept is known by its revision."""
    revisions = [str((each["git"] or {}).get("revision"))[:10] for each in (there, here)]
    same = there["code"] == here["code"] if "code" in there else revisions[0] == revisions[1]
    versions = [each["packages"] | {"python": each["python"]} for each in (there, here)]
    both = [name for name in versions[1] if name in versions[0]]  # older manifests name fewer
    differing = [f"{name} {versions[0][name]} -> {versions[1][name]}" for name in both
                 if versions[0][name] != versions[1][name]]  # fmt: skip
    return differing if same else [f"gptjax's files, revision {' -> '.join(dict.fromkeys(revisions))}", *differing]


def _rounded(trunk, config) -> list[str]:
    """What makes another program of the same mathematics."""
    differing = {key: values for key, values in changes.differing(trunk, config).items() if changes.word(key).program}
    return [f"{key} {there!r} -> {here!r}" for key, (there, here) in differing.items() if changes.word(key).resume]


# ---- the beginning of a branch


def begin(known: dict, directory, program, keeper, peers):
    """The state that a branch of this lineage goes on from, saved as its own first checkpoint.

    First the rows, then the checkpoint: killed in between, all is done again. Returns a resume.Resumed.
    """
    from gptjax.checkpoints.checkpointer import Checkpointer
    from gptjax.training.resume import Resumed, frozen_of, read_state

    origin = Origin(run_directory.open_run(known["run"]), known["step"])
    reader = Checkpointer(origin.run.checkpoints, None, peers)
    try:
        state = read_state(reader, origin.step, program.abstract_state, program.state_sharding)
        data = reader.meta(origin.step)
        keeper.frozen = frozen_of(reader, origin.step, program.abstract_state)
    finally:
        reader.close()
    if peers.index == 0:
        rewinds = Rewinds.from_dict(data)
        event = {"event": "branched"} | {name: value for name, value in known.items() if name not in ("step", "trunk")}
        metrics.take_over(origin.run.metrics, directory.metrics, origin.step, rewinds.count, event)
    keeper.save(state, origin.step, last=True, **data)
    return Resumed(origin.step, state, data, said(known))


def said(known: dict) -> str:
    """Of a branch that begins, for people."""
    line = f"branched from step {known['step']} of {known['run']}"
    if known["allowed"]:
        line += (
            f"; because {', '.join(known['allowed'])} differs, this is not the run that this config gives from scratch"
        )
    if known["other_program"]:
        line += f"; its program differed ({', '.join(known['other_program'])}), which may change the last digits"
    if known["rollbacks"]:
        line += f"; that run rolled back {known['rollbacks']} times, as a run from scratch would"
    return line


# ---- what a run computed itself


def own_steps(directory) -> tuple[int, int]:
    """(first, last): the run itself took the steps after `first` up to `last`, so many as it has got to.

    directory: a RunDirectory or a path. A run that did not branch begins at 0.
    """
    run = directory if isinstance(directory, run_directory.RunDirectory) else run_directory.open_run(str(directory))
    first = (run.manifest().get("branched") or {"step": 0})["step"]
    rows = metrics.read_metrics(run.metrics, "train") if run.metrics.exists() else []
    return first, max([first, *run.steps(), *(row["step"] for row in rows)])


def own_flops(directory) -> int:
    """Exact FLOPs (flops.train_flops) of own_steps. Over the runs of a study they add up to what was computed; steps
    that a rollback or a kill made a run take twice count once."""
    run = directory if isinstance(directory, run_directory.RunDirectory) else run_directory.open_run(str(directory))
    config = run.config()
    first, last = (schedule.rows_before(config, step) for step in own_steps(run))
    return (last - first) * flops.train_flops_per_sequence(config.model)
