"""Reading ahead: whoever reads, in threads or processes, however they end, the same rows are read, and nothing is left."""

import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import runs

from gptjax import errors, schedule
from gptjax.config.config_file import from_dict
from gptjax.data.rows import reading
from gptjax.data.rows.objectives import NextToken
from gptjax.data.rows.pipeline import TrainRows
from gptjax.data.tokens import folder
from gptjax.data.tokens.store import prepare
from gptjax.errors import UserError
from gptjax.rundir import metrics, resuming
from gptjax.training import main

NAMES = ("web", "books", "code")
STEPS = 24


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A run of 24 steps of 16 rows on a mixture of three prepared texts, whose weights change once, in whole documents."""
    return mixture_values(tmp_path_factory.mktemp("mixed"))


def mixture_values(where) -> dict:
    rng = np.random.default_rng(0)
    base = dict(tokenizer="bytes", separator="###", cache_dir=str(where / "cache"), val_fraction=0.1)
    sources = {}
    for i, name in enumerate(NAMES):
        sizes = rng.integers(1, 60, 25 * (i + 1))
        documents = ["".join(rng.choice(list("abcdefgh"), size=n)) for n in sizes]
        (where / f"{name}.txt").write_text("\n###\n".join(documents))
        made = prepare(from_dict({"data": base | dict(path=str(where / f"{name}.txt")), "train": {"steps": 1}}).data)
        sources[name] = made.description["folder"]
    later = ((16 * 16 * 15 + 5, {"web": 0.0, "books": 1.0, "code": 2.0}),)  # a row after step 15, in tokens
    weights = dict(zip(NAMES, (0.5, 0.3, 0.2)))
    mixture = dict(mixture=sources, weights=weights, weight_stages=later, packing="best_fit")
    return {
        "model": dict(context_length=16, n_layers=2, d_model=32, n_heads=4, dtype="float32"),
        "data": mixture | dict(cache_dir=str(where / "cache")),
        "optim": dict(peak_lr=3e-3, warmup_steps=5),
        "train": dict(steps=STEPS, batch_size=16, log_every=1, tensorboard=False),
        "checkpoint": dict(every_steps=6, keep=9),
        "eval": dict(every_steps=12, max_tokens=512),
    }


def make_calls(values, local=((0, 16),), own=((0, 16),), unit=1) -> reading.Calls:
    config = from_dict(values)
    rows = TrainRows(prepare(config.data), config.data, 16, NextToken())
    return reading.Calls(rows, config, unit, {16: local}, {16: own})


def assert_equal(a: dict, b: dict) -> None:
    assert a["rows_read"] == b["rows_read"] and a["hash_S"].tolist() == b["hash_S"].tolist()
    assert len(a["batch"]) == len(b["batch"])
    for part, other in zip(a["batch"], b["batch"]):
        assert part.keys() == other.keys()
        for name, array in part.items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)


# ---- what a call is


def test_a_call_has_the_rows_of_its_steps_and_hashes_of_its_own(mixed):
    values = runs.changed(mixed, train=dict(steps_per_call=4, log_every=4), checkpoint=dict(every_steps=12))
    rows, calls = make_calls(values)._rows, make_calls(values, ((0, 8), (8, 16)), ((8, 16),))
    assert len(calls) == 6
    read = calls[3]
    for step in range(4):
        first = 16 * (12 + step)
        for part, start in zip(read["batch"], (0, 8)):
            for name, array in rows.rows(first + start, first + start + 8).items():
                np.testing.assert_array_equal(part[name][step], array)
        assert read["hash_S"][step] == rows.hashes(first + 8, first + 16).sum()
    assert read["rows_read"] == 4 * 8 and read["hash_S"].dtype == np.uint64


def test_rows_that_pad_a_small_batch_have_no_weight_no_hash_and_are_not_counted(mixed):
    ramp = dict(batch_ramp_start=3, batch_ramp_increment=13, batch_ramp_tokens=3 * 16 * 5)
    config = from_dict(runs.changed(mixed, train=ramp))
    rows, ranges = make_calls(mixed)._rows, {size: ((0, 4), (4, size)) for size in (8, 16)}
    calls = reading.Calls(rows, config, 8, ranges, {size: ((4, size),) for size in (8, 16)})
    assert calls.padded(0) == 8 and schedule.batch_size(config, 0) == 3
    read = calls[0]
    assert [part["weight_BL"].any(axis=(0, 2)).tolist() for part in read["batch"]] == [
        [True] * 3 + [False],
        [False] * 4,
    ]
    assert read["hash_S"].tolist() == [0] and read["rows_read"] == 0
    assert calls[len(calls) - 1]["rows_read"] == 12
    whole = reading.Calls(rows, config, 8, ranges, ranges)
    assert whole[1]["hash_S"][0] == rows.hashes(3, 6).sum() and whole[1]["rows_read"] == 3


# ---- who reads


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_processes_read_what_a_thread_reads_from_any_call_on(mixed, workers, capfd):
    calls = make_calls(mixed)
    with reading.Reader(calls, 13, workers) as reader:
        found = [reader.get(call) for call in range(13, 20)]
    for call, read in zip(range(13, 20), found):
        assert_equal(read, calls[call])
        assert all(array.flags.owndata for part in read["batch"] for array in part.values()), (
            "copied out of shared memory"
        )
    assert not running_children() and "leaked" not in capfd.readouterr().err


def running_children(parent: int | None = None) -> list[int]:
    """Processes that read, of this one or of parent."""
    parent = parent or os.getpid()
    listed = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(parent)], capture_output=True, text=True
    ).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if "spawn_main" in line]


def test_what_goes_wrong_in_a_process_that_reads_is_raised_where_its_rows_are_due(tmp_path):
    values = mixture_values(tmp_path)
    [shard] = (tmp_path / "cache").glob(f"{values['data']['mixture']['code'].rsplit('/')[-1]}/train-*")
    calls = make_calls(values)
    data = bytearray((shard / "c" / "0").read_bytes())
    data[100] ^= 1
    (shard / "c" / "0").write_bytes(data)
    with reading.Reader(calls, 0, 1) as reader:
        with pytest.raises(UserError, match=f"{shard} was altered after it was written .block 0 of c/0") as error:
            reader.get(0)
    assert "\n" not in str(error.value)


READING = """
import os, pathlib, pickle, signal, sys
from gptjax.hosts import interrupt
from gptjax import errors
from gptjax.data.rows import reading

