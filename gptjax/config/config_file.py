"""A Config from what people write: a Python file, `--config.section.field=value`, the short flags of `gptjax plan`.

A config file defines `get_config()`, which returns an `ml_collections.ConfigDict` that names only what
differs from the defaults; a JSON file holds the same, such as the config.json of a run. `load_config` reads the file, applies the overrides, and turns the result into a `Config`:
an unknown name is an error with the nearest one, a value of another type too.
"""

import ast
import collections
import dataclasses
import importlib.util
import json
import math
import pathlib
import sys
import types
import typing

from etils import epath

from gptjax.config import bounds
from gptjax.config.fields import Config, MeshConfig
from gptjax.errors import UserError, choose, did_you_mean


def from_dict(values) -> Config:
    """A Config from nested mappings (a dict, a ConfigDict). Raises UserError for an unknown key or a wrong type."""
    sections = {}
    if not hasattr(values, "items"):
        raise UserError(
            f"a config of type {type(values).__name__} has no sections; expected a JSON object or ConfigDict."
        )
    for name, fields in values.items():
        section = _lookup(Config, name, "config section")
        given = _mapping(fields, name, section).items()
        sections[name] = section(**{k: _typed(_lookup(section, k, name), v, f"{name}.{k}") for k, v in given})
    return Config(**sections)


def _mapping(fields, name: str, section):
    if not hasattr(fields, "items"):
        raise UserError(
            f"config section {name}={fields!r} is not a mapping;"
            f" give its fields, as in {name}.{_fields(section)[0]}=..."
        )
    return fields


def load_config(path: str, overrides: typing.Sequence[str] = ()) -> Config:
    """The Config of a file, after overrides of the form "section.field=value".

    Raises UserError: no such file, no get_config(), an unknown key, a wrong type, an impossible value.
    """
    values = as_dict(_config_values(path))
    for override in overrides:
        key, equals, text = override.partition("=")
        section_name, _, field = key.partition(".")
        section = _lookup(Config, section_name, "config section")
        if not equals or not field:
            raise UserError(f"--config.{override}: expected --config.{section_name}.FIELD=VALUE.")
        value = _typed(_lookup(section, field, section_name), _parse(text), key, text)
        _mapping(values.setdefault(section_name, {}), section_name, section)[field] = value
    return from_dict(values)


def mesh_sizes(text: str) -> dict[str, int]:
    """{"fsdp": 64, "tensor": 8} of "fsdp=64,tensor=8". Raises UserError: other words, an axis twice."""
    pairs = [pair.partition("=") for pair in text.split(",")]
    if not all(axis and bounds.whole_number(size.removeprefix("-")) is not None for axis, _, size in pairs):
        raise UserError(f"--mesh={text}: expected axes and sizes, as in --mesh=fsdp=64,tensor=8.")
    for axis, count in collections.Counter(axis for axis, _, _ in pairs).items():
        if count > 1:
            raise UserError(f"--mesh={text} gives {axis} twice; give each axis once.")
        choose(dict.fromkeys(MeshConfig.AXES), axis, "--mesh: the axis")
    return {axis: int(size) for axis, _, size in pairs}


def plan_overrides(args) -> list[str]:
    """Overrides that the short flags of `gptjax plan` stand for. --mesh names all axes that are not 1."""
    overrides = []
    if args.mesh is not None:
        sizes = dict.fromkeys(MeshConfig.AXES, 1) | mesh_sizes(args.mesh)
        overrides += [f"mesh.{axis}={size}" for axis, size in sizes.items()]
    short = {"train.batch_size": args.batch, "train.microbatches": args.microbatches, "model.remat": args.remat}
    return overrides + [f"{key}={value}" for key, value in short.items() if value is not None]


def run_file(path: str, flag: str, function: str, returns: str):
    """What a function of a Python file returns. Raises UserError, in terms of the flag that named the file."""
    file = pathlib.Path(path)
    if not file.is_file():
        raise UserError(f"{flag}={path}: no such file{did_you_mean(file.name, _siblings(file))}.")
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    if spec is None:
        raise UserError(f"{flag}={path} is not a Python file; expected NAME.py with a {function}().")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not hasattr(module, function):
            raise UserError(f"{flag}={path} defines no {function}(); such a file returns its {returns} from that.")
        return getattr(module, function)()
    except UserError:
        raise
    except Exception as error:  # whatever the user's file does wrong
        raise UserError(f"{flag}={path} could not be run: {type(error).__name__}: {error}") from error


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
        raise UserError(f"--config={path} is no JSON: {error}; give a run's config.json, or a Python file.") from error
    if not isinstance(values, dict):
        raise UserError(
            f"--config={path} holds no JSON object, but a {type(values).__name__}; give a run's config.json."
        )
    return values


