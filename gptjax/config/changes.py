"""What changing a field of a config does: one word beside the field (`setting.setting`), and here what follows from it.

Whoever has to know asks here: a resume, a branch, a study, a compiled step in a file. A new field needs its word and
nothing else.
"""

import dataclasses
import functools

from gptjax.config.fields import Config


@dataclasses.dataclass(frozen=True)
class Word:
    """What follows from a change that is described so."""

    meaning: str
    resume: bool  # a resume accepts it unasked
    branch: bool  # a branch may differ from its trunk in it
    study: bool  # it makes another run of a study
    program: bool  # the compiled train step is another one


WORDS = {
    "training": Word("the numbers of the training", resume=False, branch=False, study=True, program=True),
    # A branch compares what it makes of each step before it. The compiled step is given rates and never sees lengths.
    "schedule": Word("length and rates", resume=False, branch=True, study=True, program=False),
    # What the text is, its fingerprint says.
    "place": Word("where the text lies", resume=False, branch=True, study=False, program=False),
    "rounding": Word("the program, not its mathematics", resume=True, branch=True, study=False, program=True),
    "measurement": Word("what a step tells of itself, as rounding", resume=True, branch=True, study=True, program=True),
    "recovery": Word("what is done about bad steps", resume=True, branch=True, study=True, program=False),
    "result": Word("what a finished run has to show", resume=True, branch=True, study=True, program=False),
    "nothing": Word("nothing of a finished run", resume=True, branch=True, study=False, program=False),
}


@functools.cache
def words() -> dict[str, str]:
    """{"section.field": its word} of every field of a config."""
    return {
        f"{section.name}.{field.name}": field.metadata["changes"]
        for section in dataclasses.fields(Config)
        for field in dataclasses.fields(section.type)
    }


def word(key: str) -> Word:
    """Of the field "section.field"."""
    return WORDS[words()[key]]


def differing(old: Config, new: Config) -> dict[str, tuple]:
    """{"section.field": (old, new)} of every field in which two configs differ."""
    before, after = old.to_dict(), new.to_dict()
    return {
        f"{section}.{name}": (before[section][name], value)
        for section, fields in after.items()
        for name, value in fields.items()
        if before[section][name] != value
    }


def is_named(key: str, names) -> bool:
    """Whether names, as those of --allow_change, have a field "section.field" or its whole section."""
    return key in names or key.partition(".")[0] in names


def names_of(place) -> list[str] | None:
    """What counts of a value that says where text lies: the names of a mixture, in their order; else None."""
    return list(place) if isinstance(place, dict) else None
