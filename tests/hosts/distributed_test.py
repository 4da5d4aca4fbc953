"""Several real processes over loopback as one run: equal numbers, agreed stops, lost and different peers, elasticity."""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import runs
from places import ROOT

import gptjax
from gptjax import cli, errors
from gptjax.checkpoints import checkpointer
from gptjax.config.config_file import from_dict
from gptjax.data.tokens.store import prepare
from gptjax.errors import UserError
from gptjax.hosts import distributed, peers
from gptjax.hosts.coordination import Alone, PeerLost
from gptjax.parallel import meshes
from gptjax.rundir import metrics, run_directory
from gptjax.training import main, resume
from gptjax.training import program as programs

STEPS = 20
NOTICED = 60  # seconds: jax by itself takes more than 100, ours is a matter of ten where nothing else runs
REPOSITORY = ROOT
GLOO = set("Gloo Rank is connected to peer ranks Expected number of".split())
"""Words of lines by gloo, whose threads write into each other's."""


@pytest.fixture(scope="module")
def wide(values):
    """A smaller run yet, saved every five steps, evaluated once in the middle."""
    short = dict(model=dict(n_layers=1), train=dict(steps=STEPS))
    return runs.changed(
        values, **short, checkpoint=dict(every_steps=5, keep=20), eval=dict(every_steps=10, max_tokens=128)
    )


@pytest.fixture(scope="module")
def alone(wide, tmp_path_factory):
    """Run directory of one process, this one, with eight devices."""
    run = tmp_path_factory.mktemp("alone") / "run"
    assert main.train(from_dict(wide), str(run)) == 0
    return run


@pytest.fixture(scope="module")
def two(wide, tmp_path_factory):
    """Run directory of two processes with two devices each, some steps of which are profiled."""
    profiled = runs.changed(wide, train=wide["train"] | dict(profile_steps=(7, 9)))
    folder = tmp_path_factory.mktemp("two")
    with runs.processes(profiled, folder / "run", folder, 2, 2) as started:
        for process in started:
            process.ends_with(0)
        for process in started[1:]:
            lines = [line for line in process.output().splitlines() if "preparing" not in line]
            said = [line for line in lines if not GLOO.issuperset(re.findall(r"[^\W\d]+", line))]
            assert not said, "only process 0 speaks"
    return folder / "run"


@pytest.fixture(scope="module")
def killed(wide, tmp_path_factory):
    """A run of four processes, one of which was killed: (run directory, the metrics.jsonl it left)."""
    folder, unevaluated = tmp_path_factory.mktemp("killed"), runs.changed(wide, eval=dict(every_steps=None))
    with runs.processes(unevaluated, folder / "run", folder, 4, 1) as started:
        runs.wait_for_step(folder / "run", 12, started[0])
        at = time.monotonic()
        started[2].kill()
        for index in (0, 1, 3):
            end = started[index].ends_with(errors.PEER_LOST)
            assert end - at < NOTICED
            assert "process 2" in last_word(started[index]) and "run the same command again" in last_word(
                started[index]
            )
        assert "Traceback" not in started[0].output()
        assert [line for line in started[0].output().splitlines() if line.startswith("host  ")][3].endswith(
            f"process 3 ({os.uname().nodename}): 1 x cpu, ids 6144-6144"
        )
    return folder / "run", metrics.read_metrics(folder / "run" / "metrics.jsonl", "train")


def last_word(process) -> str:
    return [line for line in process.output().splitlines() if line.startswith("gptjax: ")][-1]


# ---- the same numbers


