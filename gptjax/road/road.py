"""What a road file declares: `get_road()` returns a Road of Stages. No JAX: a road is read on any machine.

A stage is one process that makes one file or folder in the road's folder, in which it runs: a training run (`train`), another
command of gptjax (`command`), a program of this room (`module`) or a script beside the road file (`script`). What it reads of
other stages it names in `needs`. The parameters of get_road() are the sizes of a road.

    gptjax road configs/roads/small.py --out=DIR --set=d_model=512 --set=base.train.steps=20000
"""

import ast
import dataclasses
import inspect
import pathlib
import shlex
import sys
import typing

from gptjax.config import config_file
from gptjax.errors import UserError, did_you_mean

FUNCTION = "get_road"


@dataclasses.dataclass(frozen=True)
class File:
    """A file of the repository, by its path from the road file. What it says counts, not where it lies."""

    path: str


@dataclasses.dataclass(frozen=True)
class Stage:
    """One process of a road, and what it makes."""

    name: str
    program: tuple  # words and Files behind the interpreter
    flags: dict[
        str, typing.Any
    ]  # {"vocab_size": 8192}: --vocab_size=8192; a list: the flag again and again; None: left out
    needs: tuple[str, ...] = ()  # stages whose output it reads
    config: File | None = None  # of a training run, whose flags are fields of it
    out: str = ""  # what it makes, in the road's folder; "": its name
    resumes: bool = False  # goes on from what a killed process of it left, which else is removed first
    seconds: float = 60.0  # on the machine of the road file's head, of which the time left is reckoned

    @property
    def made(self) -> str:
        return self.out or self.name


def train(name: str, config: str, needs=(), seconds: float = 60.0, **sections) -> Stage:
    """A run of gptjax train: config is a path from the road file, sections hold what differs from it."""
    changes = {f"{section}.{field}": value for section, fields in sections.items() for field, value in fields.items()}
    program = ("-m", "gptjax", "train")
    return Stage(name, program, changes, tuple(needs), File(config), resumes=True, seconds=seconds)


def command(name: str, words: str, needs=(), out="", resumes=False, seconds=60.0, **flags) -> Stage:
    """A command of gptjax, such as "tokenizer train"."""
    return Stage(name, ("-m", "gptjax", *words.split()), flags, tuple(needs), None, out, resumes, seconds)


def module(name: str, address: str, needs=(), out="", seconds=60.0, **flags) -> Stage:
    """A module that is a program, such as "gptjax.road.evaluating"."""
    return Stage(name, ("-m", address), flags, tuple(needs), None, out, False, seconds)


def script(name: str, path: str, needs=(), out="", resumes=False, seconds=60.0, **flags) -> Stage:
    """A Python file, by its path from the road file."""
    return Stage(name, (File(path),), flags, tuple(needs), None, out, resumes, seconds)


@dataclasses.dataclass(frozen=True)
class Policy:
    """A stage that answers, as the page shows it: `evaluation` is the stage that judged it, `before` the policy that it is
    compared with."""

    name: str
    evaluation: str
    title: str
    before: str | None = None


@dataclasses.dataclass(frozen=True)
class Road:
    title: str
    stages: tuple[Stage, ...]
    policies: tuple[Policy, ...] = ()
    reward: str | None = None  # the run of the reward model
    optimised: str | None = None  # the run whose log has model reward and gold reward, step by step
    preferences: str | None = None  # the stage that made the pairs
    served: str | None = None  # the run that is served at the end
    folder: pathlib.Path = pathlib.Path()  # of the road file
    changes: tuple[str, ...] = ()  # of --set

    def __post_init__(self):
        known = set()
        for stage in self.stages:
            if stage.name in known:
                raise UserError(f"the road has two stages called {stage.name!r}; give each a name of its own.")
            for need in stage.needs:
                if need not in known:
                    near = did_you_mean(need, known, ".")
                    raise UserError(f"stage {stage.name!r} needs {need!r}, which is no stage before it{near}")
            known.add(stage.name)
        shown = [name for policy in self.policies for name in (policy.name, policy.evaluation)]
        named = [*shown, self.reward, self.optimised, self.preferences, self.served]
        judged = {policy.name for policy in self.policies}
        for name in named:
            if name is not None and name not in known | judged:
                raise UserError(f"the road shows {name!r}, which is none of its stages{did_you_mean(name, known, '.')}")
        for policy in self.policies:
            if policy.before is not None and policy.before not in judged:
                raise UserError(f"policy {policy.name!r} is compared with {policy.before!r}, which is no policy.")

    @property
    def by_name(self) -> dict[str, Stage]:
        return {stage.name: stage for stage in self.stages}

    def path_of(self, file: File) -> pathlib.Path:
        return (self.folder / file.path).resolve()

    def words(self, stage: Stage) -> list[str]:
        """The command of a stage, to be run in the road's folder."""
        words = [str(self.path_of(word)) if isinstance(word, File) else word for word in stage.program]
        if stage.config is not None:
            words += [f"--config={self.path_of(stage.config)}", f"--workdir={stage.made}"]
        else:
            words.append(f"--out={stage.made}")
        prefix = "--" if stage.config is None else "--config."
        return [sys.executable, *words, *(word for item in stage.flags.items() for word in self._flag(prefix, *item))]

    def _flag(self, prefix: str, name: str, value) -> list[str]:
        if value is None and prefix == "--":
            return []
        if isinstance(value, list) and prefix == "--":
            return [word for each in value for word in self._flag(prefix, name, each)]
        if value is True and prefix == "--":
            return [f"--{name}"]
        return [f"{prefix}{name}={self.path_of(value) if isinstance(value, File) else value}"]

    def shown_command(self, stage: Stage) -> str:
        """The command of a stage, as a person types it in the road's folder."""
        _, *words = self.words(stage)
        return shlex.join(["gptjax", *words[2:]] if words[:2] == ["-m", "gptjax"] else ["python", *words])

    def config(self, stage: Stage):
        """The Config of a training run. Raises UserError: it is none."""
        changes = [f"{name}={value}" for name, value in stage.flags.items()]
        return config_file.load_config(str(self.path_of(stage.config)), changes)


