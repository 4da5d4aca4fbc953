"""The rows of a metrics.jsonl that another process writes: only what is new is read, however long the file is."""

from etils import epath

from gptjax.rundir import metrics

MEMORY = 256  # bytes before the place reached, by which a file that was written anew is told from one that grew


class Tail:
    """torn: lines so far that hold no row, other than one that is being written now."""

    def __init__(self, file):
        self._file, self._offset, self._before, self.torn = epath.Path(file), 0, b"", 0

    def read(self) -> tuple[bool, list[dict]]:
        """(whether the file was written anew, so that all earlier rows are void; the rows since the last call).

        A run that resumes or goes back replaces its file. A last line without a line break waits for the next call.
        """
        start = self._offset - len(self._before)
        found = _bytes_from(self._file, start)
        anew = not found.startswith(self._before)
        if anew:
            found, self._before, self._offset, self.torn = _bytes_from(self._file, 0), b"", 0, 0
        whole = found[len(self._before) : found.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._before = (self._before + whole)[-MEMORY:]
        rows = [metrics.row_of(line) for line in whole.splitlines()]
        self.torn += rows.count(None)
        return anew, [row for row in rows if row is not None]


def _bytes_from(file: epath.Path, start: int) -> bytes:
    """b"" of a file that is not there yet."""
    try:
        if "://" in str(file):
            return file.read_bytes()[start:]
        with open(file, "rb") as stream:
            stream.seek(start)
            return stream.read()
    except FileNotFoundError:
        return b""
