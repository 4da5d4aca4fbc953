"""The child process: reads a request, locks itself down, runs the program, reports. Standard library alone.

Reports are two lines of JSON on a pipe: what is locked, before the program runs, and how it ended.
"""

import json
import os
import sys

from gptjax.posttrain.sandbox import lockdown


def main() -> None:
    request_end, report_end = map(int, sys.argv[1:3])
    with open(request_end, "rb") as file:
        request = json.loads(file.read())
    locked = lockdown.lock(request["mechanisms"], request["cpu_seconds"], request["memory_bytes"])
    missing = lockdown.missing(locked)
    _write(report_end, {"locked": locked, "missing": missing})
    if missing and not request["unlocked"]:
        os._exit(0)
    _forget_gptjax()
    result, detail = _run(request["program"], request["may_exit"])
    try:
        sys.stdout.flush()
        _write(report_end, {"result": result, "detail": detail})
    except (OSError, ValueError, AttributeError):  # the program closed them
        os._exit(1)
    os._exit(0)  # what the program left to run at the end does not run


def _forget_gptjax() -> None:
    """What was imported from a checkout, which the program has not asked for."""
    sys.argv, sys.path = ["program"], sys.path[1:]
    for name in [name for name in sys.modules if name.partition(".")[0] == "gptjax"]:
        del sys.modules[name]


def _run(program: str, may_exit: bool) -> tuple[str, str]:
    """(result, detail) of a program. may_exit: it may end with sys.exit(0)."""
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as error:
        ended = may_exit and error.code in (None, 0)
        return ("passed", "") if ended else ("exited", f"sys.exit({error.code!r:.80})")
    except AssertionError as error:
        return "failed", _line(error)
    except MemoryError:
        return "memory", "MemoryError"
    except PermissionError as error:
        return "denied", _line(error)
    except BaseException as error:
        return "error", _line(error)
    return "passed", ""


def _line(error: BaseException) -> str:
    """The error's kind and words, in one short line."""
    try:
        words = " ".join(str(error).split())[:200]
    except BaseException:  # of an error whose own text fails
        words = ""
    return f"{type(error).__name__}: {words}".rstrip(": ").encode(errors="replace").decode()


def _write(report_end: int, report: dict) -> None:
    os.write(report_end, json.dumps(report).encode() + b"\n")
