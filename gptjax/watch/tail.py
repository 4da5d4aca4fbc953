"""The rows of a metrics.jsonl that another process writes: only what is new is read, however long the file is."""

from etils import epath

from gptjax.rundir import metrics

MEMORY = 256  # bytes before the place reached, by which a file that was written anew is told from one that grew


CHUNK = 2**24  # bytes that are read at a time


class Tail:
    """torn: lines so far that hold no row, other than one that is being written now."""

    def __init__(self, file):
        self._file, self._offset, self._before, self.torn = epath.Path(file), 0, b"", 0

    def rewritten(self) -> bool:
        """Whether the file was written anew, as by a run that resumes or goes back; then `rows` begins at its start."""
        start = self._offset - len(self._before)
        anew = next(_chunks(self._file, start, len(self._before)), b"") != self._before
        if anew:
            self._before, self._offset, self.torn = b"", 0, 0
        return anew

    def rows(self):
        """Yields the rows since the last call. A last line without a line break waits for the next one."""
        rest = b""
        for chunk in _chunks(self._file, self._offset):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                row = metrics.row_of(line)
                if row is None:
                    self.torn += 1
                else:
                    yield row
            self._offset += sum(map(len, lines)) + len(lines)
            if lines:
                self._before = (b"\n".join(lines[-MEMORY:]) + b"\n")[-MEMORY:]


def _chunks(file: epath.Path, start: int, size: int = CHUNK):
    """Of `size` bytes, from a place on; none of a file that is not there yet."""
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            while chunk := stream.read(size):
                yield chunk
    except FileNotFoundError:
        return
