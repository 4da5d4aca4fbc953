"""Studies for tests: a tiny one, `gptjax study run` in processes of its own, and how it is killed with all it started."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import quick_compilation

from gptjax.checkpoints import validity
from gptjax.rundir import metrics, run_directory
from gptjax.study.running import layout, ledger, status

SECONDS = 240  # for anything a study is waited for

FILE = """
from ml_collections import ConfigDict
from gptjax.study import Study; from gptjax.study.declare import recipes
from gptjax.study.declare.declaration import Target


def get_study():
    base = ConfigDict(dict(
        model=dict(context_length=16, n_layers=1, d_model=16, n_heads=2, dtype="float32"),
        data=dict(tokenizer="bytes", path={text!r}, cache_dir={cache!r}),
        optim=dict(warmup_steps=2, peak_lr=3e-3),
        train=dict(batch_size=8, log_every=1, tensorboard=False),
        checkpoint=dict(every_steps=10),
        eval=dict(max_tokens=256),
    ))
    return Study(base=base, {fields})
"""


def write_study(file: pathlib.Path, text: pathlib.Path, fields: str) -> pathlib.Path:
    """fields: of the Study, as they stand in the file; sizes may be left out."""
    fields = fields if "sizes=" in fields else 'sizes={"s": {}}, ' + fields
    file.write_text(FILE.format(text=str(text), cache=str(text.parent / "cache"), fields=fields))
    return file


def write_done_run(path, steps: int, loss: float, kept=()) -> None:
    """A run directory as a finished run leaves it, as far as a study looks at it; by what writes it in a run."""
    run = run_directory.open_run(str(path))
    log_to = {"tensorboard": False, "wandb_project": None, "config": None}
    run.path.mkdir(parents=True, exist_ok=True)
    log = metrics.MetricsLog(run.path, resume_step=0, **log_to)
    log.write("train", steps, loss=loss, batch_hash="0")
    log.write("eval", steps, loss=loss)
    log.write("eval", steps, ema_loss=loss + 1)
    log.close()
    for step in {*kept, steps}:
        folder = run.checkpoints / str(step)
        (folder / "params").mkdir(parents=True, exist_ok=True)
        (folder / "params" / "array").write_text("numbers")
        validity.write_manifest(folder, step, {}, {}, {})


def start(file, out, *flags: str) -> subprocess.Popen:
    """gptjax study run, in a session of its own."""
    command = [sys.executable, "-m", "gptjax", "study", "run", str(file), f"--out={out}", "--batch_runs=off", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    environment = os.environ | {"XLA_FLAGS": quick_compilation.FLAGS}  # and one device
    return subprocess.Popen(command, text=True, start_new_session=True, env=environment, **pipes)


def run(file, out, *flags: str) -> tuple[int, str]:
    """(exit code, what was printed) of gptjax study run."""
    process = start(file, out, *flags)
    text, _ = process.communicate(timeout=SECONDS)
    return process.returncode, text


def of_folder(out) -> list[int]:
    """Processes of this machine that were told of the folder: the command and the runs."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(out).encode() in words and int(process.name) != os.getpid():
            found.append(int(process.name))
    return found


def kill_all(out, process: subprocess.Popen) -> None:
    """kill -9 of the command first, so that it cannot write down what happens to its runs, then of those."""
    process.kill()
    for number in of_folder(out):
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.communicate()
    wait_until(lambda: not of_folder(out))


def wait_until(condition) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def states(out) -> dict[str, status.RunStatus]:
    directory = layout.open_directory(str(out))
    return {known.entry.name: known for known in status.read(directory, ledger.read(directory))}


def points(out) -> dict[str, list]:
    """{run: (step, loss, batch hash) of every step, and the loss of the last evaluation}, as they are on disk."""
    directory, found = layout.open_directory(str(out)), {}
    for name, known in states(out).items():
        file = directory.run(known.entry.key) / "metrics.jsonl"
        rows = metrics.read_metrics(file) if file.exists() else []
        steps = [(row["step"], row["loss"], row["batch_hash"]) for row in rows if row["kind"] == "train"]
        found[name] = steps + [row["loss"] for row in rows if row["kind"] == "eval"][-1:]
    return found


def steps_taken(out) -> int:
    """Of all runs together, as far as metrics.jsonl has them."""
    files = pathlib.Path(out).glob("runs/*/metrics.jsonl")
    return sum(sum(1 for row in metrics.read_metrics(file) if row["kind"] == "train") for file in files)
