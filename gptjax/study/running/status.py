"""How far each run of a study is, read from its folder alone: nothing is remembered, nobody is asked.

planned    nothing is there             waiting   for the tuning runs, a trunk's checkpoint, the prediction
running    somebody writes there now    partial   it was stopped or killed, and goes on from its checkpoint
done       evaluated and saved at its last step
diverged   the loss is not finite; it is not run again      failed   it ended otherwise; reason: its log's last line
"""

import dataclasses
import json
import math
import time

from gptjax import errors, terminal
from gptjax.checkpoints import consistency, validity
from gptjax.config import config_file
from gptjax.errors import UserError, shorten
from gptjax.rundir import metrics, run_directory, runlock
from gptjax.study.running.layout import StudyDirectory
from gptjax.study.running.ledger import Entry, Ledger

PLANNED, WAITING, RUNNING, PARTIAL, DONE, DIVERGED, FAILED = STATES = (
    "planned", "waiting", "running", "partial", "done", "diverged", "failed",
)  # fmt: skip
ENDED = (DONE, DIVERGED)
TAIL_BYTES = 4096
LAUNCHERS = ("supervisor: ", "launch: ", "sbatch: ")  # beginnings of lines that only say that a run has ended


@dataclasses.dataclass(frozen=True)
class RunStatus:
    entry: Entry
    state: str
    step: int = 0
    loss: float | None = None  # held-out, at the last step; inf where it diverged
    reason: str = ""  # of what is waiting, diverged or failed

    @property
    def fraction(self) -> float:
        """Of its own steps, those that are taken."""
        if self.state == DONE:
            return 1.0
        first = self.entry.branch["step"] if self.entry.branch else 0
        own = max(1, (self.entry.steps or 0) - first)
        return min(1.0, max(0, self.step - first) / own)

    def as_dict(self) -> dict:
        """As JSON: a loss that is not finite is null."""
        facts = {"state": self.state, "step": self.step, "loss": self.loss, "reason": self.reason}
        return terminal.finite(dataclasses.asdict(self.entry) | facts | {"fraction": round(self.fraction, 4)})


def summary(statuses: list[RunStatus]) -> str:
    """'3 done, 2 running, 1 failed': how many there are of each state that some are in."""
    counts = {state: sum(known.state == state for known in statuses) for state in reversed(STATES)}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no runs"


def flops_done(statuses: list[RunStatus]) -> float:
    return sum((known.entry.flops or 0) * known.fraction for known in statuses)


def flops_left(statuses: list[RunStatus]) -> float:
    """Of what can still be run: not of runs that diverged."""
    open_runs = [known for known in statuses if known.state not in ENDED]
    return sum((known.entry.flops or 0) * (1 - known.fraction) for known in open_runs)


def read(directory: StudyDirectory, ledger: Ledger) -> list[RunStatus]:
    """Of every run of the ledger, in its order."""
    known = {}
    for entry in ledger.entries:
        if entry.key not in known or entry.key is None:
            known[entry.key] = of_run(directory, ledger, entry)
    return [
        dataclasses.replace(known[e.key], entry=e) if e.key else of_run(directory, ledger, e) for e in ledger.entries
    ]


def of_run(directory: StudyDirectory, ledger: Ledger, entry: Entry) -> RunStatus:
    """Of one run. A second process may be writing there: what is half written is taken for not written."""
    if entry.key is None:
        return RunStatus(entry, WAITING, reason="for the tuning runs")
    run = run_directory.open_run(str(directory.run(entry.key)))
    rows = _rows(run)
    if (loss := _final_loss(run, rows, entry.steps)) is not None:  # whoever holds it
        if reason := _of_another_run(directory, run, entry):
            return RunStatus(entry, FAILED, entry.steps, reason=reason)
        return RunStatus(entry, DONE, entry.steps, loss)
    if is_held(run):
        return RunStatus(entry, RUNNING, max((row["step"] for row in rows), default=0))
    if diverged := _diverged(rows):
        reason = f"{diverged.get('reason', '')} at step {diverged['step']}"
        return RunStatus(entry, DIVERGED, diverged["step"], math.inf, reason)
    saved = max(run.steps(), default=0)
    if (code := last_exit(directory, entry.key).get("code")) not in (None, 0, errors.SAVED_AND_STOPPED):
        return RunStatus(entry, FAILED, saved, reason=reason_of(directory, entry.key, code))
    if run.exists():
        return RunStatus(entry, PARTIAL, saved)
    return _not_begun(directory, ledger, entry)