def test_two_processes_train_as_one(alone, two):
    one, other = runs.train_rows(alone), runs.train_rows(two)
    assert [row["batch_hash"] for row in one] == [row["batch_hash"] for row in other] and len(one) == STEPS
    assert len({row["batch_hash"] for row in one}) == STEPS
    # The order of the sum over processes is gloo's, not XLA's: steps carry its last digits on (1.1e-6 of a gradient's
    # norm was seen under jax 0.12).
    for name in ("loss", "grad_norm", "param_norm"):
        np.testing.assert_allclose([row[name] for row in other], [row[name] for row in one], rtol=5e-6)
    assert list(two.glob("profile/**/*.xplane.pb")), "process 0 profiles alone, which changes no number"
    a, b = (metrics.read_metrics(run / "metrics.jsonl", "eval")[-1] for run in (alone, two))
    assert (a["tokens"], a["step"]) == (b["tokens"], b["step"])
    np.testing.assert_allclose([b["loss"], b["bits_per_byte"]], [a["loss"], a["bits_per_byte"]], rtol=1e-6)


def test_four_processes_are_bit_equal_to_two(killed, two):
    _, rows = killed
    assert len(rows) >= 12
    for row, other in zip(rows, runs.train_rows(two)):
        for name in ("step", "loss", "grad_norm", "param_norm", "batch_hash"):
            assert row[name] == other[name]


def test_a_process_reads_only_its_own_rows(alone, two):
    assert rows_read(alone) == [16 * STEPS]
    assert rows_read(two) == [8 * STEPS] * 2


def rows_read(run):
    [event] = [row for row in metrics.read_metrics(run / "metrics.jsonl", "event") if row["event"] == "rows_read"]
    return event["by_process"]


# ---- ends


