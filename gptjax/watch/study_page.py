"""The page of a study: the state of its runs, and the curves of all."""

from urllib.parse import quote

import numpy as np

from gptjax.errors import UserError
from gptjax.pages import numbers, palette
from gptjax.rundir import run_directory
from gptjax.study.running import status, status_table
from gptjax.watch import charts, view
from gptjax.watch.record import Record
from gptjax.watch.run_page import RunPage
from gptjax.watch.series import rounded
from gptjax.watch.view import View

STRETCHES = 60  # of a curve, of which there can be hundreds
HEADER = ("run", "state", "progress", "held-out loss", "training loss", "N", "D", "C (FLOPs)", "stage", "note")


class StudyPage:
    """As RunPage. links: whether a run's name leads to its own page, `?run=KEY`."""

    def __init__(self, directory, links: bool = False):
        self.directory, self._links = directory, links
        self._records = {}  # key: Record

    def look(self) -> View:
        """Raises UserError: no study was run there."""
        found = status_table.facts(self.directory)
        for row in found["runs"]:
            if row["key"] and row["state"] not in (status.PLANNED, status.WAITING):
                log = self.directory.run(row["key"]) / "metrics.jsonl"
                self._records.setdefault(row["key"], Record(log)).update()
        parts = {
            "head": _head(self.directory.path.name, found),
            "charts": "",
            "runs": view.section("Runs", self._table(found["runs"])),
            "notes": _notes(found),
            "facts": view.section("About this study", view.facts({"directory": str(self.directory.path)})),
        }
        going_on = found["counts"][status.RUNNING] > 0 or status.is_held(self.directory)
        over = not going_on and all(row["state"] in (*status.ENDED, status.FAILED) for row in found["runs"])
        ended = "all runs of the study have ended" if over else ""
        return View(self.directory.path.name, parts, self._charts(found["runs"]), going_on, ended=ended)

    def run_page(self, key: str) -> RunPage:
        """Raises UserError: the study has no run of this key."""
        if key not in {row["key"] for row in status_table.facts(self.directory)["runs"]}:
            raise UserError(f"{self.directory.path} has no run {key}.")
        return RunPage(run_directory.open_run(str(self.directory.run(key))))

    def _table(self, rows: list[dict]) -> str:
        head = "".join(f"<th{_words(name)}>{name}</th>" for name in HEADER)
        body = "\n".join(f"<tr>{''.join(self._cells(row))}</tr>" for row in rows)
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'

    def _cells(self, row: dict) -> list[str]:
        record, name = self._records.get(row["key"]), view.escaped(row["name"])
        training = record.train["loss"].last() if record else None
        cells = {
            "run": f'<a href="?run={quote(row["key"], safe="")}">{name}</a>' if self._links and record else name,
            "state": view.badge(row["state"]),
            "progress": view.progress(row["fraction"]),
            "held-out loss": numbers.loss(row["loss"]),
            "training loss": numbers.loss(training),
            "N": numbers.count((row["params"] or {}).get("total")),
            "D": numbers.count(row["tokens"]),
            "C (FLOPs)": numbers.flops(row["flops"]),
            "stage": view.escaped(row["stage"]),
            "note": view.escaped(row["reason"]),
        }
        return [f"<td{_words(name)}>{cells[name]}</td>" for name in HEADER]

    def _charts(self, rows: list[dict]) -> list[dict]:
        drawn = list({row["key"]: row for row in rows if row["key"] in self._records and row["params"]}.values())
        sizes = sorted({row["params"]["total"] for row in drawn})
        looks = {
            size: {"colour": colour, "group": f"N = {numbers.count(size)}"}
            for size, colour in zip(sizes, palette.ordered(len(sizes)))
        }
        curves = [_curve(row, self._records[row["key"]]) | looks[row["params"]["total"]] for row in drawn]
        ends = [
            {"name": row["name"], "kind": "dots", "x": [row["flops"]], "y": [row["loss"]]}
            | looks[row["params"]["total"]]
            for row in drawn
            if row["state"] == status.DONE and row["flops"] and row["loss"] is not None
        ]
        return [
            *charts.chart("curves", "Training loss (nats per token)", curves, "tokens", wide=True, log_x=True),
            *charts.chart("ends", "Held-out loss at the end (nats per token)", ends, "FLOPs", wide=True, log_x=True),
        ]


def _curve(row: dict, record: Record) -> dict:
    """Training loss over tokens."""
    drawn, tokens = record.train["loss"].drawn(STRETCHES), record.train["tokens"]
    if len(tokens):
        drawn["x"] = rounded(np.interp(drawn["x"], tokens.steps, tokens.values))
    return {"name": row["name"], "kind": "line", "x": drawn["x"], "y": drawn["y"]}


def _head(name: str, found: dict) -> str:
    counts = "".join(
        f"<div><dt>{state}</dt><dd>{count}</dd></div>" for state, count in found["counts"].items() if count
    )
    total = found["flops_done"] + found["flops_left"]
    done = found["flops_done"] / max(1, total)
    runs = found["runs"]
    words = f"{len(runs)} runs; {done:.1%} of {numbers.flops(total) if total else '0'} FLOPs done."
    return f'<h1>{view.escaped(name)}</h1>\n{view.progress(done)}\n<p>{words}</p>\n<dl class="tiles">{counts}</dl>'


def _notes(found: dict) -> str:
    said = [f"{row['name']} ({row['key']}) was run by other code; it is {row['state']}." for row in found["other_code"]]
    said += [
        f"{row['name'] or row['key']} is no longer declared; it is {row['state']}." for row in found["not_declared"]
    ]
    said += ["The code that decides numbers has changed since the study was last run."] if found["code_changed"] else []
    return view.section("Notes", f"<ul>{''.join(f'<li>{view.escaped(one)}</li>' for one in said)}</ul>" if said else "")


def _words(name: str) -> str:
    prose = " prose" if name == "note" else ""
    return f' class="words{prose}"' if name in ("run", "state", "stage", "note") else ""