def _siblings(file: pathlib.Path) -> list[str]:
    return sorted(p.name for p in file.parent.glob("*.py")) if file.parent.is_dir() else []


def as_dict(values) -> dict:
    if not hasattr(values, "items"):
        raise UserError(f"get_config() returned {type(values).__name__}; expected an ml_collections.ConfigDict.")
    return {k: as_dict(v) if hasattr(v, "items") else v for k, v in values.items()}


def _fields(section) -> list[str]:
    return [f.name for f in dataclasses.fields(section)]


def _lookup(cls, name: str, where: str):
    hints = {field: kind for field, kind in typing.get_type_hints(cls).items() if field in _fields(cls)}
    if name not in hints:
        known = where if cls is Config else f"{where} field"
        raise UserError(
            f"unknown {known} {name!r}{did_you_mean(name, _fields(cls))}; there are: {', '.join(_fields(cls))}."
        )
    return hints[name]


def _parse(text: str):
    """A command-line value: a Python literal, `true`/`false`/`none` in any case, otherwise a string."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _typed(kind, value, key: str, text: str | None = None):
    """value as the field's type. An int serves as a float, a whole float (3e9) as an int, a list as a tuple.

    text: how the value was written on the command line; a string field takes it as it stands.
    """
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in options:
        return None
    if str in options and text is not None:
        return value if isinstance(value, str) else text
    for option in options:
        members = typing.get_args(option)
        if typing.get_origin(option) is dict and hasattr(value, "items"):
            return {str(k): _typed(members[1], v, f"{key}[{k!r}]") for k, v in value.items()}
        if typing.get_origin(option) is tuple and isinstance(value, (tuple, list)):
            if members[-1] is Ellipsis:
                return tuple(_typed(members[0], v, f"{key}[{i}]") for i, v in enumerate(value))
            if len(members) == len(value):
                return tuple(_typed(member, v, key) for member, v in zip(members, value))
        if option in _CONVERTERS and _CONVERTERS[option](value) is not None:
            return _CONVERTERS[option](value)
    wanted = " or ".join("None" if o is type(None) else str(o) if typing.get_args(o) else o.__name__ for o in options)
    shown = (text or repr(value)) if text is not None or not isinstance(value, int) else bounds.shown(value)
    if {int, float} & set(options) and _is_not_finite(value):
        raise UserError(f"{key}={shown} must be finite.")
    if {int, float} & set(options) and _is_too_long(value):
        raise UserError(f"{key}={_cut(shown)} has too many digits; expected {wanted}.")
    if text is not None and not text.strip():
        raise UserError(f"{key}= is empty; expected {wanted}.")
    raise UserError(f"{key}={_cut(shown)} is {_article(type(value).__name__)}; expected {wanted}.")


def _is_not_finite(value) -> bool:
    """Of a number, or of the words for one: nan, inf, -Infinity."""
    if isinstance(value, str):
        return value.strip().lstrip("+-").lower() in ("nan", "inf", "infinity")
    return isinstance(value, float) and not math.isfinite(value)


def _is_too_long(value) -> bool:
    """Of a number that Python does not read, having so many digits."""
    digits = value.strip().lstrip("+-") if isinstance(value, str) else ""
    return digits.isdecimal() and len(digits) > bounds.LONGEST_NUMBER


def _cut(shown: str) -> str:
    """In one line that can be read."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _article(noun: str) -> str:
    if noun == "NoneType":
        return "None"
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _number(value) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole or (isinstance(value, float) and math.isfinite(value))


def _real(value: float) -> float:
    """As a float; of a whole number beyond all floats one beyond float32, which `bounds` refuses."""
    try:
        return float(value)
    except OverflowError:
        return sys.float_info.max if value > 0 else -sys.float_info.max


_CONVERTERS = {  # field type -> value in that type, or None if it is not one
    bool: lambda value: value if isinstance(value, bool) else None,
    int: lambda value: int(value) if _number(value) and value == int(value) else None,
    float: lambda value: _real(value) if _number(value) else None,
    str: lambda value: value if isinstance(value, str) else None,
}
