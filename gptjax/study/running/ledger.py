"""study.json: every run of a study, with its key, from the declared runs.

{"study": what was declared, "code": digest of the code that keys were made with,
 "runs": [Entry], "former": [Entry of runs that are declared no more, or are declared under another key],
 "accepted": {key: key of the finished run of other code that stands for it}}
"""

import dataclasses
import typing

from gptjax import flops, schedule
from gptjax.errors import UserError, did_you_mean
from gptjax.study.running import identity
from gptjax.study.running.layout import StudyDirectory, read_json, write_json

STAGES = ("tune", "trunk", "grid", "target")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run in study.json. None: awaits what the stage "tune" finds."""

    name: str
    stage: str
    factors: dict[str, typing.Any]
    branch: dict | None = None  # {"trunk": name of a run, "step": number}
    key: str | None = None
    what: str | None = None
    code: str | None = None
    fingerprint: str | None = None  # of the text
    params: dict[str, int] | None = None  # by convention
    steps: int | None = None
    tokens: int | None = None
    flops: int | None = None  # exact; of a branch those of its own steps

    @classmethod
    def from_dict(cls, values: dict) -> "Entry":
        """Raises TypeError: what has to be a name or an object is none."""
        entry = cls(**{field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values})
        kinds = {"name": str, "stage": str, "factors": dict, "branch": dict, "key": str, "params": dict, "steps": int}
        for name, kind in kinds.items():
            if not isinstance(value := getattr(entry, name), kind | None):
                raise TypeError(f"the {name} of a run is {value!r}")
        return entry


@dataclasses.dataclass(frozen=True)
class Ledger:
    entries: tuple[Entry, ...]
    former: tuple[Entry, ...] = ()
    accepted: dict[str, str] = dataclasses.field(default_factory=dict)
    declared: dict = dataclasses.field(default_factory=dict)
    code: str | None = None

    def by_name(self) -> dict[str, Entry]:
        return {entry.name: entry for entry in self.entries}

    def trunk_of(self, entry: Entry) -> Entry | None:
        return None if entry.branch is None else self.by_name()[entry.branch["trunk"]]

    def write(self, directory: StudyDirectory) -> None:
        write_json(
            directory.study,
            {
                "study": self.declared,
                "code": self.code,
                "runs": [dataclasses.asdict(entry) for entry in self.entries],
                "former": [dataclasses.asdict(entry) for entry in self.former],
                "accepted": self.accepted,
            },
        )


def read(directory: StudyDirectory) -> Ledger | None:
    """None if no study was run here. Raises UserError: study.json is damaged."""
    values = read_json(directory.study)
    if not values:
        return None
    try:
        return Ledger(
            tuple(map(Entry.from_dict, values["runs"])),
            tuple(map(Entry.from_dict, values.get("former", ()))),
            dict(values.get("accepted", {})),
            values.get("study") or {},
            values.get("code"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{directory.study} is damaged: {error!r}; restore it, or delete it and run the same"
            " gptjax study run again."
        ) from error


# ---- from declared runs


def entries(planned, texts: identity.Texts, code: str) -> tuple[list[Entry], dict[str, typing.Any]]:
    """(an Entry for every PlannedRun in their order, {key: resolved config}).

    Raises UserError: two runs of a name, a stage or trunk that there is not, text that cannot be had.
    """
    _check_names(planned)
    made, configs, shared = {}, {}, {}
    for run in _trunks_first(planned):
        entry = Entry(run.name, run.stage, dict(run.factors), run.branch and dataclasses.asdict(run.branch))
        lineage = run.branch and [shared.get(run.branch.trunk), run.branch.step]
        config = run.config if run.config is not None else run.outline
        if config is not None:
            config = texts.resolved(config)
            entry = _with_sizes(entry, config)
        if run.config is not None and (lineage is None or lineage[0]):
            text = texts.of(config)
            shared[run.name] = identity.what(config.replace(checkpoint={"keep_steps": ()}), text, lineage)
            found = identity.Identity(identity.what(config, text, lineage), code)
            entry = dataclasses.replace(entry, key=found.key, what=found.what, code=code, fingerprint=text.fingerprint)
            configs[entry.key] = config
        made[run.name] = entry
    return [made[run.name] for run in planned], configs


def _with_sizes(entry: Entry, config) -> Entry:
    tokens, whole = schedule.run_tokens(config), flops.train_flops(config)
    first = schedule.tokens_before(config, entry.branch["step"]) if entry.branch else 0
    return dataclasses.replace(
        entry,
        params=flops.parameter_counts(config.model),
        steps=schedule.total_steps(config),
        tokens=tokens,
        flops=whole * (tokens - first) // tokens,
    )


def _check_names(planned) -> None:
    names = [run.name for run in planned]
    for run in planned:
        if names.count(run.name) > 1:
            raise UserError(
                f"the study has {names.count(run.name)} runs with the name {run.name!r}; give each its own."
            )
        if run.stage not in STAGES:
            raise UserError(f"run {run.name!r} is of the stage {run.stage!r}; expected one of: {', '.join(STAGES)}.")
        if run.branch and run.branch.trunk not in names:
            near = did_you_mean(run.branch.trunk, names, ".")
            raise UserError(f"run {run.name!r} branches from {run.branch.trunk!r}, which is no run of the study{near}")


def _trunks_first(planned) -> list:
    """planned, every branch behind its trunk. Raises UserError: runs that branch from each other in a circle."""
    ordered, left = [], list(planned)
    while left:
        placed = {run.name for run in ordered}
        ready = [run for run in left if run.branch is None or run.branch.trunk in placed]
        if not ready:
            raise UserError(f"runs branch from each other in a circle: {', '.join(run.name for run in left)}.")
        ordered += ready
        left = [run for run in left if run not in ready]
    return ordered


def succeed(before: Ledger | None, now: list[Entry], code: str, declared: dict) -> Ledger:
    """The ledger of the runs as they are declared now. What is declared no more, or has another key, is former."""
    if before is None:
        return Ledger(tuple(now), declared=declared, code=code)
    known = {entry.key: entry for entry in (*before.former, *before.entries) if entry.key}
    return _standing_in(Ledger(tuple(now), tuple(known.values()), before.accepted, declared, code))


def accept(ledger: Ledger, chosen: dict[str, str]) -> Ledger:
    """chosen: {key of a declared run: key of the former one that stands for it from now on}."""
    return _standing_in(dataclasses.replace(ledger, accepted=ledger.accepted | chosen))


def _standing_in(ledger: Ledger) -> Ledger:
    """With finished runs of other code in the place of those they were accepted for."""
    former = {entry.key: entry for entry in ledger.former}

    def standing(entry: Entry) -> Entry:
        old = former.get(ledger.accepted.get(entry.key))
        return entry if old is None else dataclasses.replace(entry, key=old.key, code=old.code)

    entries = tuple(standing(entry) for entry in ledger.entries)
    keys = {entry.key for entry in entries}
    return dataclasses.replace(
        ledger, entries=entries, former=tuple(entry for key, entry in former.items() if key not in keys)
    )


def of_other_code(ledger: Ledger) -> dict[str, list[Entry]]:
    """{key of a declared run: former runs of the same config and text, made by other code}."""
    found = {}
    for entry in ledger.entries:
        others = [old for old in ledger.former if entry.key and old.what == entry.what and old.key != entry.key]
        if others:
            found[entry.key] = others
    return found
