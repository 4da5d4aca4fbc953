"""Where the numbers of a run go: metrics.jsonl, TensorBoard and W&B."""

import json
import math
import time

from etils import epath

from gptjax.storage.writing import replace_whole


class MetricsLog:
    """Rows of numbers: one JSON object a line in metrics.jsonl, and TensorBoard and W&B if the config asks.

    Every row has `kind` ("train", "eval", "tasks" or "event") and `step`. NaN and infinities are written as strings, so that
    every line is JSON.
    """

    def __init__(
        self,
        directory: epath.Path,
        *,
        resume_step: int,
        rollbacks: int = 0,
        tensorboard: bool,
        wandb_project: str | None,
        config,
    ):
        self._file = directory / "metrics.jsonl"
        self._local = "://" not in str(directory)
        self._lines, _ = _parted(self._file, resume_step, rollbacks)
        self._rewrite()
        self._tensorboard = _tensorboard(directory / "tensorboard", resume_step) if tensorboard else None
        self._wandb = _wandb(wandb_project, directory, config) if wandb_project else None

    def write(self, kind: str, step: int, **numbers) -> None:
        """Adds a row; lists (per-layer numbers) go to metrics.jsonl only."""
        self._lines.append(_line(kind, step, numbers))
        if self._local:
            with self._file.open("a") as file:
                file.write(self._lines.pop() + "\n")
        scalars = {f"{kind}/{name}": value for name, value in numbers.items() if isinstance(value, (int, float))}
        if self._tensorboard:
            for name, value in scalars.items():
                if value == value:  # of NaN it draws nothing, and warns in the middle of the terminal's lines
                    self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(scalars, step=step)

    def rewind(self, step: int, number: int) -> None:
        """Moves rows of steps after `step`, which are about to be run another way, to metrics.abandoned-NUMBER.jsonl."""
        self.flush()
        self._lines, gone = _parted(self._file, step)
        (self._file.parent / f"metrics.abandoned-{number}.jsonl").write_text("".join(line + "\n" for line in gone))
        self._rewrite()
        if self._tensorboard:
            self._tensorboard.close()
            self._tensorboard = _tensorboard(self._file.parent / "tensorboard", step)

    def flush(self) -> None:
        """Object stores cannot append: there the whole file is written anew."""
        if not self._local:
            self._rewrite()
        if self._tensorboard:
            self._tensorboard.flush()

    def close(self) -> None:
        self.flush()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()

    def _rewrite(self) -> None:
        _replace(self._file, self._lines)
        if self._local:
            self._lines = []


class NoLog:
    """The log of every process but the first."""

    def write(self, kind: str, step: int, **numbers) -> None: ...

    def rewind(self, step: int, number: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _parted(file: epath.Path, step: int, rollbacks: float = math.inf) -> tuple[list[str], list[str]]:
    """Lines of an earlier part of the run, and those of steps that are about to be run again; without torn ones.

    Of rollbacks to `step` only the first `rollbacks` count: what came after the checkpoint will be decided once more.
    """
    kept, gone = [], []
    for line, row in _parsed(file) if file.exists() else ():
        if row is not None:
            again = row.get("event") == "rolled_back" and row["rollbacks"] > rollbacks
            (gone if again or row["step"] > step else kept).append(line)
    return kept, gone


def _parsed(file: epath.Path):
    """(line, its row or None): None for a line that is none, which a process was killed writing, or a disk has damaged."""
    for line in file.read_bytes().decode(errors="replace").splitlines():
        yield line, row_of(line)


def row_of(line: str | bytes) -> dict | None:
    """The row that a line holds; None: it holds none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return (
        row if isinstance(row, dict) and isinstance(row.get("kind"), str) and isinstance(row.get("step"), int) else None
    )


def torn_lines(file: epath.Path) -> int:
    """How many lines of a metrics.jsonl nobody can read."""
    return sum(row is None for _, row in _parsed(file))


def insert(file: epath.Path, kind: str, step: int, **numbers) -> None:
    """Puts a row behind all others of steps up to its own; the file is replaced whole. For whoever holds the run's lock."""
    lines, place = [], 0
    for line, row in _parsed(file) if file.exists() else ():
        lines.append(line)
        if row is not None and row["step"] <= step:
            place = len(lines)
    lines.insert(place, _line(kind, step, numbers))
    _replace(file, lines)


def _line(kind: str, step: int, numbers: dict) -> str:
    return json.dumps(_jsonable({"kind": kind, "step": step, "time": round(time.time(), 3), **numbers}))


def _replace(file: epath.Path, lines: list[str]) -> None:
    replace_whole(file, "".join(line + "\n" for line in lines))


def read_metrics(file: epath.Path, kind: str | None = None) -> list[dict]:
    """The rows of a metrics.jsonl, of one kind or all; lines that are torn are left out."""
    return [row for _, row in _parsed(file) if row is not None and kind in (None, row["kind"])]


def read_until(file: epath.Path, step: int, rollbacks: int) -> list[dict]:
    """The rows behind a checkpoint of `step`, which knows of so many rollbacks: those of steps up to it, and of nothing
    that came later."""
    return [json.loads(line) for line in _parted(file, step, rollbacks)[0]]


OF_STEPS = (
    "update_skipped",
    "rolled_back",
    "loss_above_uniform",
)  # events that a run's steps bring about, whoever takes them


def take_over(source: epath.Path, target: epath.Path, step: int, rollbacks: int, event: dict) -> None:
    """Makes the rows of another run up to `step`, marked `taken_over`, the first of a run that goes on from there, and an
    event the next: whole or not at all. What befell only the other's processes stays there."""
    rows = read_until(source, step, rollbacks)
    lines = [json.dumps({**row, "taken_over": True}) for row in rows if row.get("event") in (None, *OF_STEPS)]
    _replace(target, [*lines, _line("event", step, event)])


def _jsonable(value):
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_jsonable(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.12g}") if math.isfinite(value) else str(value)
    return value


def _tensorboard(directory: epath.Path, step: int):
    from tensorboardX import SummaryWriter

    return SummaryWriter(str(directory), purge_step=step + 1)


def _wandb(project: str, directory: epath.Path, config):
    from gptjax.config.extras import library

    wandb = library("wandb", f"train.wandb_project={project!r}", otherwise=", or set it to None")
    return wandb.init(project=project, name=directory.name, config=config.to_dict(), resume="allow")
