"""Points of a CSV file, one line a point: params,tokens,flops,loss[,weight,run,seed,family], and what columns.py has besides.

A file of other names, such as an export of W&B, is read by saying which column is what (`Columns`). What is missing of tokens
and flops comes from C = 6 N D. Columns that nothing is read from are named in a note.
"""

import csv
import io
import math

from etils import epath

from gptjax.errors import UserError
from gptjax.study.fits.points import Gathered, Row, repeated, screened
from gptjax.study.results.columns import BY, ON_TEXT, REQUIRED, WORDS, Columns, Source

LARGEST_SEED = 2**63 - 1
GIVEN = "given"  # the convention of N and of C: whatever the file's author counted


def read(path: str, columns: Columns | None = None) -> Gathered:
    """Raises UserError, with the line: no such file, no such column, no number, neither tokens nor flops."""
    columns = columns or Columns({})
    lines = _lines(path)
    if not lines:
        raise UserError(f"{path} is empty; expected the line params,tokens,flops,loss and one for each point.")
    header = [name.strip() for name in lines[0][1]]
    sources = columns.sources(path, header)
    rows, empty, notes = [], [], {}
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise UserError(f"{path}, line {number}: {len(cells)} values for {len(header)} columns; correct the line.")
        values = {name: source.value([cell.strip() for cell in cells]) for name, source in sources.items()}
        if columns.named and (missing := _missing(values)):
            empty.append({"run": values.get("run") or f"line {number}", "reason": f"unfinished: {missing} is empty"})
            continue
        rows.append(_row(values, sources, path, number, notes))
    if not rows and not empty:
        raise UserError(f"{path} has no points below its first line; give one line for each run.")
    kept, excluded = screened(rows)
    said = [f"{what} of {count} points: {how}" for (what, how), count in notes.items()]
    return Gathered(kept, empty + excluded, said + columns.unread(header, sources) + repeated(kept))


def _lines(path: str) -> list[tuple[int, list[str]]]:
    """(number, cells) of each line with anything in it."""
    file = epath.Path(path)
    if not file.exists():
        raise UserError(
            f"{path}: no such file or directory; give the --out folder of a study, or a CSV file of points."
        )
    try:
        reader = csv.reader(io.StringIO(file.read_text().lstrip("\ufeff"), newline=""))
        return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a CSV file: {error}; expected lines of params,tokens,flops,loss.") from error


def _missing(values: dict[str, str]) -> str | None:
    """What a line of somebody else's table lacks to be a point: a run that has not ended has no loss."""
    for name in REQUIRED:
        if not values.get(name):
            return name
    return None if values.get("tokens") or values.get("flops") else "tokens"


def _row(cells: dict[str, str], sources: dict[str, Source], path: str, number: int, notes: dict) -> Row:
    values = {
        name: _number(cells[name], source, path, number)
        for name, source in sources.items()
        if name not in WORDS and cells[name]
    }
    for name in (*REQUIRED, *(name for name in sources if name.startswith(BY))):
        if name not in values:
            raise UserError(f"{path}, line {number}: {name} is empty; give a number.")
    _fill(values, path, number, notes)
    return Row(
        run=cells.get("run") or f"line {number}",
        params={GIVEN: values["params"], **_by_convention(values, "params/")},
        tokens=values["tokens"],
        flops={GIVEN: values["flops"], **_by_convention(values, "flops/")},
        loss=values["loss"],
        weight=values.get("weight", 1.0),
        seed=int(values.get("seed", 0)),
        family=cells.get("family") or "gpt",
        named=bool(cells.get("run")),
        facts={name: values[name] for name in values if name.startswith(ON_TEXT)},
    )


def _by_convention(values: dict[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}


def _number(cell: str, source: Source, path: str, number: int) -> float:
    """In the file's own words where it is none."""
    name, of = source.name, "" if source.column in (source.name, None) else f" (column {source.column!r})"
    where = f"{path}, line {number}: {name}"
    try:
        value = float(cell) * source.factor
    except ValueError as error:
        raise UserError(f"{where}={cell!r}{of} is no number.") from error
    if name.startswith(ON_TEXT) and not (math.isfinite(value) and value > 0):
        raise UserError(f"{where}={cell}{of} is no loss; leave it empty, or give one above 0.")
    if name == "weight" and not (math.isfinite(value) and value >= 0):
        raise UserError(f"{where}={cell}{of} is none; use a finite number of at least 0.")
    if name == "seed" and not (value.is_integer() and abs(value) < LARGEST_SEED):
        raise UserError(f"{where}={cell}{of} is no whole number of at most 18 digits.")
    return value


def _fill(values: dict[str, float], path: str, number: int, notes: dict) -> None:
    """What is missing of tokens and flops, by C = 6 N D."""
    if "tokens" not in values and "flops" not in values:
        raise UserError(f"{path}, line {number}: tokens and flops are both empty; give one of them.")
    for missing, known, how in (("flops", "tokens", "6 N D"), ("tokens", "flops", "C / (6 N)")):
        if missing not in values:
            factor = 6 * values["params"]
            divided = values[known] / factor if factor else math.nan
            values[missing] = factor * values[known] if missing == "flops" else divided
            notes[missing, how] = notes.get((missing, how), 0) + 1
