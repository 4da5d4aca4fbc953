"""What a stage is made from: its flags or its config, its files, and the same of the stages it needs.

Fields that change no number of a finished run do not count, nor do comments of a Python file, nor where a file lies. What a
stage's own programs are, gptjax's code, is written down beside it and not compared: a road of an hour would be made anew for
a message that was reworded.
"""

import ast
import hashlib
import pathlib

from gptjax.road.road import File, Road, Stage
from gptjax.study.running import identity


def of_stage(road: Road, stage: Stage) -> dict:
    """JSON values, flat: {name: value}."""
    if stage.config is not None:
        return identity.counted(road.config(stage))
    program = [_file(road, word) if isinstance(word, File) else word for word in stage.program]
    return {"program": program} | {f"--{name}": _plain(road, value) for name, value in stage.flags.items()}


def keys(road: Road) -> dict[str, str]:
    """{stage: digest of its inputs and of those it needs}."""
    found = {}
    for stage in road.stages:
        found[stage.name] = identity.digest([of_stage(road, stage), [found[need] for need in stage.needs]])
    return found


def differences(before: dict, now: dict) -> list[str]:
    """ "train.steps 1500 -> 200", of two `of_stage`."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return [f"{name} {_shown(before, name)} -> {_shown(now, name)}" for name in names]


def _shown(values: dict, name: str) -> str:
    if name not in values:
        return "not given"
    text = str(values[name])
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plain(road: Road, value):
    if isinstance(value, list):
        return [_plain(road, each) for each in value]
    return _file(road, value) if isinstance(value, File) else value


def _file(road: Road, file: File) -> str:
    """The name of a file and the digest of its content."""
    path = road.path_of(file)
    return f"{path.name} {_digest(path)[:12]}"


def _digest(path: pathlib.Path) -> str:
    if path.suffix == ".py":
        return identity.digest(identity.plain(ast.parse(path.read_text("utf-8"))))
    return hashlib.sha256(path.read_bytes()).hexdigest()
