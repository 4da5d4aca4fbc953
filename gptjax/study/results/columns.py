"""Which column of a table is what: params, tokens, flops, loss, weight, run, seed and family of a point; loss/NAME, that on
another text; params/NAME and flops/NAME, counted by another convention.

`--columns=params=parameter_count,tokens=tokens_B*1e9,loss=eval/loss` names them: a column of the file, with a factor after
a star where its unit is another; a number alone stands for all lines. Columns with a point's own names need no naming.
"""

import dataclasses
import difflib
import re

from gptjax.errors import UserError

REQUIRED = ("params", "loss")
NAMES = ("params", "tokens", "flops", "loss", "weight", "seed", "run", "family")
WORDS = ("run", "family")
# With a name behind them: the loss on one of several texts; N and C by another convention.
ON_TEXT, BY = "loss/", ("params/", "flops/")
PREFIXES = (ON_TEXT, *BY)
EXAMPLE = "--columns=params=COLUMN,tokens=COLUMN*1e9,loss=COLUMN"
# What others call them, to say which column may be meant; nothing is read by these without being named.
SIMILAR = {
    "params": ("params", "parameters", "parameter_count", "num_params", "n_params", "model_size", "N"),
    "tokens": ("tokens", "total_tokens", "num_tokens", "train_tokens", "D"),
    "flops": ("flops", "total_flops", "gflops", "compute", "budget", "C"),
    "loss": ("loss", "eval_loss", "val_loss", "final_loss"),
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a line's value of `name` stands."""

    name: str
    column: str | None  # None: `constant`, of all lines
    index: int = 0
    factor: float = 1.0
    constant: str = ""

    def value(self, cells: list[str]) -> str:
        return self.constant if self.column is None else cells[self.index]


@dataclasses.dataclass(frozen=True)
class Columns:
    """name -> what --columns gives for it, as it was typed."""

    given: dict[str, str]

    @property
    def named(self) -> bool:
        return bool(self.given)

    def sources(self, path: str, header: list[str]) -> dict[str, Source]:
        """Raises UserError: a column that is not there, or twice; none for what a point needs."""
        found = {}
        for name in header:
            if (name in NAMES or name.startswith(PREFIXES)) and name not in self.given:
                found[name] = Source(name, name, _index(path, header, name))
        for name, typed in self.given.items():
            found[name] = _source(path, header, name, typed)
        for name in REQUIRED:
            if name not in found:
                raise UserError(f"{path} has no column {name!r}{_near(name, header)}; {_listed(header)}")
        if "tokens" not in found and "flops" not in found:
            near = _near("tokens", header) or _near("flops", header)
            raise UserError(f"{path} has neither tokens nor flops, one of which a point needs{near}; {_listed(header)}")
        return found

    def unread(self, header: list[str], sources: dict[str, Source]) -> list[str]:
        """A note of the columns that nothing is read from; none where there are none."""
        read = {source.column for source in sources.values()}
        names = [name or "(no name)" for name in header if name not in read]
        return [f"columns that are not read: {', '.join(names)}"] if names else []


def parse(text: str | None) -> Columns:
    """Raises UserError: no list of name=column."""
    if text is None:
        return Columns({})
    names = "|".join((*NAMES, *(rf"{prefix}[^=,]+" for prefix in PREFIXES)))
    given = {}
    for part in re.split(rf",(?=(?:{names})=)", text):  # a column's own name may have commas in it
        name, equals, column = part.partition("=")
        if not equals or not column or not re.fullmatch(names, name):
            near = _closest(name, NAMES)
            hint = (
                f"did you mean {near!r}?"
                if near
                else f"there are: {', '.join((*NAMES, *(f'{prefix}NAME' for prefix in PREFIXES)))}."
            )
            raise UserError(f"--columns={text}: {part!r} is no NAME=COLUMN; {hint} Expected such as {EXAMPLE}.")
        if name in given:
            raise UserError(f"--columns={text} names {name} twice; give each once.")
        given[name] = column
    return Columns(given)


def _source(path: str, header: list[str], name: str, typed: str) -> Source:
    """A column by its whole name; else a column times a number; else a number."""
    if typed in header:
        return Source(name, typed, _index(path, header, typed))
    column, star, factor = typed.rpartition("*")
    if star and column.strip() in header and name not in WORDS:
        return Source(name, column.strip(), _index(path, header, column.strip()), _positive(name, typed, factor))
    if name not in WORDS and _is_number(typed):
        return Source(name, None, constant=typed)
    near = _closest(column.strip() if star else typed, header)
    unknown = re.search(r",(\w+)=", typed)  # taken for the column's own name, which may have commas in it
    if unknown:
        hint = f"; {unknown[1]!r} is no name; there are: {', '.join(NAMES)}"
    else:
        hint = f"; did you mean {near!r}?" if near else ""
    raise UserError(f"{path} has no column {typed!r}, which --columns={name}= names{hint}; {_listed(header, '')}")


def _positive(name: str, typed: str, factor: str) -> float:
    if not _is_number(factor) or not 0 < float(factor) < float("inf"):
        raise UserError(f"--columns={name}={typed}: {factor!r} is no factor; use a number above 0, such as *1e9.")
    return float(factor)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _index(path: str, header: list[str], name: str) -> int:
    if header.count(name) > 1:
        raise UserError(f"{path} has the column {name!r} twice; give each once.")
    return header.index(name)


def _near(name: str, header: list[str]) -> str:
    """That a column may be meant."""
    folded = {re.split(r"[/.\s]", column.casefold())[-1]: column for column in reversed(header)}
    folded |= {column.casefold(): column for column in header}
    for known in SIMILAR[name]:
        if close := difflib.get_close_matches(known.casefold(), folded, n=1, cutoff=0.75):
            return f"; is it {folded[close[0]]!r}?"
    return ""


def _closest(name: str, names) -> str | None:
    folded = {one.casefold(): one for one in names}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def _listed(header: list[str], example: str = f" Name it with {EXAMPLE}.") -> str:
    return f"its columns are: {', '.join(repr(name) for name in header)}.{example}"
