"""gptjax study run before anything is started: the commands of each launcher, the order, what it refuses."""

import io
import shlex
import sys

import pytest
import studying
from places import ROOT

from gptjax import cli, errors, terminal
from gptjax.commands import study_run
from gptjax.rundir import run_directory, runlock
from gptjax.study.declare import declaration
from gptjax.study.running import identity, jobs, launching, layout, ledger, runner, status

PLACE = ["--launcher_flag=--accelerator=v5e-8", "--launcher_flag=--zone=us-west4-a"]
RUN = [sys.executable, "-P", "-m", "gptjax", "train"]
TUNED = """tokens=(1280, 5120), cooldown=0.2, targets=(Target({"s": {}}, 1e9),),
        learning_rate=recipes.tuned((1e-3, 3e-3), budget=6e8)"""


@pytest.fixture
def study(text, tmp_path):
    """study(fields) is (the file of a study, its --out)."""

    def write(fields: str = "tokens=(1280,)"):
        return str(studying.write_study(tmp_path / "study.py", text, fields)), str(tmp_path / "out")

    return write


def run(*words: str) -> int:
    return cli.main(["study", "run", *words])


def planned(file: str, results=None) -> list[declaration.PlannedRun]:
    return declaration.runs(declaration.load(file), 257, results or {})


def entries(file: str, results=None, code=None) -> list[ledger.Entry]:
    return ledger.entries(planned(file, results), identity.Texts(), code or identity.code())[0]


def dry_run(capsys, *words: str) -> list[str]:
    assert run(*words, "--dry_run") == 0
    return capsys.readouterr().out.splitlines()


def finish(file: str, out: str, loss=2.0, code=None, results=None) -> ledger.Ledger:
    """The folder of a study whose runs are all done, and ended with `loss` or loss(name)."""
    directory = layout.open_directory(out)
    made = [entry for entry in entries(file, results, code) if entry.key]
    found = ledger.succeed(None, made, code or identity.code(), {})
    for entry in found.entries:
        studying.write_done_run(directory.run(entry.key), entry.steps, loss(entry.name) if callable(loss) else loss)
    found.write(directory)
    return found


# ---- commands


