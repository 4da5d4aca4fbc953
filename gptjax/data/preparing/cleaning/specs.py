"""Steps from a spec, as of `gptjax prepare --clean=`.

    spec  = item {"," item}
    item  = name | name=value{:value} | name(parameter=value,...)

Values behind = are the step's first parameters in order (`language=en+zh:0.5`, `decontaminate=PATH:13`; the ":" of
"gs://" parts nothing). `off` turns a limit off. A path with a comma, and one with a colon behind =, cannot be given.
"""

import dataclasses
import re
import types
import typing

from gptjax.data.preparing.cleaning.c4 import C4
from gptjax.data.preparing.cleaning.filters import Language, Length
from gptjax.data.preparing.cleaning.gopher import GopherQuality, GopherRepetition
from gptjax.data.preparing.cleaning.outcome import Step
from gptjax.data.preparing.cleaning.overlap import Decontaminate
from gptjax.data.preparing.cleaning.personal import Pii
from gptjax.data.preparing.cleaning.repair import Html, Unicode
from gptjax.errors import UserError, choose, did_you_mean

STEPS: dict[str, type] = {
    "html": Html,
    "unicode": Unicode,
    "language": Language,
    "length": Length,
    "gopher_quality": GopherQuality,
    "gopher_repetition": GopherRepetition,
    "c4": C4,
    "pii": Pii,
    "decontaminate": Decontaminate,
}
_NAMES = {kind: name for name, kind in STEPS.items()}
_ITEM = re.compile(r"(?P<name>[^=()]*)(?:=(?P<values>.*)|\((?P<named>.*)\))?", re.DOTALL)


def parse(spec: str) -> list[Step]:
    """The steps in order, each loaded and ready. Raises UserError: an unknown name, a value of another kind."""
    steps = [_step(item.strip()) for item in _split_outside_brackets(spec)]
    for step in steps:
        step.ready()
    return steps


def spec_of(step: Step) -> str:
    """The shortest spec of the step: parse(spec_of(step)) == [step]."""
    changed = [
        f"{field.name}={_written(getattr(step, field.name))}"
        for field in dataclasses.fields(step)
        if getattr(step, field.name) != field.default
    ]
    return _NAMES[type(step)] + (f"({','.join(changed)})" if changed else "")


def _written(value) -> str:
    return "off" if value is None else str(value)


def _split_outside_brackets(spec: str) -> list[str]:
    items, depth = [""], 0
    for c in spec:
        depth += (c == "(") - (c == ")")
        if depth not in (0, 1):
            break
        if c == "," and depth == 0:
            items.append("")
        else:
            items[-1] += c
    if depth:
        raise UserError(f"--clean={spec}: the brackets do not match; expected e.g. c4(min_sentences=5),pii.")
    return items


def _step(item: str) -> Step:
    match = _ITEM.fullmatch(item)
    if not match or not match["name"].strip():
        raise UserError(f"--clean: {item!r} is no step; expected name, name=value or name(parameter=value,...).")
    name = match["name"].strip()
    kind = choose(STEPS, name, "cleaning step")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if match["values"] is not None:
        given = list(zip(fields, _values(name, fields, match["values"])))
    else:
        given = [_pair(name, text) for text in (match["named"] or "").split(",") if text.strip()]
    for key, _ in given:
        if key not in fields:
            expected = ", ".join(fields) or "none"
            raise UserError(f"{name}({key}=...) is not known{did_you_mean(key, fields)}; it has: {expected}.")
    if len(dict(given)) < len(given):
        raise UserError(f"--clean: {item!r} gives a parameter twice; give each once.")
    hints = typing.get_type_hints(kind)
    return kind(**{key: _converted(text.strip(), hints[key], f"{name}({key}={text.strip()})") for key, text in given})


def _values(name: str, fields: dict, text: str) -> list[str]:
    values = re.split(r":(?!//)", text)
    if len(values) > len(fields):
        expected = ":".join(f.upper() for f in fields) or "no value"
        raise UserError(f"{name}={text} has {len(values)} values; expected at most {name}={expected}.")
    return values


def _pair(name: str, text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"{name}({text}): expected {name}(parameter=value,...).")
    return key.strip(), value


def _converted(text: str, hint, where: str):
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if text == "off" and type(None) in options:
        return None
    kind = options[0]
    try:
        if not text:
            raise ValueError
        value = kind(text)
        if kind is float and value != value:
            raise ValueError
        return value
    except ValueError as error:
        what = {int: "a whole number", float: "a number", str: "a text"}[kind]
        off = " or off" if type(None) in options else ""
        raise UserError(f"{where}: expected {what}{off}.") from error
