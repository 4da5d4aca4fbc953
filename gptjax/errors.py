"""Errors that a user can mend, the exit codes that commands end with, and the look-up by name that raises them."""

import ast
import contextlib
import dataclasses
import difflib
import functools
import importlib
import math
import os
import re
import traceback
import typing

# Exit codes.
USER_ERROR = 2
SAVE_FAILED = 74  # EX_IOERR of sysexits.h: a disk or network failed, maybe for a while
SAVED_AND_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: run the same command again to go on
DIVERGED = 76  # the loss is not finite; running it again would only repeat it
STALLED = 77  # no step for too long; the stacks of all threads are in the run directory
PEER_LOST = 78  # another process of the run died or never came
MOVED = 80  # the run directory was renamed or removed: the same command would begin another run in its place
ENGINE_FAILED = 81  # the engine of a server failed and did not recover; the same command starts another


class UserError(ValueError):
    """What was given, what was expected, what to do: one line. The command line prints it and ends with exit_code."""

    exit_code = USER_ERROR


class SaveFailed(UserError):
    """A checkpoint or shard could not be written, a disk or network failed, or a worker was lost; the same command may well
    succeed later."""

    exit_code = SAVE_FAILED


class DirectoryMoved(UserError):
    """The run directory is no longer where the run was told to write."""

    exit_code = MOVED


class DirectoryTaken(UserError):
    """Another process writes to the run directory, which this one held."""

    exit_code = PEER_LOST


class Damaged(UserError):
    """A checkpoint is not as it was written; that of another step may be."""


def first_line(error: BaseException) -> str:
    """What an error says in its first line; its kind, if it says nothing."""
    return next((shorten(line) for line in str(error).splitlines() if line.strip()), type(error).__name__)


def paragraph(error: BaseException) -> str:
    """What an error says before its first empty line, as one line: compilers wrap theirs, and name the cure last."""
    first, *_ = str(error).strip().split("\n\n")
    return shorten(first) or type(error).__name__


def shorten(text: str, most: int = 2000) -> str:
    """Another's message, or what a user typed, as one line that can be read, whole if it has no more characters than that;
    what is left out is counted."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    kept = line[:most].rpartition(" ")[0] or line[:most]
    return line if len(line) <= most else f"{kept} ... ({len(line) - len(kept):,} more characters)"


def of_the_machine(error: Exception) -> str | None:
    """A line for what JAX raises where this machine has not what a command asks for; None for any other error.

    JAX has no types for these: an absent platform is a RuntimeError, and an absent CUDA an AssertionError (0.10).
    """
    frames = traceback.extract_tb(error.__traceback__)
    if frames and frames[-1].filename.replace(os.sep, "/").endswith("jax/_src/xla_bridge.py"):
        asked = os.environ.get("JAX_PLATFORMS")
        given = f"JAX_PLATFORMS={asked}: " if asked else ""
        mend = "unset JAX_PLATFORMS, or use cpu" if asked else "set JAX_PLATFORMS=cpu to use the CPU"
        reason = first_line(error).partition(" (set JAX_PLATFORMS")[0].rstrip(".")
        reason = "" if reason == type(error).__name__ else f" ({reason})"
        return (
            f"{given}JAX finds no such device on this machine{reason}; {mend}, or install gptjax[gpu] or gptjax[tpu]."
        )
    of_xla = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    if isinstance(error, MemoryError) or (of_xla and "RESOURCE_EXHAUSTED" in str(error)):
        return (
            f"this machine has not enough memory ({first_line(error)}); use a smaller train.batch_size, more"
            " train.microbatches, model.remat, or more devices: gptjax plan says what fits."
        )
    return None


def did_you_mean(name: str, known, otherwise: str = "", likeness: float = 0.5) -> str:
    """ "; did you mean 'x'?" of the nearest name there is, else `otherwise`: at the end of a message its full stop."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=likeness)
    return f"; did you mean {near[0]!r}?" if near else otherwise


def choose(table: dict, name: str, key: str):
    """table[name]. Raises UserError that lists the names there are; key is the config field that held this one."""
    if name not in table:
        shown, near = shorten(repr(name), 80), did_you_mean(name, table)
        raise UserError(f"{key}={shown} is not known{near}; expected one of: {', '.join(table)}.")
    return table[name]