def _of_another_run(directory: StudyDirectory, run: run_directory.RunDirectory, entry: Entry) -> str:
    """Why the finished run in the folder of a key is not the one that the study declares; "" where it is."""
    from gptjax.study.running import identity

    if not run.exists():
        return ""  # whoever reads its config says so
    file, move = directory.config(entry.key), "remove it, and the run is repeated"
    try:
        trained = identity.counted(run.config())
        declared = identity.counted(config_file.load_config(str(file))) if file.exists() else trained
    except UserError as error:
        return str(error)
    text = (consistency.read(run.path).get("data") or {}).get("fingerprint", entry.fingerprint)
    keys = dict.fromkeys([*declared, *trained])
    differing = {key: [declared.get(key), trained.get(key)] for key in keys if declared.get(key) != trained.get(key)}
    if differing:
        return f"{run.path} is another run than the study declares: {consistency.shown(differing)} there; {move}"
    if entry.fingerprint is not None and text != entry.fingerprint:
        shown = f"{str(text)[:12]}, the study declares {entry.fingerprint[:12]}"
        return f"{run.path} was trained on the text {shown}; {move}"
    return ""


def _rows(run: run_directory.RunDirectory) -> list[dict]:
    try:
        return metrics.read_metrics(run.metrics)
    except FileNotFoundError:
        return []


def _final_loss(run: run_directory.RunDirectory, rows: list[dict], steps: int) -> float | None:
    """Of the evaluation at the last step, where that step is saved too; None where one of the two is missing."""
    loss, standing = evaluated_loss(rows, steps), run.checkpoints / str(steps)
    saved = loss is not None and standing.exists() and validity.standing_of(standing).counts
    return loss if saved else None


def evaluated_loss(rows: list[dict], step: int) -> float | None:
    """Of the evaluation at a step; None: there is none. Of a run that learns from rewards, whose evaluations have no loss,
    minus the mean reward: less is better there too."""
    at_step = [row for row in rows if row["kind"] == "eval" and row["step"] == step]
    losses = [row["loss"] if "loss" in row else -row["reward"] for row in at_step if "loss" in row or "reward" in row]
    return float(losses[-1]) if losses else None


def _diverged(rows: list[dict]) -> dict | None:
    """The event with which the run ended, if it was that; a resume comes after it."""
    events = [row for row in rows if row["kind"] == "event"]
    return events[-1] if events and events[-1].get("event") == "diverged" else None


def _not_begun(directory: StudyDirectory, ledger: Ledger, entry: Entry) -> RunStatus:
    if entry.stage == "target" and not directory.prediction.exists():
        return RunStatus(entry, WAITING, reason="for the prediction")
    trunk = ledger.trunk_of(entry)
    if trunk is None or _has_step(directory, trunk, entry.branch["step"]):
        return RunStatus(entry, PLANNED)
    reason = f"for step {entry.branch['step']} of {trunk.name}"
    state = of_run(directory, ledger, trunk).state
    return RunStatus(
        entry, WAITING, reason=reason + (f", which is {state} without it" if state in (*ENDED, FAILED) else "")
    )


def _has_step(directory: StudyDirectory, trunk: Entry, step: int) -> bool:
    checkpoint = run_directory.open_run(str(directory.run(trunk.key))).checkpoints / str(step)
    return checkpoint.exists() and validity.standing_of(checkpoint).counts


# ---- what a process left behind


def last_exit(directory: StudyDirectory, key: str) -> dict:
    """{"code", "time", "seconds", "attempt"} of the last attempt; code None: it has not said how it ended."""
    try:
        value = json.loads(directory.exit(key).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def reason_of(directory: StudyDirectory, key: str, code: int) -> str:
    """The last line that the run's processes printed, and their code. On Slurm the launcher has a log for each job."""
    name = last_exit(directory, key).get("log")
    slurm = directory.path / "logs" / "slurm"
    jobs = sorted(slurm.glob(f"gptjax-{key}-*.log"), key=lambda file: file.stat().mtime) if slurm.exists() else []
    logs = [*jobs[-1:], directory.path / "logs" / name if name else directory.log(key)]
    line = next(filter(None, map(_last_line, logs)), "it printed nothing")
    return f"{line} (exit code {code})"


def _last_line(file) -> str:
    """That is not a launcher's own."""
    try:
        with file.open("rb") as log:
            log.seek(max(0, file.stat().length - TAIL_BYTES))
            lines = log.read().decode(errors="replace").replace("\r", "\n").splitlines()
    except FileNotFoundError:
        return ""
    telling = (shorten(line) for line in reversed(lines) if not line.startswith(LAUNCHERS))
    return next(filter(None, telling), "")


def is_held(run: run_directory.RunDirectory) -> bool:
    """Whether somebody writes to a run directory now."""
    file = run.path / runlock.NAME
    if "://" in str(run.path):
        return _has_fresh_lease(file)
    try:
        return _is_flocked(file)
    except FileNotFoundError:
        return False


def _is_flocked(file) -> bool:
    import fcntl

    with open(file) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in runlock.NO_FLOCK:
                raise
            return _has_fresh_lease(file)
        return False


def _has_fresh_lease(file) -> bool:
    """A lease is written anew every few seconds; clocks of stores and hosts differ by less than it lasts."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return False
    return stat.length > 0 and time.time() - stat.mtime < runlock.LEASE_SECONDS
