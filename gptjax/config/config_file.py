"""A Config from what people write: a Python file, `--config.section.field=value`, the short flags of `gptjax plan`.

A config file defines `get_config()`, which returns an `ml_collections.ConfigDict` that names only what differs from the
defaults; a JSON file holds the same, such as the config.json of a run. `load_config` reads the file, applies the overrides,
and turns the result into a `Config` (`values.py`).
"""

import ast
import collections
import importlib.util
import json
import pathlib
import sys
import typing

from etils import epath

from gptjax.config import bounds, removed, spelling
from gptjax.config.fields import Config, MeshConfig
from gptjax.config.values import from_dict, kind_of, mapping, typed
from gptjax.errors import UserError, choose, did_you_mean

SPELT = ("source", "path", "tokenizer")  # fields of `data` that take a SPEC


def load_config(path: str, overrides: typing.Sequence[str] = ()) -> Config:
    """The Config of a file, after overrides of the form "section.field=value".

    Raises UserError: no such file, no get_config(), an unknown key, a wrong type, an impossible value.
    """
    values = as_dict(_config_values(path))
    for override in overrides:
        key, equals, text = override.partition("=")
        section_name, _, field = key.partition(".")
        section = kind_of(Config, section_name, "config section")
        if not equals or not field:
            raise UserError(f"--config.{override}: expected --config.{section_name}.FIELD=VALUE.")
        if key in removed.REMOVED:
            removed.check(key, _parse(text), removed.refuse)
            continue
        value = typed(kind_of(section, field, section_name), _parse(text), key, text)
        fields = mapping(values.setdefault(section_name, {}), section_name, section)
        if section_name == "data" and field in SPELT and spelling.in_fields(field, value) is not None:
            for other in spelling.other_fields(field):  # of the text or tokenizer that was there before
                fields.pop(other, None)
        fields[field] = value
    return from_dict(values, removed.harmless if path.endswith(".json") else removed.refuse)


def parse_mesh(mesh: str | dict, called: str = "--mesh") -> dict[str, int]:
    """{axis: size} of all axes, from "fsdp=64,tensor=8" or a dict of the same; axes that are not named are 1.

    called: what the user gave it as. Raises UserError: it is neither, an axis that there is not, a size that is none.
    """
    if not isinstance(mesh, str | dict):
        raise UserError(
            f"{called}={mesh!r} is not a mesh; expected text such as 'fsdp=4,tensor=2', or a dict of sizes."
        )
    sizes = _sizes_written(mesh, called) if isinstance(mesh, str) else mesh
    for axis, size in sizes.items():
        choose(dict.fromkeys(MeshConfig.AXES), axis, f"{called}: the axis")
        if not isinstance(size, int) or size < -1 or size == 0 or list(sizes.values()).count(-1) > 1:
            raise UserError(
                f"{called}={mesh}: {axis}={size!r} is not a size; expected 1, 2, ..., or -1 for all remaining devices, at one axis only."
            )
    return dict.fromkeys(MeshConfig.AXES, 1) | sizes


def _sizes_written(text: str, called: str) -> dict[str, int]:
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(axis and bounds.whole_number(size.removeprefix("-")) is not None for axis, _, size in pairs):
        raise UserError(f"{called}={text}: expected axes and sizes, as in {called}=fsdp=64,tensor=8.")
    for axis, count in collections.Counter(axis for axis, _, _ in pairs).items():
        if count > 1:
            raise UserError(f"{called}={text} gives {axis} twice; give each axis once.")
    return {axis: int(size) for axis, _, size in pairs}


def plan_overrides(args) -> list[str]:
    """Overrides that the short flags of `gptjax plan` stand for. --mesh names all axes that are not 1. With --decode the
    batch is no field: it is rows of text."""
    overrides = []
    if args.mesh is not None:
        overrides += [f"mesh.{axis}={size}" for axis, size in parse_mesh(args.mesh).items()]
    batch = None if args.decode else args.batch
    short = {"train.batch_size": batch, "train.microbatches": args.microbatches, "model.remat": args.remat}
    return overrides + [f"{key}={value}" for key, value in short.items() if value is not None]


def run_file(path: str, flag: str, function: str, returns: str):
    """What a function of a Python file returns. Raises UserError, in terms of the flag that named the file."""
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"{flag}={path}: no such file{did_you_mean(file.name, _siblings(file), '.', likeness=0.75)}")
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    if spec is None:
        raise UserError(f"{flag}={path} is not a Python file; expected NAME.py with a {function}().")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the types of a class that the file makes
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, function):
            raise UserError(
                f"{flag}={path} defines no {function}(); the file needs this function, which returns the {returns}."
            )
        return getattr(module, function)()
    except UserError:
        raise
    except Exception as error:  # whatever the user's file does wrong
        from gptjax.config import file_errors

        raise UserError(f"{flag}={path} could not be run: {file_errors.described(error, path)}") from error


def _config_values(path: str):
    """Of a config file, or of a JSON file such as a run's config.json."""
    if not path.endswith(".json"):
        return run_file(path, "--config", "get_config", "ConfigDict")
    file = epath.Path(path)
    if not file.exists():
        raise UserError(f"--config={path}: no such file.")
    try:
        values = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config={path} is not JSON: {error}; give a run's config.json, or a Python file.") from error
    if not isinstance(values, dict):
        raise UserError(
            f"--config={path} holds a {type(values).__name__} instead of a JSON object; give a run's config.json."
        )
    return values


def _siblings(file: pathlib.Path) -> list[str]:
    return sorted(p.name for p in file.parent.glob("*.py")) if file.parent.is_dir() else []


def as_dict(values) -> dict:
    if not hasattr(values, "items"):
        raise UserError(f"get_config() returned {type(values).__name__}; expected an ml_collections.ConfigDict.")
    return {k: as_dict(v) if hasattr(v, "items") else v for k, v in values.items()}


def _parse(text: str):
    """A command-line value: a Python literal, `true`/`false`/`none` in any case, otherwise a string."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
