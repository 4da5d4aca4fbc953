"""Fields that a config once had, and the value that each always has now: so that a run made before opens and goes on.

A config that names one is taken where nothing changes by it. One that a user writes is refused where the value is another;
one that gptjax wrote (config.json) only where that decides numbers, and to read a run not even then.
"""

import dataclasses
import typing

from gptjax.config.changes import WORDS, Word
from gptjax.config.fields import DataConfig
from gptjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Removed:
    value: typing.Any  # what was the default, and is what happens now
    changes: str  # a word of changes.WORDS
    instead: str  # what may be done now, for people


STALL = "train.stall_seconds (None: off) now sets all these limits"
REMOVED = {
    "train.watchdog_factor": Removed(20.0, "nothing", STALL),
    "train.watchdog_seconds": Removed(300.0, "nothing", STALL),
    "train.watchdog_other_seconds": Removed(3600.0, "nothing", STALL),
    "train.rollback_margin": Removed(
        0, "recovery", "checkpoint.every_steps decides how much text a rollback leaves out"
    ),
    "data.prefetch": Removed(2, "nothing", "data.prefetch_workers reads ahead in processes"),
    "data.tokenizer_train_bytes": Removed(
        DataConfig.TRAIN_BYTES, "training", "gptjax tokenizer train --train_bytes makes one for data.tokenizer_path"
    ),
}


def refuse(word: Word) -> bool:
    """Of a config that a user writes: no other value is accepted."""
    return False


def harmless(word: Word) -> bool:
    """Of a config that gptjax wrote."""
    return word.resume


def whatever(word: Word) -> bool:
    """To read a run."""
    return True


def check(key: str, value, accepts: typing.Callable[[Word], bool]) -> None:
    """Raises UserError: a removed field had a value that it cannot have now, and accepts(its word) is false."""
    field = REMOVED[key]
    if value != field.value and not accepts(WORDS[field.changes]):
        raise UserError(
            f"{key}={value!r} can no longer be set: it is always {field.value!r}; leave it out ({field.instead})."
        )


def deciding(values: dict) -> dict[str, tuple]:
    """{"section.field": (old, new)} of removed fields in a config as gptjax wrote it, whose values decided numbers that
    would come out otherwise now."""
    found = {}
    for key, field in REMOVED.items():
        section, _, name = key.partition(".")
        value = (values.get(section) or {}).get(name, field.value)
        if value != field.value and not WORDS[field.changes].resume:
            found[key] = (value, field.value)
    return found
