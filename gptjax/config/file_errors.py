"""Where a Python file of a user's went wrong: loaded only when one has."""

import os
import sysconfig
import traceback

from gptjax.errors import shorten


def described(error: Exception, file: str) -> str:
    """What an exception says, and the line of the file it comes from; where a module that the file imports is to blame, its
    line too. One line."""
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    said = f"{type(error).__name__}: {shorten(message)}" if message else type(error).__name__
    places = _places(error, file)
    return f"{said} ({'; '.join(places)})" if places else said


def _places(error: Exception, file: str) -> list[str]:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_a_users(frame.filename)]
    inside = [frame for frame in frames if os.path.realpath(frame.filename) == os.path.realpath(file)]
    chosen = [*inside[-1:], *(frames[-1:] if frames and frames[-1] not in inside else [])]
    found = [_place(frame.filename, frame.lineno, frame.line) for frame in chosen]
    if isinstance(error, SyntaxError) and error.filename:
        found.append(_place(error.filename, error.lineno, error.text))
    return found


def _is_a_users(filename: str) -> bool:
    """Not of Python, of an installed library, or of what loads the file."""
    libraries = [os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    package = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    path = os.path.realpath(filename)
    return not filename.startswith("<") and not path.startswith(
        tuple(f"{place}{os.sep}" for place in [*libraries, package])
    )


def _place(filename: str, line: int | None, text: str | None) -> str:
    shown = os.path.relpath(filename) if os.path.realpath(filename).startswith(os.getcwd() + os.sep) else filename
    return f"{shown}, line {line}: {shorten(text or '')}"
