"""Points of a CSV file: params,tokens,flops,loss[,weight,run,seed], one line a point; loss/NAME is that on another text."""

import csv
import math

from etils import epath

from gptjax.errors import UserError, did_you_mean
from gptjax.study.points import Gathered, Row, repeated, screened

NUMBERS = ("params", "tokens", "flops", "loss", "weight", "seed")
COLUMNS = (*NUMBERS, "run")
ON_TEXT = "loss/"  # and a name: the loss on one of several texts
LARGEST_SEED = 2**63 - 1
GIVEN = "given"  # the convention of N and of C: whatever the file's author counted


def read(path: str) -> Gathered:
    """Raises UserError, with the line: no such file, no such column, no number, neither tokens nor flops."""
    lines = _lines(path)
    if not lines:
        raise UserError(f"{path} is empty; expected the line {','.join(COLUMNS[:4])} and one for each point.")
    header = [name.strip() for name in lines[0]]
    _check_header(path, header)
    rows, notes = [], {}
    for number, cells in enumerate(lines[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise UserError(f"{path}, line {number}: {len(cells)} values for {len(header)} columns; mend the line.")
        rows.append(_row({name: cell.strip() for name, cell in zip(header, cells)}, path, number, notes))
    if not rows:
        raise UserError(f"{path} has no points below its first line; give one line for each run.")
    kept, excluded = screened(rows)
    said = [f"{what} of {count} points: {how}" for (what, how), count in notes.items()]
    return Gathered(kept, excluded, said + repeated(kept))


def _lines(path: str) -> list[list[str]]:
    file = epath.Path(path)
    if not file.exists():
        raise UserError(f"{path}: no such file or directory; give the --out of a study, or a CSV file of points.")
    try:
        return list(csv.reader(file.read_text().lstrip("\ufeff").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no CSV file: {error}; expected lines of {','.join(COLUMNS[:4])}.") from error


def _check_header(path: str, header: list[str]) -> None:
    for name in header:
        if name not in COLUMNS and not name.startswith(ON_TEXT):
            near = did_you_mean(name, COLUMNS)
            raise UserError(f"{path}: unknown column {name!r}{near}; there are: {', '.join(COLUMNS)}, {ON_TEXT}NAME.")
        if header.count(name) > 1:
            raise UserError(f"{path} has the column {name!r} twice; give each once.")
    for name in ("params", "loss"):
        if name not in header:
            raise UserError(f"{path} has no column {name!r}; expected {','.join(COLUMNS[:4])}[,weight,run,seed].")
    if "tokens" not in header and "flops" not in header:
        raise UserError(f"{path} has neither tokens nor flops, one of which a point needs; add a column.")


def _row(cells: dict[str, str], path: str, number: int, notes: dict) -> Row:
    values = {name: _number(cells, name, path, number) for name in NUMBERS if cells.get(name)}
    for name in ("params", "loss"):
        if name not in values:
            raise UserError(f"{path}, line {number}: {name} is empty; give a number.")
    _fill(values, path, number, notes)
    return Row(
        run=cells.get("run") or f"line {number}",
        params={GIVEN: values["params"]},
        tokens=values["tokens"],
        flops={GIVEN: values["flops"]},
        loss=values["loss"],
        weight=values.get("weight", 1.0),
        seed=int(values.get("seed", 0)),
        named=bool(cells.get("run")),
        facts={name: _number(cells, name, path, number) for name in cells if name.startswith(ON_TEXT) and cells[name]},
    )


def _number(cells: dict[str, str], name: str, path: str, number: int) -> float:
    try:
        value = float(cells[name])
    except ValueError as error:
        raise UserError(f"{path}, line {number}: {name}={cells[name]!r} is no number.") from error
    if name.startswith(ON_TEXT) and not (math.isfinite(value) and value > 0):
        raise UserError(f"{path}, line {number}: {name}={cells[name]} is no loss; leave it empty, or give one above 0.")
    if name == "weight" and not (math.isfinite(value) and value >= 0):
        raise UserError(f"{path}, line {number}: weight={cells[name]} is none; use a finite number of at least 0.")
    if name == "seed" and not (value.is_integer() and abs(value) < LARGEST_SEED):
        raise UserError(f"{path}, line {number}: seed={cells[name]} is no whole number of at most 18 digits.")
    return value


def _fill(values: dict[str, float], path: str, number: int, notes: dict) -> None:
    """What is missing of tokens and flops, by C = 6 N D."""
    if "tokens" not in values and "flops" not in values:
        raise UserError(f"{path}, line {number}: tokens and flops are both empty; give one of them.")
    for missing, known, how in (("flops", "tokens", "6 N D"), ("tokens", "flops", "C / (6 N)")):
        if missing not in values:
            factor = 6 * values["params"]
            values[missing] = factor * values[known] if missing == "flops" else _divided(values[known], factor)
            notes[missing, how] = notes.get((missing, how), 0) + 1


def _divided(value: float, by: float) -> float:
    return value / by if by else math.nan
