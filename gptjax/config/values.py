"""A Config from nested mappings, each value of the type of its field: an unknown name is an error with the nearest one, a
value of another type too."""

import dataclasses
import math
import sys
import types
import typing

from gptjax.config import bounds, removed
from gptjax.config.fields import Config, DataConfig
from gptjax.errors import UserError, did_you_mean, shorten


def from_dict(values, accepts=removed.refuse) -> Config:
    """A Config from nested mappings (a dict, a ConfigDict). Raises UserError for an unknown key or a wrong type.

    accepts: which fields that a config no longer has may have had another value (`removed.py`).
    """
    sections = {}
    if not hasattr(values, "items"):
        raise UserError(
            f"a config of type {type(values).__name__} has no sections; expected a JSON object or ConfigDict."
        )
    for name, fields in values.items():
        section = kind_of(Config, name, "config section")
        given = dict(mapping(fields, name, section).items())
        if section is DataConfig:
            from gptjax.config import spelling  # of no use to whoever names fields alone

            given = spelling.spelt_out(given)
        for gone in [k for k in given if f"{name}.{k}" in removed.REMOVED]:
            removed.check(f"{name}.{gone}", given.pop(gone), accepts)
        sections[name] = section(**{k: typed(kind_of(section, k, name), v, f"{name}.{k}") for k, v in given.items()})
    return Config(**sections)


def mapping(fields, name: str, section):
    """fields. Raises UserError: what stands in the place of a section is no mapping."""
    if not hasattr(fields, "items"):
        raise UserError(
            f"config section {name}={fields!r} is not a mapping;"
            f" give its fields, as in {name}.{_fields(section)[0]}=..."
        )
    return fields


def _fields(section) -> list[str]:
    return [f.name for f in dataclasses.fields(section)]


def kind_of(cls, name: str, where: str):
    """The type of a field of a section, or of a section of Config. Raises UserError: there is none of the name."""
    hints = {field: kind for field, kind in typing.get_type_hints(cls).items() if field in _fields(cls)}
    if name not in hints:
        known = where if cls is Config else f"{where} field"
        raise UserError(
            f"unknown {known} {name!r}{did_you_mean(name, _fields(cls))}; there are: {', '.join(_fields(cls))}."
        )
    return hints[name]


def typed(kind, value, key: str, text: str | None = None):
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
            return {str(k): typed(members[1], v, f"{key}[{k!r}]") for k, v in value.items()}
        if typing.get_origin(option) is tuple and isinstance(value, (tuple, list)):
            if members[-1] is Ellipsis:
                return tuple(typed(members[0], v, f"{key}[{i}]") for i, v in enumerate(value))
            if len(members) == len(value):
                return tuple(typed(member, v, key) for member, v in zip(members, value))
        if option in _CONVERTERS and _CONVERTERS[option](value) is not None:
            return _CONVERTERS[option](value)
    wanted = " or ".join("None" if o is type(None) else str(o) if typing.get_args(o) else o.__name__ for o in options)
    shown = (text or repr(value)) if text is not None or not isinstance(value, int) else bounds.shown(value)
    if {int, float} & set(options) and _is_not_finite(value):
        raise UserError(f"{key}={shown} must be finite.")
    if {int, float} & set(options) and _is_too_long(value):
        raise UserError(f"{key}={shorten(shown, 80)} has too many digits; expected {wanted}.")
    if text is not None and not text.strip():
        raise UserError(f"{key}= is empty; expected {wanted}.")
    raise UserError(f"{key}={shorten(shown, 80)} is {_article(type(value).__name__)}; expected {wanted}.")


def _is_not_finite(value) -> bool:
    """Of a number, or of the words for one: nan, inf, -Infinity."""
    if isinstance(value, str):
        return value.strip().lstrip("+-").lower() in ("nan", "inf", "infinity")
    return isinstance(value, float) and not math.isfinite(value)


def _is_too_long(value) -> bool:
    """Of a number that Python does not read, having so many digits."""
    digits = value.strip().lstrip("+-") if isinstance(value, str) else ""
    return digits.isdecimal() and len(digits) > bounds.LONGEST_NUMBER


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
