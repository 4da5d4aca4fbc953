"""Tasks by name: files and folders of the user's, tasks in Python (task.TASKS), and lm-evaluation-harness's stock ones.

Stock tasks take half a minute to be found among thousands, and their data comes from the internet; files are read in
milliseconds. Paths of data in a task file may be relative to that file, or as lm-eval has it to the working directory.
"""

import dataclasses
import json
import os
import pathlib
import tempfile

from gptjax.config.extras import library
from gptjax.errors import UserError, did_you_mean, shorten
from gptjax.tasks import task as python_tasks

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")  # read when those libraries are imported
SUFFIXES = (".yaml", ".yml")


@dataclasses.dataclass(frozen=True)
class TaskFile:
    """A definition of a task, or of a group of them, in a file of the user's."""

    path: pathlib.Path
    name: str
    is_group: bool
    fields: dict  # with those of the files it includes

    @property
    def needs_network(self) -> bool:
        """Whether its data is a data set of the hub: neither here nor of a kind that is read from files."""
        where = self.fields.get("dataset_path")
        local = where is None or "data_files" in (self.fields.get("dataset_kwargs") or {})
        return not (local or "custom_dataset" in self.fields or pathlib.Path(where).expanduser().exists())


@dataclasses.dataclass(frozen=True)
class Selection:
    """What --tasks asks for."""

    names: list[str]  # to run
    files: list[TaskFile]  # of the user's, those that groups refer to among them
    python: list[str]  # names in task.TASKS
    stock: list[str]  # names among lm-eval's own

    @property
    def offline(self) -> bool:
        tasks = [*self.files, *map(python_tasks.of, self.python)]
        return not self.stock and not any(task.needs_network for task in tasks)


def select(specs: list[str]) -> Selection:
    """Of names, paths of task files and folders of them. A folder stands for all its tasks.

    Raises UserError: nothing asked for, no such file, a file that defines no task, two tasks of one name.
    """
    names, files, python, stock = [], {}, [], []
    for spec in filter(None, (spec.strip() for spec in specs)):
        path = pathlib.Path(spec).expanduser()
        if path.suffix in SUFFIXES:
            chosen = read(path)
            if chosen is None:
                raise UserError(
                    f"--tasks={spec} defines no task: it has no field `task` or `group`; give a file that has."
                )
            found = [chosen, *(_of_folder(path.parent) if chosen.is_group else [])]
            names.append(chosen.name)
        elif path.is_dir():
            found = _of_folder(path)
            names += [file.name for file in found if not file.is_group]
            if not found:
                raise UserError(
                    f"--tasks={spec} is a folder without a task file; expected NAME.yaml with a field `task`."
                )
        else:
            found = []
            names.append(spec)
            (python if spec in python_tasks.TASKS else stock).append(spec)
        for file in found:
            if files.setdefault(file.name, file).path != file.path:
                raise UserError(
                    f"--tasks: {files[file.name].path} and {file.path} both define {file.name!r}; rename one of them."
                )
    if both := [name for name in python if name in files]:
        raise UserError(f"--tasks: {files[both[0]].path} and TASKS both define {both[0]!r}; rename one of them.")
    if not names:
        raise UserError("--tasks is empty; give names or files of tasks, comma-separated, as in --tasks=configs/tasks.")
    return Selection(list(dict.fromkeys(names)), list(files.values()), python, stock)


def _of_folder(folder: pathlib.Path) -> list[TaskFile]:
    """Sorted by path. A file without a name is one that others include."""
    paths = sorted(path for suffix in SUFFIXES for path in folder.glob(f"**/*{suffix}"))
    return [file for file in map(read, paths) if file is not None]


def read(path: pathlib.Path) -> TaskFile | None:
    """None: it defines nothing by itself. Raises UserError: no such file, or none of a task."""
    fields = _fields(path)
    name = fields.get("group") or fields.get("task")
    return TaskFile(path.resolve(), name, "group" in fields, fields) if isinstance(name, str) else None


def _fields(path: pathlib.Path, including: tuple[pathlib.Path, ...] = ()) -> dict:
    """What a task file says, over what it includes. Python functions it names are None here."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: None)
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise UserError(f"--tasks={path}: no such file{did_you_mean(path.name, siblings, '.')}")
    if path.resolve() in including:
        raise UserError(f"--tasks={path} includes itself; take it out of its field `include`.")
    try:
        fields = yaml.load(path.read_text(), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--tasks={path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise UserError(f"--tasks={path} holds a {type(fields).__name__}; expected the fields of a task.")
    included = fields.pop("include", None) or []
    whole = {}
    for other in included if isinstance(included, list) else [included]:
        whole |= _fields(path.parent / other, (*including, path.resolve()))
    return whole | fields


def load(selection: Selection, sampled: python_tasks.Sampled | None = None) -> dict:
    """{"tasks": {name: lm_eval Task}, "groups": ...}: their data is read, or fetched, here. sampled: several answers are drawn
    to each document, which tasks in Python alone take.

    Raises UserError: lm-eval is not installed, a name it does not know, a task whose data cannot be had.
    """
    require()
    if selection.offline:
        for name in OFFLINE:
            os.environ.setdefault(name, "1")
    from datasets import disable_progress_bars
    from lm_eval.tasks import TaskManager

    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        for i, file in enumerate(selection.files):
            (pathlib.Path(folder) / f"{i}.yaml").write_text(json.dumps(_overlay(file)))  # JSON is YAML
        manager = TaskManager(include_path=folder, include_defaults=bool(selection.stock))
        loaded = [_load(manager, name, name in selection.python, sampled) for name in selection.names]
    return {key: {name: value for one in loaded for name, value in one[key].items()} for key in ("tasks", "groups")}


def require() -> None:
    """Raises UserError: lm-eval is not installed."""
    library("lm_eval", "tasks", verb="need")


def _overlay(file: TaskFile) -> dict:
    """A task file that stands for another one anywhere: its data files by absolute paths where they lie beside it."""
    overlay = {"include": str(file.path), ("group" if file.is_group else "task"): file.name}
    if file.is_group:
        return overlay
    kwargs = dict(file.fields.get("dataset_kwargs") or {})
    for field in ("data_files", "data_dir"):
        if field in kwargs:
            kwargs[field] = _beside(file.path.parent, kwargs[field])
    return overlay | ({"dataset_kwargs": kwargs} if kwargs else {})


def _beside(folder: pathlib.Path, value):
    """A path, or several in a list or mapping: where such a file exists in folder, its absolute path."""
    if isinstance(value, dict):
        return {key: _beside(folder, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_beside(folder, inner) for inner in value]
    return str(folder / value) if isinstance(value, str) and (folder / value).exists() else value


def _load(manager, name: str, in_python: bool, sampled: python_tasks.Sampled | None) -> dict:
    if sampled is not None and not in_python:
        raise UserError(
            f"--samples is for tasks in Python that score several answers, which {name!r} is not; leave it out."
        )
    if not in_python and name not in manager.all_tasks:
        known = [*python_tasks.TASKS, *manager.all_tasks]
        raise UserError(
            f"--tasks={name}: no such file or folder, and lm-eval has no task of that name"
            f"{did_you_mean(name, known)}; `lm_eval ls tasks` lists them."
        )
    try:
        if in_python:
            return {"tasks": {name: python_tasks.for_lm_eval(name, sampled)}, "groups": {}}
        return manager.load([name])
    except UserError:
        raise
    except Exception as error:  # whatever a task's file, code or data does wrong, or the network
        reason = shorten(f"{type(error).__name__}: {error}")
        raise UserError(f"--tasks={name} could not be loaded: {reason}") from error
