"""Arguments of `gptjax.load` and of a Run's methods, checked as the fields of a config are: what is wrong is said in a line."""

import collections.abc
import functools
import inspect
import re
import types
import typing

from gptjax.config import values
from gptjax.errors import UserError, did_you_mean

FLAGS = {"data": "texts", "workdir": "path"}  # flags of the command line whose argument has another name in Python


def checked(further: collections.abc.Callable[[], collections.abc.Iterable[str]] = tuple):
    """A decorator. The function then raises UserError for an argument that it does not take, one that is missing, and one
    that is not of the type in its annotation. further(): the names that its **keywords may have."""

    def decorate(function):
        signature = inspect.signature(function)
        plain = {name: one for name, one in signature.parameters.items() if one.kind is not one.VAR_KEYWORD}
        kinds = {name: one.annotation for name, one in plain.items() if one.annotation is not one.empty}
        called = re.sub(r"^Run\.", "run.", function.__qualname__)
        called = called if "." in called else f"gptjax.{called}"

        @functools.wraps(function)
        def call(*args, **keywords):
            names = [*(name for name in plain if name != "self"), *further()]
            _check_names(called, keywords, names)
            try:
                bound = signature.bind(*args, **keywords)
            except TypeError as error:  # one is missing, or there are too many
                raise UserError(f"{called}: {error}; it takes: {', '.join(names)}.") from None
            for name in bound.arguments.keys() & kinds.keys():
                bound.arguments[name] = of_kind(kinds[name], bound.arguments[name], name)
            try:
                return function(*bound.args, **bound.kwargs)
            except UserError as error:
                error.args = (_without_dashes(str(error), names),)
                raise

        return call

    return decorate


def _check_names(called: str, keywords: dict, names: list[str]) -> None:
    for name in keywords:
        if name not in names:
            raise UserError(
                f"{called} has no argument {name!r}{did_you_mean(name, names)}; it takes: {', '.join(names)}."
            )


def of_kind(kind, value, name: str):
    """value in the type of an annotation, as `values.typed` has it; of a type that no config has, such as a path, as it is."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    classes = tuple(typing.get_origin(option) or option for option in options)
    if isinstance(value, classes) and not isinstance(value, bool | int | float):
        return value
    return values.typed(kind, value.item() if getattr(value, "shape", None) == () else value, name)


def _without_dashes(said: str, names: list[str]) -> str:
    """A message of the command line with names as Python has them; in a command that it tells nothing is changed."""
    known = {name: name for name in names} | {flag: name for flag, name in FLAGS.items() if name in names}
    before, command, rest = said.partition("gptjax ")
    return re.sub(r"--(\w+)", lambda flag: known.get(flag.group(1), flag.group()), before) + command + rest