if __name__ == "__main__":
    calls = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
    with interrupt.StopRequest() as stop, reading.Reader(calls, 0, 2) as reader:
        print("begun", flush=True)
        reader.get(0)
        for line, call in zip(sys.stdin, range(1, 20)):
            print(int(reader.get(call)["hash_S"][0]), stop.name, flush=True)
"""


@pytest.fixture
def outside(mixed, tmp_path):
    """(a process that reads with two others, in a process group of its own, what it reads)."""
    import cloudpickle

    calls = make_calls(mixed)
    (tmp_path / "calls").write_bytes(cloudpickle.dumps(calls))
    (tmp_path / "main.py").write_text(textwrap.dedent(READING))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py"), str(tmp_path / "calls")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    yield process, calls
    process.kill()
    process.communicate()


def ask(process) -> list[str]:
    """The hash of the next call, and the signal that came before."""
    process.stdin.write("next\n")
    process.stdin.flush()
    assert select.select([process.stdout], [], [], runs.SECONDS)[0], "no answer"
    return process.stdout.readline().split()


def gone(pids) -> bool:
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{pid}/task") and b"Z" != state(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def state(pid) -> bytes:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1]
    except OSError:
        return b"Z"


def test_ctrl_c_reaches_the_run_alone_from_its_first_moment_on_and_it_reads_on(outside):
    process, calls = outside
    assert process.stdout.readline() == "begun\n"
    deadline = time.monotonic() + runs.SECONDS
    while not running_children(process.pid):  # they still import what they need
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert ask(process) == [str(calls[1]["hash_S"][0]), "SIGINT"]
    os.killpg(process.pid, signal.SIGTERM)
    assert ask(process) == [str(calls[2]["hash_S"][0]), "SIGTERM"]
    children = running_children(process.pid)
    _, stderr = process.communicate(timeout=runs.SECONDS)
    assert process.returncode == 0 and len(children) == 2 and gone(children)
    assert "Traceback" not in stderr and "leaked" not in stderr, stderr


@pytest.mark.slow
def test_a_killed_process_that_reads_ends_the_reading(outside):
    process, calls = outside
    process.stdout.readline()
    ask(process)
    for pid in running_children(process.pid):
        os.kill(pid, signal.SIGKILL)
    _, stderr = process.communicate("next\n" * 19, timeout=60)
    assert process.returncode == 1 and "exit code -9" in stderr


# ---- whole runs


@pytest.fixture(scope="module")
def undisturbed(mixed, tmp_path_factory):
    """Run directory of a run in this process."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert main.train(from_dict(mixed), str(workdir)) == 0
    return workdir