def load(path: str, changes: typing.Sequence[str] = ()) -> Road:
    """The Road of a file. changes: of --set, "PARAMETER=VALUE" of get_road() or "STAGE.FLAG=VALUE".

    Raises UserError: no such file, no get_road(), a parameter, stage or config field that there is not.
    """
    parameters, of_stages = {}, []
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key:
            raise UserError(f"--set={change}: expected PARAMETER=VALUE or STAGE.FLAG=VALUE.")
        if "." in key:
            of_stages.append((*key.split(".", 1), _value(text)))
        else:
            parameters[key] = _value(text)
    made = config_file.run_file(path, "ROAD", FUNCTION, "Road") if not parameters else _with_sizes(path, parameters)
    if not isinstance(made, Road):
        raise UserError(f"{FUNCTION}() of {path} returned {type(made).__name__}; expected a gptjax.road.road.Road.")
    for name, flag, value in of_stages:
        made = _changed(made, name, flag, value)
    made = dataclasses.replace(made, folder=pathlib.Path(path).resolve().parent, changes=tuple(changes))
    _check_files(made)
    return made


def _with_sizes(path: str, parameters: dict) -> Road:
    """get_road() with parameters. Raises UserError: it has none of that name, or one of another type."""
    config_file.run_file(path, "ROAD", FUNCTION, "Road")  # what is wrong with the file itself
    function = sys.modules[f"config_{pathlib.Path(path).stem}"].get_road
    known = inspect.signature(function).parameters
    for name, value in parameters.items():
        if name not in known:
            near = did_you_mean(name, known, f"; it has: {', '.join(known) or 'none'}.")
            raise UserError(f"--set={name}={value}: get_road() of {path} has no parameter {name!r}{near}")
        default = known[name].default
        fits = isinstance(value, int | float) if isinstance(default, float) else type(value) is type(default)
        if not fits or isinstance(value, bool) != isinstance(default, bool):
            raise UserError(f"--set={name}={value}: expected {_article(default)}, as its default {default!r}.")
    return function(**parameters)


def _article(default) -> str:
    return {int: "a whole number", float: "a number", str: "a text", bool: "True or False"}.get(
        type(default), f"a {type(default).__name__}"
    )


def _changed(road: Road, name: str, flag: str, value) -> Road:
    if name not in road.by_name:
        near = did_you_mean(name, road.by_name, f"; its stages are: {', '.join(road.by_name)}.")
        raise UserError(f"--set={name}.{flag}={value}: the road has no stage {name!r}{near}")
    stages = [
        dataclasses.replace(stage, flags=stage.flags | {flag: value}) if stage.name == name else stage
        for stage in road.stages
    ]
    return dataclasses.replace(road, stages=tuple(stages))


def _check_files(road: Road) -> None:
    """Raises UserError: a file that is not there, a config that is none."""
    for stage in road.stages:
        values = [each for value in stage.flags.values() for each in (value if isinstance(value, list) else [value])]
        for file in (*stage.program, *values):
            if isinstance(file, File) and not road.path_of(file).is_file():
                raise UserError(f"stage {stage.name!r} of the road reads {road.path_of(file)}, which is no file.")
        if stage.config is not None:
            try:
                road.config(stage)
            except UserError as error:
                raise UserError(f"stage {stage.name!r} of the road: {error}") from error


def _value(text: str):
    """A Python literal, None or a text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)
