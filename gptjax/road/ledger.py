"""road.json: what became of each stage of a road, and what it was made from.

{"road": its file, "changes": of --set, "stages": {name: Entry}}
"""

import dataclasses
import json
import pathlib

from gptjax.errors import UserError
from gptjax.storage.writing import replace_whole

NAME = "road.json"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A stage that was begun. Seconds are those of all its processes that ended before this one's line was written: a process
    that was killed together with the road is not in them, and `attempts` says so."""

    key: str
    inputs: dict
    command: str
    done: bool = False
    attempts: int = 0  # processes that were started
    counted: int = 0  # of them those whose time is known
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    code: str = ""  # digest of the code of gptjax that finished it


@dataclasses.dataclass(frozen=True)
class Ledger:
    folder: pathlib.Path
    road: str = ""
    changes: tuple[str, ...] = ()
    stages: dict[str, Entry] = dataclasses.field(default_factory=dict)

    def with_entry(self, name: str, entry: Entry | None) -> "Ledger":
        """None: without the stage."""
        others = {key: value for key, value in self.stages.items() if key != name}
        return dataclasses.replace(self, stages=others if entry is None else {**others, name: entry})

    def is_done(self, name: str) -> bool:
        return name in self.stages and self.stages[name].done

    def write(self) -> "Ledger":
        stages = {name: dataclasses.asdict(entry) for name, entry in self.stages.items()}
        values = {"road": self.road, "changes": list(self.changes), "stages": stages}
        replace_whole(self.folder / NAME, json.dumps(values, indent=1, ensure_ascii=False) + "\n")
        return self


def read(folder: pathlib.Path) -> Ledger:
    """An empty one where no road was begun. Raises UserError: road.json is damaged."""
    file = folder / NAME
    if not file.exists():
        return Ledger(folder)
    try:
        values = json.loads(file.read_text("utf-8"))
        stages = {name: Entry(**entry) for name, entry in values["stages"].items()}
        return Ledger(folder, values["road"], tuple(values["changes"]), stages)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error!r}); restore it from a copy, or name another --out.") from error