def hashes(workdir) -> list[str]:
    return [row["batch_hash"] for row in runs.train_rows(workdir)]


def events(workdir, name: str) -> list[dict]:
    return [row for row in metrics.read_metrics(workdir / "metrics.jsonl", "event") if row["event"] == name]


def test_the_log_says_how_often_each_source_was_read(mixed, undisturbed):
    rows = make_calls(mixed)._rows
    for row in runs.train_rows(undisturbed):
        counts = np.bincount(rows.locate(0, 16 * row["step"])[0], minlength=3)
        for name, count in zip(NAMES, counts.tolist()):
            assert row[f"epochs/{name}"] == pytest.approx(count / rows.rows_per_epoch[name])
    assert row["epochs/web"] > 2, "the shortest source was read several times"
    assert [event["by_process"] for event in events(undisturbed, "rows_read")] == [[16 * STEPS]]


def test_the_hash_in_the_log_is_the_sum_over_all_rows(mixed, undisturbed):
    hash_B = make_calls(mixed)._rows.hashes(0, 16 * STEPS)
    assert hashes(undisturbed) == [f"{hash_B[: 16 * step].sum():016x}" for step in range(1, STEPS + 1)]


def test_held_out_text_is_judged_by_source_and_as_one(undisturbed):
    evaluations = metrics.read_metrics(undisturbed / "metrics.jsonl", "eval")
    assert [row["step"] for row in evaluations] == [12, 24]
    for row in evaluations:
        assert row["tokens"] == sum(row[f"tokens/{name}"] for name in NAMES)
        nats = sum(row[f"loss/{name}"] * row[f"tokens/{name}"] for name in NAMES)
        assert row["loss"] == pytest.approx(nats / row["tokens"])
        n_bytes = sum(row[f"loss/{name}"] * row[f"tokens/{name}"] / row[f"bits_per_byte/{name}"] for name in NAMES)
        assert row["bits_per_byte"] == pytest.approx(nats / n_bytes)