def assert_restored_as_saved(run, wide) -> None:
    """What one process holds of the newest step is what several saved, bit for bit."""
    config = from_dict(wide).replace(model={"vocab_size": 9})
    program = programs.build(config, meshes.make_mesh(config), "xla")
    saved = run_directory.open_run(run).steps()[-1]
    reader = checkpointer.Checkpointer(run / "checkpoints")
    state = resume.read_state(reader, saved, program.abstract_state, program.state_sharding)
    reader.close()
    plain = {"params": state.params, "opt_state": checkpointer.to_plain(state.opt_state)}
    arrays = {
        name + jax.tree_util.keystr(path): np.asarray(leaf)
        for name, tree in plain.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    before = runs.saved_arrays(run, saved)
    assert before.keys() == arrays.keys() and all(np.array_equal(before[name], arrays[name]) for name in before)


def assert_goes_on_in_one(run, two, wide) -> None:
    """Over the same batches as the undisturbed run, to the same losses but for the order of gloo's sums."""
    assert main.train(from_dict(wide), str(run)) == 0
    assert [row[3] for row in runs.losses(run)] == [row[3] for row in runs.losses(two)]
    np.testing.assert_allclose([row[1] for row in runs.losses(run)], [row[1] for row in runs.losses(two)], rtol=1e-6)


def test_a_killed_run_of_four_processes_goes_on_with_one(killed, two, wide, tmp_path):
    run = shutil.copytree(killed[0], tmp_path / "run")
    assert_restored_as_saved(run, wide)
    assert_goes_on_in_one(run, two, wide)


@pytest.mark.slow  # with one process at once: above
def test_a_killed_run_goes_on_with_two_processes_and_then_one_bit_equal(killed, two, wide, tmp_path):
    run = shutil.copytree(killed[0], tmp_path / "run")
    with runs.processes(wide, run, tmp_path, 2, 2) as started:  # 4 -> 2
        runs.wait_for_step(run, 16, started[0])
        started[1].send_signal(signal.SIGTERM)  # and, in the train loop, the end of this part
        for process in started:
            process.ends_with(errors.SAVED_AND_STOPPED)
        assert "SIGTERM at process 1" in started[0].output() and "resumed from step" in started[0].output()
    saved = run_directory.open_run(run).steps()[-1]
    rows = runs.losses(run)
    assert rows == runs.losses(two)[: len(rows)] and rows[-1][0] == saved < STEPS
    common = max(set(run_directory.open_run(run).steps()) & set(run_directory.open_run(two).steps()))
    assert common >= 15
    runs.assert_same_state(run, two, common)
    assert_restored_as_saved(run, wide)  # 2 -> 1
    assert_goes_on_in_one(run, two, wide)


@pytest.mark.slow  # during a save: below
def test_sigterm_in_an_evaluation_stops_all_at_the_same_step(values, tmp_path):
    slow = runs.changed(values, eval=dict(every_steps=5, batch_size=4, max_tokens=None))
    with runs.processes(slow, tmp_path / "run", tmp_path, 2, 1) as started:
        runs.wait_for_step(tmp_path / "run", 5, started[0])
        started[1].send_signal(signal.SIGTERM)
        for process in started:
            process.ends_with(errors.SAVED_AND_STOPPED)
    assert not metrics.read_metrics(tmp_path / "run" / "metrics.jsonl", "eval"), "the evaluation was over already"
    assert run_directory.open_run(tmp_path / "run").steps() == [5]
    assert runs.train_rows(tmp_path / "run")[-1]["step"] == 5


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_during_a_save_lets_it_end_and_stops_all_at_the_same_step(wide, tmp_path, number):
    often = runs.changed(wide, train=dict(steps=4000), eval=dict(every_steps=None, max_tokens=64))
    run = run_directory.open_run(tmp_path / "run")

    def saving():
        return run.checkpoints.exists() and any(p.name.startswith("10.") for p in run.checkpoints.iterdir())

    with runs.processes(often, run.path, tmp_path, 2, 2) as started:
        runs.wait_until(saving, started[0])
        started[1].send_signal(number)
        for process in started:
            process.ends_with(errors.SAVED_AND_STOPPED)
    assert 10 in run.steps() and run.steps()[-1] == runs.train_rows(run.path)[-1]["step"]


@pytest.mark.slow  # before the first step: below
def test_without_process_0_the_others_end_and_say_so(values, tmp_path):
    with runs.processes(values, tmp_path / "run", tmp_path, 2, 1) as started:
        runs.wait_for_step(tmp_path / "run", 3, started[0])
        at = time.monotonic()
        started[0].kill()
        assert started[1].ends_with(errors.PEER_LOST) - at < NOTICED
        assert "process 0" in last_word(started[1]) and "the coordinator" in last_word(started[1])


@pytest.mark.slow  # waits for the heartbeat timeout
def test_a_stopped_peer_is_lost_to_the_others(values, tmp_path):
    long = runs.changed(values, train=dict(steps=4000))
    with runs.processes(long, tmp_path / "run", tmp_path, 2, 1) as started:
        runs.wait_for_step(tmp_path / "run", 3, started[0])
        at = time.monotonic()
        started[1].send_signal(signal.SIGSTOP)
        assert started[0].ends_with(errors.PEER_LOST) - at < NOTICED
        assert "process 1" in last_word(started[0])


@pytest.mark.slow
def test_a_checkpoint_by_the_clock_is_written_by_all_at_one_step(values, tmp_path):
    timed = runs.changed(values, checkpoint=dict(every_steps=None, every_minutes=1 / 60, keep=50))
    timed = runs.changed(timed, train=dict(steps=4000), eval=dict(every_steps=None))
    run = run_directory.open_run(tmp_path / "run")
    with runs.processes(timed, run.path, tmp_path, 2, 1) as started:
        runs.wait_until(lambda: len(run.steps()) >= 3, started[0])
        started[0].send_signal(signal.SIGTERM)
        for process in started:
            process.ends_with(errors.SAVED_AND_STOPPED)


# ---- the start


@pytest.mark.parametrize(
    "missing, said",
    [(1, "process 1 of 2 did not come within 3 s"), (0, "process 0, which coordinates")],
)
def test_a_process_that_never_comes_is_named(values, tmp_path, missing, said):
    with runs.processes(values, tmp_path / "run", tmp_path, 2, 1, GPTJAX_START_SECONDS="3") as started:
        started[missing].kill()
        started[1 - missing].ends_with(errors.PEER_LOST)
        assert said in last_word(started[1 - missing])


@pytest.mark.slow  # of two: above
def test_of_three_the_one_that_never_comes_is_named_by_both_others(values, tmp_path):
    with runs.processes(values, tmp_path / "run", tmp_path, 3, 1, GPTJAX_START_SECONDS="8") as started:
        started[1].kill()
        for index in (0, 2):
            started[index].ends_with(errors.PEER_LOST)
            assert "process 1 of 3 did not come within 8 s" in last_word(started[index])


def test_processes_with_another_config_code_or_package_are_named_with_what_differs(values, tmp_path):
    code = tmp_path / "code"
    shutil.copytree(pathlib.Path(gptjax.__file__).parent, code / "gptjax", ignore=shutil.ignore_patterns("__py*"))
    with (code / "gptjax" / "optim" / "optimizers.py").open("a") as file:
        file.write("# changed\n")
    package = tmp_path / "package" / "numerology-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: numerology\nVersion: 1.0\n")
    environments = {1: {"PYTHONPATH": f"{code}{os.pathsep}{package.parent}", "PYTHONSAFEPATH": "1"}}
    arguments = {1: ["--config.optim.peak_lr=1e-3"]}
    with runs.processes(
        values, tmp_path / "run", tmp_path, 2, 1, environments=environments, arguments=arguments
    ) as started:
        at = time.monotonic()
        for process in started:
            assert process.ends_with(errors.USER_ERROR) - at < 60
            message = last_word(process)
            host = os.uname().nodename
            assert f"process 1 ({host}) has a different config from process 0 ({host})" in message
            assert "optim.peak_lr (0.003 -> 0.001)" in message
            assert f"process 1 ({host}) has a different code" in message and "gptjax/optim/optimizers.py" in message
            assert f"process 1 ({host}) has a different packages" in message and "numerology (None -> 1.0)" in message
            assert "Traceback" not in process.output()
    assert not (tmp_path / "run").exists()


