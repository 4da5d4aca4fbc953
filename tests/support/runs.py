"""Real training runs for tests: a tiny config, its processes, and what they left behind."""

import contextlib
import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from gptjax.checkpoints import consistency, validity
from gptjax.rundir import metrics, run_directory

SECONDS = 240  # for anything a run is waited for: far more than it takes


def default_or_slow(names, default):
    """Parameters of a test: those that are not in default are `slow`."""
    return [name if name in default else pytest.param(name, marks=pytest.mark.slow) for name in names]


def write_text(file) -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), size=rng.integers(2, 7))) for _ in range(50)]
    file.write_text(" ".join(rng.choice(words, size=6000)))


def write_config(values: dict, file) -> str:
    file.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({values!r})\n")
    return f"--config={file}"


def impatient(seconds: float) -> tuple[str, str]:
    """The `program` whose steps may take so many seconds, or twice their median, and not minutes."""
    settings = f"watchdog.FACTOR, watchdog.LEAST_SECONDS, watchdog.SHARE = 2, {seconds}, 0"
    return (
        "-c",
        f"import sys; from gptjax import cli; from gptjax.hosts import watchdog; {settings}; sys.exit(cli.main())",
    )


def changed(values: dict, **sections) -> dict:
    """values with fields of some sections replaced."""
    return values | {name: values.get(name, {}) | fields for name, fields in sections.items()}


def start(values, workdir, tmp_path):
    """A run in a process of its own."""
    command = [sys.executable, "-m", "gptjax", "train", write_config(values, tmp_path / "fields.py")]
    return subprocess.Popen([*command, f"--workdir={workdir}"], env=os.environ, stderr=subprocess.PIPE, text=True)


def kill_at_random_points(values, workdir, tmp_path, kills: int, most_steps: int) -> list[str]:
    """Trains to the end with so many kill -9: while it starts, trains, saves, writes a manifest, deletes old steps, or
    resumes. Returns what it was killed in, fewer than `kills` if it came to its end before."""
    rng, points = random.Random(kills), []
    while len(points) < kills:
        process = start(values, workdir, tmp_path)
        first_steps = None if points else 2 * values["checkpoint"]["every_steps"]
        point = _wait_for_random_point(rng, workdir, process, most_steps, first_steps)
        if process.poll() is not None:
            break
        points.append(point)
        process.kill()
        process.communicate()
    process = start(values, workdir, tmp_path)
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "set aside" not in stderr, stderr
    names = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert names == {str(step) for step in run_directory.open_run(workdir).steps()}, "nothing of killed saves is left"
    return points


def _wait_for_random_point(rng, workdir, process, most_steps: int, first_steps: int | None) -> str:
    """While it starts (1 of 5), some steps on (2 of 5), or within 50 ms of the beginning of a save (2 of 5).

    first_steps: so many steps on, from where there is something to resume.
    """
    kind = "step" if first_steps else rng.choice(["start", "step", "step", "save", "save"])
    saves, before = _saves(workdir), max([0, *(row["step"] for row in _rows(workdir))])
    if kind == "start":
        time.sleep(rng.uniform(1, 4))
    elif kind == "step":
        target = before + (first_steps or 0) + rng.randint(1, most_steps)
        _poll(lambda: any(row["step"] >= target for row in _rows(workdir)), process)
    else:
        _poll(lambda: _saves(workdir) - saves, process)
        time.sleep(rng.uniform(0, 0.05))
    return kind


def _rows(workdir):
    return train_rows(workdir) if (workdir / "metrics.jsonl").exists() else []


def _saves(workdir) -> set:
    folder = workdir / "checkpoints"
    return set(os.listdir(folder)) if folder.exists() else set()


def _poll(condition, process) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Process(subprocess.Popen):
    """One process of a run; `log` is the file that its output goes to."""

    def output(self) -> str:
        return self.log.read_text()

    def ends_with(self, code: int) -> float:
        """Waits for its end, checks the exit code, returns when it was (time.monotonic)."""
        got = self.wait(SECONDS)
        assert got == code, f"exit code {got}, expected {code}\n{self.output()}"
        return time.monotonic()