@pytest.mark.slow  # three processes; distributed_test has runs that go on with fewer
def test_a_run_killed_with_two_processes_goes_on_with_one_and_other_readers(mixed, undisturbed, tmp_path):
    run = tmp_path / "run"
    ahead = runs.changed(mixed, data=dict(prefetch_workers=2))
    with runs.processes(ahead, run, tmp_path, 2, 4) as started:
        runs.wait_for_step(run, 14, started[0])
        readers = [pid for process in started for pid in running_children(process.pid)]
        started[1].kill()
        started[0].ends_with(errors.PEER_LOST)
    assert len(readers) == 4 and gone(readers)
    assert hashes(run) == hashes(undisturbed)[: len(hashes(run))] and len(hashes(run)) >= 14
    alone = runs.changed(mixed, data=dict(prefetch_workers=1))
    assert main.train(from_dict(alone), str(run)) == 0
    assert events(run, "resumed")[0]["step"] in (6, 12, 18)
    assert hashes(run) == hashes(undisturbed)
    for row, other in zip(runs.train_rows(run), runs.train_rows(undisturbed), strict=True):
        for name in ("loss", "grad_norm", "param_norm"):  # two processes add in another order than one
            np.testing.assert_allclose(row[name], other[name], rtol=1e-5)
    [(_, last), (_, wanted)] = (
        metrics.read_metrics(workdir / "metrics.jsonl", "eval")[-2:] for workdir in (run, undisturbed)
    )
    for name in ("loss", "loss/web", "bits_per_byte/code", "tokens", "tokens/books"):
        np.testing.assert_allclose(last[name], wanted[name], rtol=1e-5)
    assert not running_children()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_losses_are_bit_equal_whoever_reads_ahead(mixed, undisturbed, tmp_path, workers):
    ahead = runs.changed(mixed, data=dict(prefetch_workers=workers))
    assert main.train(from_dict(ahead), str(tmp_path)) == 0
    assert runs.losses(tmp_path) == runs.losses(undisturbed)
    runs.assert_same_state(tmp_path, undisturbed, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_every_process_reads_its_own_rows_and_all_together_the_same(mixed, undisturbed, tmp_path, processes):
    ahead = runs.changed(mixed, data=dict(prefetch_workers=1))
    with runs.processes(ahead, tmp_path / "run", tmp_path, processes, 8 // processes) as started:
        for process in started:
            process.ends_with(0)
            assert "leaked" not in process.output()
    assert hashes(tmp_path / "run") == hashes(undisturbed)
    [event] = events(tmp_path / "run", "rows_read")
    assert event["by_process"] == [16 * STEPS // processes] * processes


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_of_a_job_stops_it_saved_and_leaves_nothing(mixed, undisturbed, tmp_path, number):
    long = runs.changed(mixed, data=dict(prefetch_workers=2), train=dict(steps=4000))
    command = [sys.executable, "-m", "gptjax", "train", runs.write_config(long, tmp_path / "fields.py")]
    command += [f"--workdir={tmp_path / 'run'}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        runs.wait_for_step(tmp_path / "run", 3, process)
        readers = running_children(process.pid)
        os.killpg(process.pid, number)
        _, stderr = process.communicate(timeout=runs.SECONDS)
    finally:
        process.kill()
    assert process.returncode == errors.SAVED_AND_STOPPED, stderr
    assert "leaked" not in stderr and "Traceback" not in stderr
    assert len(readers) == 2 and gone(readers)


def test_a_text_altered_while_the_run_goes_on_is_one_line(tmp_path, monkeypatch):
    values = mixture_values(tmp_path)
    [shard] = (tmp_path / "cache").glob(f"{values['data']['mixture']['books'].rsplit('/')[-1]}/train-*")
    file = shard / "c" / "0"
    file.write_bytes(b"1" + file.read_bytes()[1:])
    monkeypatch.setattr(folder, "_HASHED_BYTES", {"local": 0, "remote": 0})  # as if it were large
    ahead = runs.changed(values, data=dict(prefetch_workers=1))
    with pytest.raises(UserError, match=f"{shard} was altered after it was written .block 0 of c/0") as error:
        main.train(from_dict(ahead), str(tmp_path / "run"))
    assert "\n" not in str(error.value) and not running_children()


def test_a_run_does_not_go_on_with_another_mixture_but_with_other_readers(mixed):
    before = from_dict(mixed)
    changes = dict(weights={"web": 0.4, "books": 0.4, "code": 0.2}, weight_stages=(), packing="concat")
    for name, value in changes.items():
        with pytest.raises(UserError, match=f"started with another config: data.{name} "):
            resuming.check_resume(before, from_dict(runs.changed(mixed, data={name: value})))
    resuming.check_resume(before, from_dict(runs.changed(mixed, data=dict(prefetch_workers=5))))
    resuming.check_resume(from_dict(json.loads(json.dumps(before.to_dict()))), before)


def test_a_run_does_not_go_on_with_another_text_of_a_source(mixed, undisturbed):
    swapped = mixed["data"]["mixture"] | {"web": mixed["data"]["mixture"]["books"]}
    with pytest.raises(UserError, match="the text or tokenizer is not the one that this run was started with"):
        main.train(from_dict(runs.changed(mixed, data=dict(mixture=swapped))), str(undisturbed), ("data.mixture",))
