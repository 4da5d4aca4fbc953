"""What `gptjax study status` shows: a row with a bar for every run, and what lies in the folder beside them."""

import sys
import time

from gptjax import terminal
from gptjax.errors import UserError, did_you_mean
from gptjax.storage import folder_kinds
from gptjax.study.running import identity, ledger, status
from gptjax.study.running.layout import StudyDirectory

BAR = 20  # characters
WATCH_SECONDS = 2.0


def facts(directory: StudyDirectory) -> dict:
    """Everything as JSON. Raises UserError: no study was run there."""
    found = ledger.read(directory)
    if found is None:
        parent = directory.path.parent
        near = [p.name for p in parent.iterdir() if (p / "study.json").exists()] if parent.exists() else []
        raise UserError(
            f"{directory.path} has no study.json{did_you_mean(directory.path.name, near)}; it is"
            f" {folder_kinds.said(directory.path)}; give the --out folder of gptjax study run."
        )
    statuses = status.read(directory, found)
    return {
        "directory": str(directory.path),
        "counts": {state: sum(known.state == state for known in statuses) for state in status.STATES},
        "flops_done": round(status.flops_done(statuses)),
        "flops_left": round(status.flops_left(statuses)),
        "runs": [known.as_dict() for known in statuses],
        "other_code": _of_other_code(directory, found),
        "not_declared": _not_declared(directory, found),
        "code_changed": found.code != identity.code(),
    }


def _of_other_code(directory: StudyDirectory, found: ledger.Ledger) -> list[dict]:
    """Runs on disk whose config and text are those of a declared run, and whose code is not."""
    names = {entry.key: entry.name for entry in found.entries}
    rows = [
        {"name": names[key], "key": old.key, "state": status.of_run(directory, found, old).state}
        for key, others in ledger.of_other_code(found).items()
        for old in others
    ]
    return [row for row in rows if row["state"] != status.PLANNED]


def _not_declared(directory: StudyDirectory, found: ledger.Ledger) -> list[dict]:
    """Run directories that belong to no declared run."""
    named = {entry.key: entry for entry in found.former}
    known = {entry.key for entry in found.entries} | {row["key"] for row in _of_other_code(directory, found)}
    folder = directory.path / "runs"
    keys = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    rows = []
    for key in keys:
        if key not in known:
            state = status.of_run(directory, found, named[key]).state if key in named else "unknown"
            rows.append({"key": key, "name": named[key].name if key in named else None, "state": state})
    return rows


def table(found: dict) -> str:
    """Of `facts`."""
    counts = ", ".join(f"{count} {state}" for state, count in reversed(found["counts"].items()) if count)
    total = found["flops_done"] + found["flops_left"]
    lines = [
        f"study  {found['directory']}",
        f"runs   {len(found['runs'])}: {counts}; {found['flops_done'] / max(1, total):.1%} of {terminal.si(total)} FLOPs",
        "",
    ]
    width = max([len("run"), *(len(row["name"]) for row in found["runs"])])
    lines.append(f"{'run':<{width}}  stage   params  tokens  FLOPs   state     {'':<{BAR + 2}}  loss")
    lines += [_row(row, width) for row in found["runs"]]
    lines += [
        f"on disk, made by other code: {row['name']} ({row['key']}, {row['state']})" for row in found["other_code"]
    ]
    lines += [
        f"on disk, no longer declared: {row['name'] or 'no name'} ({row['key']}, {row['state']})"
        for row in found["not_declared"]
    ]
    if any(row["state"] in status.ENDED for row in found["other_code"]):
        lines.append("gptjax study run --accept_code accepts finished runs of other code; --rerun_code repeats them.")
    if found["code_changed"]:
        lines.append("code that can change results was modified since the study last ran.")
    return "\n".join(lines)


def _row(row: dict, width: int) -> str:
    params = row["params"]["total"] if row["params"] else None
    numbers = [terminal.si(n) if n is not None else "-" for n in (params, row["tokens"], row["flops"])]
    said = f"{row['loss']:.4f}" if row["state"] == status.DONE else row["reason"]
    line = f"{row['name']:<{width}}  {row['stage']:<6}  {numbers[0]:<6}  {numbers[1]:<6}  {numbers[2]:<6}"
    return f"{line}  {row['state']:<8}  {bar(row['fraction'])}  {said}".rstrip()


def bar(fraction: float) -> str:
    """[#####.....]; full only where it is done."""
    full = int(fraction * BAR)
    return f"[{'#' * full}{'.' * (BAR - full)}]"


def watch(directory: StudyDirectory) -> int:
    """Shows the table anew until Ctrl-C, or until nothing is left to wait for."""
    try:
        while True:
            text = table(facts(directory))
            sys.stdout.write(f"\x1b[H\x1b[J{text}\n" if sys.stdout.isatty() else f"{text}\n\n")
            sys.stdout.flush()
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return 0