def relative(values, text, folder, written: str | None):
    """values with a path that leads elsewhere from folder: to `written`, or to nothing. And what starts there."""
    path = os.path.relpath(text)
    if written is not None:
        (folder / path).resolve().parent.mkdir(parents=True, exist_ok=True)
        (folder / path).resolve().write_text(written)
    return runs.changed(values, data=dict(path=path)), dict(
        folders={1: folder}, environments={1: {"PYTHONPATH": str(REPOSITORY)}}
    )


def test_a_user_error_of_one_process_ends_all_with_its_message(values, text, tmp_path):
    elsewhere = tmp_path / "a" / "b"
    elsewhere.mkdir(parents=True)
    values, there = relative(values, text, elsewhere, None)
    with runs.processes(values, tmp_path / "run", tmp_path, 2, 1, **there) as started:
        for process in started:
            process.ends_with(errors.USER_ERROR)
        assert "process 1 " in last_word(started[0]) and "text.txt does not exist" in last_word(started[0])
        assert "text.txt does not exist" in last_word(started[1])


@pytest.mark.slow
def test_a_process_that_reads_another_text_is_named(values, text, tmp_path):
    elsewhere = tmp_path / "a" / "b" / "c" / "d"
    elsewhere.mkdir(parents=True)
    values, there = relative(values, text, elsewhere, text.read_text()[::-1])
    with runs.processes(values, tmp_path / "run", tmp_path, 2, 1, **there) as started:
        for process in started:
            process.ends_with(errors.USER_ERROR)
            assert "has a different text from process 0" in last_word(process)


