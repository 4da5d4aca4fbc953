"""What people read while they wait: the live line, and numbers short enough for it."""

import math
import sys
import time


def finite(value):
    """value for JSON that others read, which has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


_SPELLED = {i: repr(chr(i))[1:-1] for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t"}


def say(text: str) -> None:
    """What a model says, on stdout as it comes. On a terminal its control characters are spelled: they would move the cursor,
    or write into titles and clipboards. A pipe has the text itself."""
    print(text.translate(_SPELLED) if sys.stdout.isatty() else text, end="", flush=True)


class Progress:
    """One line that is overwritten on a terminal, and printed now and then where there is none."""

    def __init__(self, stream=None, seconds_between_lines: float = 10.0):
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._pause = seconds_between_lines
        self._last, self._shown, self._width = -math.inf, "", 0

    def update(self, line: str) -> None:
        self._shown = line
        if self._live:
            self._stream.write("\r" + line.ljust(self._width))
            self._stream.flush()
            self._width = len(line)
        elif time.monotonic() - self._last >= self._pause:
            self._print()

    def message(self, line: str) -> None:
        """A line that stays, above the live one."""
        if self._live and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
        self._stream.write(line + "\n")
        if self._live and self._shown:
            self._stream.write(self._shown)
        self._stream.flush()

    def close(self) -> None:
        """Lets the live line stand; what comes next starts below it."""
        if self._live and self._width:
            self._stream.write("\n")
        elif self._shown:
            self._print()
        self._stream.flush()
        self._shown, self._width = "", 0

    def _print(self) -> None:
        self._stream.write(self._shown + "\n")
        self._stream.flush()
        self._last, self._shown = time.monotonic(), ""


def columns(rows, left: int | None = None) -> list[str]:
    """A line for each row of cells, columns as wide as their widest cell: the first `left` of them (None: all) begin at the
    left, the others end at the right. [] of no rows."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    left = len(widths) if left is None else left
    padded = (
        [cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))]
        for row in rows
    )
    return ["  ".join(cells).rstrip() for cells in padded]


def duration(seconds: float) -> str:
    """3:07:05, or 4:32."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def si(value: float) -> str:
    """124439808 -> '124M'."""
    for unit in ("", "k", "M", "G", "T", "P", "E", "Z"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}Y"
