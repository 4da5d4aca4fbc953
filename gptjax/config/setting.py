"""What the sections of a config are made of: fields that say what they hold, and a repr that shows what differs."""

import dataclasses
import typing


def setting(default, meaning: str, changes: str = "training") -> typing.Any:
    """A field of a section. meaning: what it holds, its unit, its choices; changes: a word of `changes.WORDS`."""
    return dataclasses.field(default=default, metadata={"meaning": meaning, "changes": changes})


class Shown:
    def __repr__(self) -> str:
        """The fields that are not at their defaults; where all are, as nothing."""
        differing = (
            (f.name, getattr(self, f.name)) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default
        )
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in differing)})"