@contextlib.contextmanager
def one_reads_long(values, tmp_path, seconds):
    """Two processes, of which number 1 is still kept from its text so many seconds after it came to it."""
    watched = dict(stall_seconds=10.0)
    values = runs.changed(values, data=values["data"] | dict(cache_dir="cache"), train=values["train"] | watched)
    name = pathlib.Path(prepare(from_dict(values).data).description["folder"]).name
    folders = {index: tmp_path / str(index) for index in (0, 1)}
    for folder in folders.values():
        (folder / "cache").mkdir(parents=True)
    paths = dict(folders=folders, PYTHONPATH=str(REPOSITORY))
    with (folders[1] / "cache" / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with runs.processes(values, tmp_path / "run", tmp_path, 2, 1, **paths) as started:
            runs.wait_until(lambda: "is locked" in started[1].output(), started[1])
            runs.wait_until((folders[0] / "cache" / name).exists, started[0])
            time.sleep(seconds)
            assert started[0].poll() is None, started[0].output()
            yield started, lock


@pytest.mark.slow
def test_who_waits_for_a_text_without_process_0_ends_and_says_so(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with one_reads_long(values, tmp_path, 0) as (started, lock):
        at = time.monotonic()
        started[0].kill()
        fcntl.flock(lock, fcntl.LOCK_UN)
        assert started[1].ends_with(errors.PEER_LOST) - at < NOTICED
        assert "process 0" in last_word(started[1]) and "the coordinator" in last_word(started[1])


@pytest.mark.slow  # waits longer than the watchdog allows
def test_who_waits_for_anothers_text_is_no_stalled_run_and_notices_its_death(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with one_reads_long(values, tmp_path, 12) as (started, _):
        at = time.monotonic()
        started[1].kill()
        assert started[0].ends_with(errors.PEER_LOST) - at < NOTICED
        assert "process 1" in last_word(started[0])


@pytest.mark.slow
def test_a_second_ctrl_c_ends_all_at_once(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with one_reads_long(values, tmp_path, 0) as (started, _):
        started[0].send_signal(signal.SIGINT)
        runs.wait_until(lambda: "press Ctrl-C again" in started[0].output(), started[0])
        started[0].send_signal(signal.SIGINT)
        started[0].ends_with(130)
        assert last_word(started[0]) == "gptjax: stopped at once by Ctrl-C"
        started[1].ends_with(errors.PEER_LOST)
        assert "stopped at once by Ctrl-C" in last_word(started[1])


def test_only_an_error_that_nobody_has_explained_waits_for_a_verdict_on_the_others():
    """An interrupt that a library hands on with a cause waited 15 seconds."""

    def caused(error):
        error.__cause__ = RuntimeError("of a library")
        return error

    explained = [errors.UserError("x"), PeerLost("x"), KeyboardInterrupt(), caused(KeyboardInterrupt())]
    unexplained = [RuntimeError("x"), caused(errors.UserError("x")), caused(PeerLost("x"))]
    assert not any(map(peers.may_be_anothers_death, explained))
    assert all(map(peers.may_be_anothers_death, unexplained))


@pytest.mark.slow  # longer than the processes wait for each other elsewhere
def test_a_process_may_take_longer_to_read_its_text(values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with one_reads_long(values, tmp_path, distributed.START_SECONDS + 15) as (started, lock):
        fcntl.flock(lock, fcntl.LOCK_UN)
        for process in started:
            process.ends_with(0)


@pytest.mark.parametrize(
    "environment,message",
    [
        (dict(GPTJAX_COORDINATOR="a:1"), "not GPTJAX_NUM_PROCESSES, GPTJAX_PROCESS_ID; set all three"),
        (dict(GPTJAX_NUM_PROCESSES="2", GPTJAX_PROCESS_ID="0"), "but not GPTJAX_COORDINATOR"),
        (dict(GPTJAX_LOCAL_DEVICE_IDS="0"), "but not GPTJAX_COORDINATOR"),
        (dict(GPTJAX_COORDINATOR="a", GPTJAX_NUM_PROCESSES="2", GPTJAX_PROCESS_ID="0"), "is not HOST:PORT"),
        (dict(GPTJAX_COORDINATOR="a:²", GPTJAX_NUM_PROCESSES="2", GPTJAX_PROCESS_ID="0"), "is not HOST:PORT"),
        (dict(GPTJAX_COORDINATOR="a:1", GPTJAX_NUM_PROCESSES="two", GPTJAX_PROCESS_ID="0"), "not a whole number"),
        (dict(GPTJAX_COORDINATOR="a:1", GPTJAX_NUM_PROCESSES="2", GPTJAX_PROCESS_ID="2"), "numbered from 0"),
        (dict(OMPI_COMM_WORLD_SIZE="2"), "does not tell where process 0 runs"),
        (dict(OMPI_COMM_WORLD_SIZE="2(x1)"), r"OMPI_COMM_WORLD_SIZE=2\(x1\) is not a whole number"),
        (dict(SLURM_STEP_NUM_TASKS="2(x1)"), r"SLURM_STEP_NUM_TASKS=2\(x1\) is not a whole number"),
    ],
)
def test_an_environment_that_is_half_set_is_refused(environment, message):
    with pytest.raises(UserError, match=message):
        distributed.find_place(environment)


def test_a_rank_that_is_no_number_is_refused_in_one_line(monkeypatch):
    for name, value in (OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "5 of 8"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="not as expected: .*5 of 8.*; set GPTJAX_COORDINATOR"):
        distributed.find_place(os.environ)


@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "inf", "soon"])
def test_a_time_to_start_that_is_none_is_refused_in_one_line(values, seconds, tmp_path, monkeypatch, capsys):
    for name, value in zip(distributed.NAMES, ("127.0.0.1:1", "2", "0")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GPTJAX_START_SECONDS", seconds)
    config = runs.write_config(values, tmp_path / "fields.py")
    assert cli.main(["train", config, f"--workdir={tmp_path / 'run'}"]) == errors.USER_ERROR
    [line] = capsys.readouterr().err.splitlines()
    assert f"GPTJAX_START_SECONDS={seconds} is not a number of seconds" in line


SLURM = {
    "SLURM_JOB_ID": "4097", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[001-002]", "SLURM_STEP_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_STEP_ID": "0",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}  # fmt: skip


@pytest.mark.parametrize(
    "environment,place",
    [
        ({}, None),
        (SLURM, ("node001:65228", 4, 3, [1])),  # a process for each GPU
        (
            SLURM
            | {
                "SLURM_NTASKS": "2",
                "SLURM_STEP_NUM_TASKS": "2",
                "SLURM_PROCID": "1",
                "SLURM_LOCALID": "0",
            },  # a node each
            ("node001:65228", 2, 1, list(range(8))),
        ),
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),  # the interactive step of salloc
        ({"SLURM_JOB_ID": "4097", "SLURM_NTASKS": "2(x1)"}, None),  # in a batch script, without srun
        (OPEN_MPI, ("10.96.0.1:61797", 8, 5, [1])),
        (
            dict(GPTJAX_COORDINATOR="[::1]:9", GPTJAX_NUM_PROCESSES="2", GPTJAX_PROCESS_ID="1")
            | {"GPTJAX_LOCAL_DEVICE_IDS": "2,3"},
            ("[::1]:9", 2, 1, [2, 3]),
        ),
    ],
)
def test_the_place_of_a_process_follows_from_its_environment(environment, place, monkeypatch):
    for name in os.environ:
        if name.startswith(("SLURM_", "OMPI_", "GPTJAX_")):
            monkeypatch.delenv(name)
    for name, value in environment.items():  # jax's cluster detection reads the real one
        monkeypatch.setenv(name, value)
    found = distributed.find_place(os.environ)
    assert (found and dataclasses.astuple(found)[:4]) == place


def test_a_process_alone_starts_without_jax():
    code = "import sys; from gptjax.hosts import distributed; print(distributed.start(), 'jax' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "Alone" in output and output.endswith("False\n")


def test_facts_name_every_config_key_source_file_and_package(values):
    facts = distributed.facts(from_dict(values), "/a", ("model",))
    assert facts["config"]["optim.peak_lr"] == "0.003" and facts["config"]["--allow_change"] == "model"
    assert "gptjax/data/tokens/store.py" in facts["code"] and facts["packages"]["jax"] == jax.__version__
    distributed.check_equal(Alone(), facts)
    assert json.dumps(facts)


@pytest.mark.parametrize("command", [["eval", "--workdir=x"], ["sample", "--workdir=x"]])
def test_commands_for_one_process_say_so_under_several(command, monkeypatch, capsys):
    monkeypatch.setenv("GPTJAX_NUM_PROCESSES", "4")
    assert cli.main(command) == errors.USER_ERROR
    [line] = capsys.readouterr().err.splitlines()
    assert f"gptjax {command[0]} runs in one process" in line and "GPTJAX_NUM_PROCESSES=4" in line