def test_a_local_dry_run_prints_the_command_of_every_run_and_writes_nothing(study, capsys, tmp_path, monkeypatch):
    monkeypatch.delenv(jobs.THREADS, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    file, out = study()
    [entry] = entries(file)
    [line] = dry_run(capsys, file, f"--out={out}")
    words = [*RUN, f"--config={out}/configs/{entry.key}.json", f"--workdir={out}/runs/{entry.key}"]
    assert shlex.split(line) == ["PJRT_NPROC=1", *words]
    assert not (tmp_path / "out").exists()


def test_a_slurm_dry_run_prints_a_submission_that_waits_for_its_job_and_for_an_earlier_one_of_the_name(study, capsys):
    file, out = study()
    [entry] = entries(file)
    flags = ["--launcher=slurm", "--launcher_flag=--time=1:00:00", "--launcher_flag=--sbatch_flag=--qos=high"]
    [line] = dry_run(capsys, file, f"--out={out}", *flags)
    assert shlex.split(line) == [
        sys.executable, f"{ROOT}/launch/slurm.py", "--time=1:00:00", "--sbatch_flag=--qos=high",
        f"--log_dir={out}/logs/slurm", "--sbatch_flag=--wait", "--sbatch_flag=--dependency=singleton",
        "--", f"--config={out}/configs/{entry.key}.json", f"--workdir={out}/runs/{entry.key}",
    ]  # fmt: skip


def test_a_queued_resource_dry_run_prints_the_launcher_that_stays(study, capsys):
    file, _ = study()
    [entry] = entries(file)
    said, line = dry_run(capsys, file, "--out=gs://bucket/study", "--launcher=queued_resource", *PLACE)
    assert said.startswith("# gs://bucket/study cannot be read here") or "gcsfs" in sys.modules
    assert shlex.split(line) == [
        sys.executable, f"{ROOT}/launch/tpu_queued_resource.py", "--accelerator=v5e-8", "--zone=us-west4-a",
        "--", f"--config=gs://bucket/study/configs/{entry.key}.json", f"--workdir=gs://bucket/study/runs/{entry.key}",
    ]  # fmt: skip


def test_an_xpk_dry_run_prints_the_submission_of_a_workload_and_then_the_wait_for_it(study, capsys):
    file, _ = study()
    [entry] = entries(file)
    flags = ["--launcher=xpk", "--launcher_flag=--cluster=c", *PLACE, "--launcher_flag=--project=p"]
    _, line = dry_run(capsys, file, "--out=gs://bucket/study", *flags)
    *bash, script = shlex.split(line)
    submit, wait = script.split("; exec ")
    place = ["--cluster=c", "--accelerator=v5e-8", "--zone=us-west4-a", "--project=p"]
    name = f"gptjax-{entry.key}-1"
    assert bash == ["bash", "-c"]
    assert shlex.split(submit) == [
        sys.executable, f"{ROOT}/launch/xpk.py", *place, f"--workload={name}",
        "--", f"--config=gs://bucket/study/configs/{entry.key}.json", f"--workdir=gs://bucket/study/runs/{entry.key}",
    ]  # fmt: skip
    assert shlex.split(wait) == [
        "xpk", "workload", "list", "--cluster=c", "--zone=us-west4-a", "--project=p", f"--wait-for-job-completion={name}"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["slurm", "xpk", "queued_resource"])
def test_the_launchers_accept_what_a_study_tells_them(name, monkeypatch, capsys):
    """A config on gs:// is not read here; all else is the launcher's own dry run of the command above."""
    from launching import MODULES, common

    monkeypatch.setattr(common, "load_config", lambda words: None)
    flags = {"slurm": ["--time=1:00:00"], "xpk": ["--cluster=c"], "queued_resource": []}[name]
    flags += [] if name == "slurm" else ["--accelerator=v5e-8", "--zone=z"]
    launcher, directory = launching.LAUNCHERS[name](name, tuple(flags)), layout.open_directory("gs://bucket/study")
    command = launcher.command(
        directory, "0123456789ab", 2, ["--branch_from=gs://bucket/study/runs/a", "--branch_step=3"]
    )
    words = shlex.split(command[-1].split("; exec ")[0]) if name == "xpk" else command
    module = MODULES["tpu_queued_resource" if name == "queued_resource" else name]
    split = words.index("--")
    given = [*words[2:split], "--dry_run", *words[split:]]
    assert common.main(module.__doc__.splitlines()[0], module.add_flags, module.launch, given) == 0
    shown = capsys.readouterr().out
    assert "gptjax-0123456789ab" in shown and "--branch_step=3" in shown


def test_a_process_gets_the_threads_of_its_config_however_many_run_beside_it(study, monkeypatch):
    monkeypatch.delenv(jobs.THREADS, raising=False)
    [run_] = planned(study()[0])
    wider = run_.config.replace(mesh={"cpu_devices": 2})
    assert {n: jobs.variables(run_.config, [], 0, n) for n in (1, 2, 8)} == dict.fromkeys(
        (1, 2, 8), {"PJRT_NPROC": "1"}
    )
    assert jobs.variables(wider, [], 3, 4) == {"PJRT_NPROC": "2"}
    gpus = list("01234567")
    assert [jobs.variables(wider, gpus, slot, 4)["CUDA_VISIBLE_DEVICES"] for slot in (0, 3)] == ["0,1", "6,7"]


def test_a_process_told_to_stop_before_it_listens_has_not_failed_and_one_that_somebody_killed_has(tmp_path):
    directory = layout.open_directory(str(tmp_path))
    for key, stop, code in (("stopped", jobs.Job.stop, None), ("killed", lambda job: job._process.terminate(), 143)):
        job = jobs.Job(directory, jobs.Order((key,), ["sleep", "60"], {}, attempt=1), {})
        stop(job)
        assert job.close() == 143
        assert status.last_exit(directory, key)["code"] == code
        assert status.last_exit(directory, key)["attempt"] == 1


# ---- order


def test_tuning_comes_first_then_trunks_then_their_branches_and_then_targets_the_longest_first(study, capsys):
    file, out = study(TUNED)
    [together, *_] = dry_run(capsys, file, f"--out={out}")
    keys = {entry.key for entry in entries(file) if entry.stage == "tune"}
    assert "gptjax.study.batched" in together and set(together.split()[-2:]) == keys, "of one shape: in one process"
    words = [file, f"--out={out}", "--batch_runs=off"]
    lines = dry_run(capsys, *words)
    assert len([line for line in lines if "gptjax train" in line]) == 2, "the tuning runs"
    assert [line.split()[2].split("-")[0] for line in lines if line.startswith("# later")] == [
        "trunk",
        "s",
        "s",
        "target",
    ]

    best = {"tune-s-lr0.001-seed0": 3.0, "tune-s-lr0.003-seed0": 2.0}
    finish(file, out, loss=best.get)
    by_name = {entry.name: entry for entry in entries(file, best)}
    assert {run_.config.optim.peak_lr for run_ in planned(file, best) if run_.stage != "tune"} == {3e-3}
    lines = dry_run(capsys, *words)
    [trunk] = [entry for entry in by_name.values() if entry.stage == "trunk"]
    assert f"/runs/{trunk.key}" in lines[0] and "gptjax train" not in lines[1]
    assert all(f"step {n} of {trunk.name}" in lines[i] for i, n in ((1, 8), (2, 32))), lines

    finish(file, out, loss=lambda name: best.get(name, 2.0), results=best)
    directory = layout.open_directory(out)
    for entry in by_name.values():
        if entry.stage in ("grid", "target"):
            directory.run(entry.key).rmtree()
    studying.write_done_run(directory.run(trunk.key), trunk.steps, 2.0, kept=(8, 32))
    short, long = sorted((e for e in by_name.values() if e.stage == "grid"), key=lambda entry: entry.flops)
    first, second, later = dry_run(capsys, *words)
    assert f"/runs/{long.key} --branch_from={out}/runs/{trunk.key} --branch_step=32" in first
    assert f"/runs/{short.key} --branch_from={out}/runs/{trunk.key} --branch_step=8" in second
    assert later == "# later: target-s-C1e+09-seed0 (target) waits for the prediction"


def test_a_target_starts_as_soon_as_the_prediction_is_written(study):
    file, out = study('tokens=(1280,), targets=(Target({"s": {}}, 1e9),)')
    finish(file, out)
    directory = layout.open_directory(out)
    [target] = [entry for entry in entries(file) if entry.stage == "target"]
    directory.run(target.key).rmtree()
    settings = runner.Settings(launching.Local("local"))
    source = study_run.FileSource(file, batched=False)
    made = runner.Runner(directory, source, settings, terminal.Progress(io.StringIO()))
    made._declare()
    assert made._ready() == []
    source.predict = lambda where: where.prediction.write_text("{}")
    made._unlock_stages()
    assert made._ready() == [(target.key,)]


def test_a_tuning_run_comes_before_longer_runs_of_a_size_that_is_tuned(study, capsys):
    sizes = 'sizes={"s": {}, "m": {"model.n_layers": 2}}'
    file, out = study(f"{sizes}, tokens=(51200,), learning_rate=recipes.tuned((3e-3,), budget=6e8)")
    results = {"tune-s-lr0.003-seed0": 2.0}
    finish(file, out, results=results)
    made = {entry.name: entry for entry in entries(file, results)}
    for name in ("tune-m-lr0.003-seed0", "s-D5.12e+04-seed0"):
        layout.open_directory(out).run(made[name].key).rmtree()
    first, second, waits = dry_run(capsys, file, f"--out={out}")
    assert made["tune-m-lr0.003-seed0"].key in first and made["s-D5.12e+04-seed0"].key in second
    assert waits == "# later: m-D5.12e+04-seed0 (grid) waits for the tuning runs"


def test_a_workload_is_found_by_its_name_until_its_attempt_has_ended_and_then_gets_the_next(study):
    file, out = study()
    [entry] = entries(file)
    directory, launcher = layout.open_directory(out), launching.Xpk("xpk", ("--cluster=c",))
    for last, attempt in (({}, 1), ({"attempt": 3, "code": None}, 3), ({"attempt": 3, "code": 125}, 4)):
        layout.write_json(directory.exit(entry.key), last)
        source, settings = study_run.FileSource(file, batched=False), runner.Settings(launcher)
        [line] = runner.Runner(directory, source, settings, terminal.Progress(io.StringIO())).dry_run()
        assert line.count(f"gptjax-{entry.key}-{attempt} ") == 1 and f"completion=gptjax-{entry.key}-{attempt}'" in line


def test_a_tuning_run_that_a_group_in_progress_has_among_its_runs_stays_done(study, monkeypatch):
    """Else its size would wait for it again, and the runs that the group is of would be declared no more."""
    file, out = study("tokens=(1280,), seeds=(0, 1), learning_rate=recipes.tuned((1e-3, 3e-3), budget=6e8)")
    results = {run.name: run.config.optim.peak_lr for run in planned(file) if run.stage == "tune"}
    tuning = [entry for entry in entries(file) if entry.stage == "tune"]
    directory = layout.open_directory(out)
    for entry in tuning:
        studying.write_done_run(directory.run(entry.key), entry.steps, results[entry.name])
    source, settings = study_run.FileSource(file, batched=True), runner.Settings(launching.Local("local"))
    made = runner.Runner(directory, source, settings, terminal.Progress(io.StringIO()))
    made._declare()
    monkeypatch.setattr(made, "_going", lambda: {entry.key for entry in made._ledger.entries})
    made._ended = {}
    made._look()
    made._unlock_stages()
    states = {status.entry.name: status.state for status in made._statuses}
    assert [states[entry.name] for entry in tuning] == ["done", "done"]
    assert all(entry.key for entry in made._ledger.entries), "the grid has its learning rate still"


# ---- what is refused, and what is taken


def test_a_study_that_is_done_starts_nothing(study, capsys):
    file, out = study()
    finish(file, out)
    assert run(file, f"--out={out}") == 0
    assert "1 done" in capsys.readouterr().err


def test_finished_runs_of_other_code_are_neither_taken_nor_run_again_unasked(study, capsys):
    file, out = study()
    old = finish(file, out, code="other").entries[0]
    assert run(file, f"--out={out}") == errors.USER_ERROR
    said = capsys.readouterr().err
    assert "1 finished runs" in said and "--accept_code" in said and "--rerun_code" in said and said.count("\n") == 1
    assert entries(file)[0].key in dry_run(capsys, file, f"--out={out}", "--rerun_code")[0]
    assert run(file, f"--out={out}", "--accept_code") == 0
    [entry] = ledger.read(layout.open_directory(out)).entries
    assert entry == old
    assert run(file, f"--out={out}") == 0, "accepted once is accepted for good"


def test_a_second_command_on_the_same_folder_is_refused(study, capsys, monkeypatch):
    monkeypatch.setattr(runlock, "PATIENCE_SECONDS", 0.1)
    file, out = study()
    with runlock.hold(out):
        assert run(file, f"--out={out}") == errors.USER_ERROR
    assert f"--out={out} is being written to by process" in capsys.readouterr().err


def test_text_that_was_moved_does_not_stop_a_run_that_is_half_done(study, capsys, text, tmp_path):
    file, out = study()
    directory = layout.open_directory(out)
    [entry] = finish(file, out).entries
    moved = tmp_path / "moved.txt"
    moved.write_text(text.read_text())
    [before] = planned(file)
    run_directory.open_run(str(directory.run(entry.key))).write_config(before.config)
    (directory.run(entry.key) / "metrics.jsonl").unlink()
    studying.write_study(tmp_path / "study.py", moved, "tokens=(1280,)")
    assert dry_run(capsys, file, f"--out={out}")[0].endswith(f"/runs/{entry.key} --allow_change=data.path")


MISTAKES = {
    "--launcher=slrm": "--launcher='slrm' is not known; did you mean 'slurm'?",
    "--launcher=slurm": "--launcher=slurm: the following arguments are required: --time.",
    "--launcher=xpk": "is on no disk that the machines of --launcher=xpk share; use --out=gs://BUCKET/DIR.",
    "--launcher_flag=--time=1": "--launcher=local is not one of them",
    "--launcher=slurm --launcher_flag=--time=1:00:00 --launcher_flag=--nodes=0": "--launcher=slurm: --nodes=0; expected 1",
    "--launcher=xpk --out=gs://b/s --launcher_flag=--workload=mine": "would give all runs one name",
    "--parallel=0": "--parallel=0 is too small",
    "--batch_runs=on": "use auto or off",
    "--paralel=2": "unknown argument '--paralel=2' of gptjax study run; did you mean '--parallel'?",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_a_wrong_flag_is_one_line(flags, study, capsys, tmp_path):
    file, out = study()
    assert run(file, f"--out={out}", *flags.split()) == errors.USER_ERROR
    said = capsys.readouterr().err
    assert MISTAKES[flags] in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_study_file_that_is_not_there_is_one_line(study, capsys):
    file, out = study()
    assert run(file.replace("study.py", "stud.py"), f"--out={out}") == errors.USER_ERROR
    assert "no such file; did you mean 'study.py'?" in capsys.readouterr().err