class Diverged(Exception):
    """step: steps taken, with the bad one. first_bad: index of the first bad step."""

    def __init__(self, step: int, why: str, first_bad: int | None = None):
        self.step, self.why = step, why
        self.first_bad = step - 1 if first_bad is None else first_bad
        super().__init__(f"{why} at step {step}: stopped")


class NoWayBack(Exception):
    """A run that has checkpoints, but none from before it went wrong."""


def imported(address: str, key: str):
    """What stands at "module" or "module:name", imported now, since it was chosen. key: the config field that chose it.

    Raises UserError: there is no such module, or nothing of this name in it.
    """
    module_name, _, name = address.partition(":")
    if not re.fullmatch(r"\w+(\.\w+)*", module_name):
        raise UserError(f"{key} is {address}, which names no module; write module:name.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses another
        raise UserError(
            f"{key} is {address}, but Python finds no module {error.name}; put its folder into PYTHONPATH, or correct the entry."
        ) from None
    if name and not hasattr(module, name):
        near = did_you_mean(name, vars(module))
        raise UserError(f"{key} is {address}, but {module_name} has no {name}{near}; correct the entry.")
    return getattr(module, name) if name else module


# ---- choices with parameters: NAME, or NAME(PARAMETER=VALUE, ...)


def make_chosen(text: str, table: dict, key: str):
    """The object that a config field names, such as "cosine" or "power(exponent=2)".

    table: {name: class, or its address}; a class that is a dataclass has its fields as parameters. key: the field.

    Raises UserError: text that is no such choice, a name that is not in the table, parameters that the class does not take
    or that are missing.
    """
    name, arguments = written_call(text, table, key)
    kind = choose(table, name, key)
    kind = imported(kind, f"{key}={name!r}") if isinstance(kind, str) else kind
    fields = {field.name: field for field in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
    types = typing.get_type_hints(kind)
    with naming(text, key):
        for parameter in arguments:
            if parameter not in fields:
                near, has = did_you_mean(parameter, fields), ", ".join(fields) or "none"
                raise UserError(f"{name} has no parameter {parameter!r}{near}; it has: {has}.")
        for parameter, field in fields.items():
            if parameter not in arguments and field.default is dataclasses.MISSING:
                raise UserError(f"{parameter} is missing; write {name}({parameter}=VALUE).")
        return kind(**{parameter: _typed(parameter, types[parameter], value) for parameter, value in arguments.items()})


@contextlib.contextmanager
def naming(text: str, key: str):
    """What is raised inside says which choice it is about."""
    choice = f"{key}={shorten(repr(text), 80)}"
    try:
        yield
    except UserError as error:
        if str(error).startswith(choice):
            raise
        raise UserError(f"{choice}: {error}") from error


def written_call(text: str, table: dict, key: str) -> tuple[str, dict]:
    """("power", {"exponent": 2}) of "power(exponent=2)". Raises UserError for what is written otherwise."""
    call = _parsed_call(text)
    if call is None:
        raise UserError(
            f"{key}={shorten(repr(text), 80)} cannot be read; expected NAME or NAME(PARAMETER=VALUE, ...), with one of"
            f" these names: {', '.join(table)}."
        )
    return call


@functools.lru_cache(maxsize=64)
def _parsed_call(text: str) -> tuple[str, dict] | None:
    try:
        node = ast.parse(text.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
            arguments = {each.arg: ast.literal_eval(each.value) for each in node.keywords}
            if None not in arguments:  # of a **
                return node.func.id, arguments
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    return None


def _typed(parameter: str, kind: type, value):
    """A parameter as the type of its field: a whole number serves as a float, a single value as a tuple of it, None where the
    field may be None. Raises UserError."""
    if value is None and type(None) in typing.get_args(kind):
        return None
    if typing.get_origin(kind) is tuple:  # of one type, as `tuple[str, ...]`
        items = value if isinstance(value, tuple | list) else (value,)
        return tuple(_typed(parameter, typing.get_args(kind)[0], item) for item in items)
    kind = next((each for each in typing.get_args(kind) if each is not type(None)), kind)  # of `float | None`
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise UserError(f"{parameter}={value!r} is no {kind.__name__}.")
    return value