@contextlib.contextmanager
def processes(
    values, workdir, tmp_path, count: int, devices: int = 1, environments=None, arguments=None, folders=None,
    program=("-m", "gptjax"), **shared
):  # fmt: skip
    """`count` processes over loopback with `devices` each, as one run; none survives the `with`.

    environments, arguments, folders (to start in): {index: what differs}. program: what Python runs. shared: environment
    variables of all.
    """
    port = free_port()
    flags = re.sub(r"device_count=\d+", f"device_count={devices}", os.environ["XLA_FLAGS"])
    config = write_config(values, tmp_path / "fields.py")
    started = []
    try:
        for index in range(count):
            place = {"GPTJAX_COORDINATOR": f"127.0.0.1:{port}", "GPTJAX_NUM_PROCESSES": str(count)}
            place |= {"GPTJAX_PROCESS_ID": str(index)}
            environment = os.environ | {"XLA_FLAGS": flags} | (place if count > 1 else {}) | shared
            extra = (arguments or {}).get(index, [])
            log = tmp_path / f"log-{len(list(tmp_path.glob('log-*')))}.txt"
            with log.open("w") as stream:
                process = Process(
                    [sys.executable, *program, "train", config, f"--workdir={workdir}", *extra],
                    cwd=(folders or {}).get(index),
                    env=environment | (environments or {}).get(index, {}),
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                )
            process.log = log
            started.append(process)
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def lines_of_two(script: str, *words: str, environments=({}, {})) -> list[list[str]]:
    """What a script prints as two processes of one device each, once both have ended well."""
    place = {"GPTJAX_COORDINATOR": f"127.0.0.1:{free_port()}", "GPTJAX_NUM_PROCESSES": "2"}
    shared = os.environ | place | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, *words], env=shared | {"GPTJAX_PROCESS_ID": str(i)} | environments[i],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in (0, 1)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=SECONDS) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], outputs
    return [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in outputs]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, process) -> None:
    """Until condition() is true, while the process lives."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        if process.poll() is not None:
            raise AssertionError(process.output() if isinstance(process, Process) else process.stderr.read())
        time.sleep(0.01)


def wait_for_step(workdir, number, process) -> None:
    file = run_directory.open_run(workdir).metrics
    wait_until(lambda: file.exists() and any(row["step"] >= number for row in train_rows(workdir)), process)


def train_rows(workdir):
    return metrics.read_metrics(run_directory.open_run(workdir).metrics, "train")


def losses(workdir):
    return [(row["step"], row["loss"], row["grad_norm"], row["batch_hash"]) for row in train_rows(workdir)]


def saved_arrays(workdir, number, items=("params", "opt_state")):
    """{path: array} of these items of a checkpoint, read without gptjax's own code."""
    import orbax.checkpoint as ocp

    arrays = {}
    for item in items:
        path = workdir / "checkpoints" / str(number) / item
        with ocp.PyTreeCheckpointer() as reader:
            as_numpy = jax.tree.map(  # whatever devices of other processes they were saved from
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), dict(reader.metadata(path).item_metadata.tree)
            )
            tree = reader.restore(path, restore_args=as_numpy)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


def assert_same_state(a, b, number):
    """Two runs' checkpoints of a step are bit-equal."""
    before, after = saved_arrays(a, number), saved_arrays(b, number)
    assert before.keys() == after.keys() and len(before) > 20
    for name, array in before.items():
        assert np.array_equal(array, after[name]), name


def copy_step(workdir, step, to, **fields) -> None:
    """A checkpoint of a run once more, as if it had been saved at another step. fields: of its manifest, replaced."""
    folder = shutil.copytree(workdir / "checkpoints" / str(step), workdir / "checkpoints" / str(to))
    if (folder / "manifest.json").exists():
        edit_manifest(folder, step=to, **fields)
        return
    file = folder / "meta" / "metadata"  # of schema 1
    file.write_text(json.dumps(json.loads(file.read_text()) | {"step": to} | fields))


def edit_manifest(folder, **fields) -> None:
    """The manifest of a checkpoint, as if it had been written with other fields."""
    body = json.loads((folder / "manifest.json").read_text()) | fields
    body.pop("sha256")
    (folder / "manifest.json").write_text(json.dumps(body | {"sha256": validity.digest(body)}))


def change_config(workdir, **sections) -> None:
    """config.json and manifest.json of a run as a resume with these fields would leave them."""
    directory = run_directory.open_run(str(workdir))
    values = json.loads((directory.path / "config.json").read_text())
    for name, fields in sections.items():
        values[name] |= fields
    before = directory.manifest()
    words = consistency.begun(
        before, [], None, values, before["data"]["fingerprint"], max(directory.steps(), default=0)
    )
    directory.write_json("manifest.json", before | words)
    directory.write_json("config.json", values)
