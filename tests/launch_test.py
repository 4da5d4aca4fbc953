"""The launchers: what they would run, their parts run for real, and launch/local.py with real trainings."""

import argparse
import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "launch"))

import common  # noqa: E402
import local  # noqa: E402
import slurm  # noqa: E402
import tpu  # noqa: E402
import tpu_queued_resource  # noqa: E402
import tpu_vm  # noqa: E402
import xpk  # noqa: E402

from gptjax import config, interrupt, metrics, rundir, supervisor  # noqa: E402

CONFIG = "--config=configs/quickstart.py"
TRAIN = [CONFIG, "--workdir=gs://bucket/a run", "--config.train.seed=7", "--config.data.path=it's.txt"]
ON_TPU = ["--zone=us-east5-a", "--project=p"]
LAUNCHES = {  # every launcher as it would be used
    "local": ["--num_processes=2", "--devices_per_process=1"],
    "slurm": ["--nodes=2", "--time=1:00:00", "--env=XLA_FLAGS=--a --b"],
    "slurm-gpu": ["--nodes=2", "--time=1:00:00", "--processes_per=gpu", "--cpus_per_task=4", "--partition=x"],
    "tpu_queued_resource": ["--accelerator=v5p-128", "--num_slices=2", "--spot", *ON_TPU, "--env=A=it's"],
    "tpu_vm": ["--name=vm", *ON_TPU],
    "xpk": ["--cluster=c", "--accelerator=v5e-8", *ON_TPU, "--env=A=b c"],
}
MODULES = {
    "local": local, "slurm": slurm, "slurm-gpu": slurm, "tpu_queued_resource": tpu_queued_resource, "tpu_vm": tpu_vm,
    "xpk": xpk,
}  # fmt: skip


def launch(name: str, *words: str) -> int:
    module = MODULES[name]
    return common.main(module.__doc__.splitlines()[0], module.add_flags, module.launch, list(words))


def dry_run(name: str, capsys, flags=None, train=TRAIN) -> str:
    assert launch(name, *(LAUNCHES[name] if flags is None else flags), "--dry_run", "--", *train) == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    """Where users stand."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")


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


@pytest.mark.parametrize("name", LAUNCHES)
def test_launchers_say_where_a_run_goes_and_nothing_about_what_it_computes(name):
    parser = argparse.ArgumentParser()
    MODULES[name].add_flags(parser)
    supervisor.add_flags(parser)
    flags = {word.lstrip("-") for action in parser._actions for word in action.option_strings}
    values = config.load_config("configs/quickstart.py", []).to_dict()
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


QUEUED = LAUNCHES["tpu_queued_resource"]


@pytest.mark.parametrize(
    "name,words,expected",
    [
        ("local", [], "no config given"),
        ("local", ["--", "--config=configs/quickstrat.py"], "no such file"),
        ("local", ["--", CONFIG, "--config.optim.peek_lr=1"], "did you mean 'peak_lr'"),
        ("local", ["--", CONFIG, "--num_processes=2"], "unknown argument '--num_processes=2'"),
        ("local", ["--num_processes=3", "--", CONFIG], "mesh.cpu_devices=2"),
        ("local", ["--num_processes=0", "--", CONFIG], "both are 1 or more"),
        ("tpu_vm", [*LAUNCHES["tpu_vm"], "--", CONFIG], "--bucket=gs://BUCKET"),
        ("tpu_vm", [*LAUNCHES["tpu_vm"], "--", CONFIG, "--workdir=runs/x"], "on no disk that the machines share"),
        ("tpu_vm", [*LAUNCHES["tpu_vm"], "--", f"--config={ROOT}/configs/quickstart.py", "--workdir=gs://b/x"], "get this checkout only"),
        ("tpu_vm", [*LAUNCHES["tpu_vm"], "--", *TRAIN], "gcloud is not installed here"),
        ("tpu_vm", [*LAUNCHES["tpu_vm"], "--env=1=2", "--", *TRAIN], "expected NAME=VALUE"),
        ("tpu_queued_resource", [*QUEUED, "--", *TRAIN], "gcloud is not installed here"),
        ("tpu_queued_resource", [*QUEUED, "--accelerator=v9-8", "--", *TRAIN], "expected one of v4, v5e, v5p, v6e"),
        ("tpu_queued_resource", [*QUEUED, "--accelerator=v5p-9", "--", *TRAIN], "TensorCores, two a chip"),
        ("tpu_queued_resource", [*QUEUED, "--accelerator=v5e-10", "--", *TRAIN], "four chips a host"),
        ("tpu_queued_resource", [*QUEUED, "--num_slices=0", "--", *TRAIN], "expected 1 or more"),
        ("xpk", [*LAUNCHES["xpk"], "--", *TRAIN], "xpk is not installed here"),
        ("xpk", [*LAUNCHES["xpk"], "--workload=My_Run", "--", *TRAIN], "lower-case letters"),
        ("xpk", [*LAUNCHES["xpk"], "--env=A=b\nc", "--", *TRAIN], "one line only"),
        ("slurm", [*LAUNCHES["slurm"], "--", *TRAIN], "sbatch is not installed here"),
        ("slurm", ["--time=tomorrow", "--", *TRAIN], "DAYS-HOURS:MINUTES:SECONDS"),
        ("slurm", [*LAUNCHES["slurm"], "--nodes=0", "--", *TRAIN], "--nodes=0; expected 1 or more"),
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


def program(file: pathlib.Path, script: str) -> None:
    file.write_text(f"#!/bin/bash\n{script}\n")
    file.chmod(0o755)


# --- SkyPilot ---


@pytest.fixture(scope="module")
def sky():
    return yaml.safe_load((ROOT / "launch/skypilot.yaml").read_text())


def test_the_skypilot_file_recovers_what_has_saved_on_spot_machines(sky):
    assert sky["resources"]["use_spot"] is True
    assert sky["resources"]["job_recovery"] == {"recover_on_exit_codes": [interrupt.SAVED_AND_STOPPED]}
    assert sky["envs"]["WORKDIR"] is None and (ROOT / sky["envs"]["CONFIG"]).exists()
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n"], input=sky[part], text=True, capture_output=True).stderr == ""


@pytest.mark.parametrize("gpus,nodes", [(True, 1), (True, 2), (False, 2)])
def test_the_skypilot_run_tells_gpu_nodes_of_each_other_and_leaves_tpu_hosts_to_themselves(sky, gpus, nodes, tmp_path):
    program(tmp_path / "nvidia-smi", f"exit {0 if gpus else 9}")
    (tmp_path / "gptjax-venv/bin").mkdir(parents=True)
    program(tmp_path / "gptjax-venv/bin/python", 'env; printf "word %s\\n" "$@"')
    variables = {
        "HOME": str(tmp_path), "PATH": f"{tmp_path}:/usr/bin:/bin", "SKYPILOT_NUM_NODES": str(nodes),
        "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "CONFIG": "configs/gpt2_small.py",
        "WORKDIR": "gs://b/run", "TRAIN_FLAGS": "--config.train.seed=1 --config.optim.peak_lr=1e-3",
    }  # fmt: skip
    done = subprocess.run(["bash", "-c", sky["run"]], env=variables, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    words = [line.removeprefix("word ") for line in lines if line.startswith("word ")]
    assert words[:3] == ["-m", "gptjax.supervisor", "--workdir=gs://b/run"]
    assert words[-2:] == ["--config.train.seed=1", "--config.optim.peak_lr=1e-3"]
    told = {"GPTJAX_COORDINATOR=10.0.0.1:8476", "GPTJAX_NUM_PROCESSES=2", "GPTJAX_PROCESS_ID=1"}
    assert told & set(lines) == (told if gpus and nodes > 1 else set())


# --- TPU hosts: their scripts, run by bash with a home directory of their own ---


def on_host(home: pathlib.Path, script: str) -> subprocess.CompletedProcess:
    variables = {"HOME": str(home), "PATH": os.environ["PATH"]}
    return subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, cwd="/", timeout=30)


@pytest.fixture
def host(tmp_path):
    """A home directory as the set-up leaves it; what still runs there at the end is killed."""
    (tmp_path / "gptjax").mkdir()
    yield tmp_path
    if (tmp_path / "gptjax.pid").exists():
        subprocess.run(["bash", "-c", f"kill -9 $(cat {tmp_path}/gptjax.pid) 2> /dev/null"])


def wait_until(condition, seconds: float = 20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_run_on_a_host_outlives_the_connection_and_its_code_is_found_again(host):
    assert on_host(host, tpu.STATUS).stdout == "gptjax lost\n"
    slow = "bash -c 'pwd; echo begun; until [ -e ../go ]; do sleep 0.05; done; exit 3'"
    started = on_host(host, tpu.start_script(slow))
    assert started.returncode == 0 and started.stderr == ""
    wait_until(lambda: "begun" in (host / "gptjax.log").read_text())
    assert on_host(host, tpu.STATUS).stdout == "gptjax running\n"
    for again in (tpu.start_script(slow), tpu.SETUP):
        assert "a run is going on" in on_host(host, again).stdout and (host / "gptjax").exists()
    (host / "go").touch()
    log = on_host(host, tpu.FOLLOW)
    assert log.stdout == f"{host / 'gptjax'}\nbegun\n"
    wait_until(lambda: (host / "gptjax.exit").exists())
    assert on_host(host, tpu.STATUS).stdout == "gptjax ended 3\n"


def test_stopping_a_host_asks_its_supervisor_which_saves(host):
    command = "exec bash -c 'trap \"echo saved; exit 75\" TERM; echo begun; while :; do sleep 0.05; done'"
    on_host(host, tpu.start_script(f"({command})"))
    wait_until(lambda: "begun" in (host / "gptjax.log").read_text())
    assert on_host(host, tpu.STOP).returncode == 0
    wait_until(lambda: (host / "gptjax.exit").exists())
    assert on_host(host, tpu.STATUS).stdout == "gptjax ended 75\n" and "saved" in (host / "gptjax.log").read_text()


def test_a_new_start_keeps_the_log_before_and_forgets_the_code(host):
    for text in ("one", "two"):
        on_host(host, tpu.start_script(f"echo {text}"))
        wait_until(lambda: (host / "gptjax.exit").exists())
    assert (host / "gptjax.log.before").read_text() == "one\n" and (host / "gptjax.log").read_text() == "two\n"


def test_the_packed_checkout_is_the_working_tree_without_what_git_ignores(tmp_path):
    archive = tmp_path / "it is.tar.gz"
    new = ROOT / "launch" / "new_file_of_a_test.txt"
    new.touch()
    try:
        done = subprocess.run(["bash", "-c", tpu.pack_command(str(archive))], capture_output=True, text=True, cwd="/")
    finally:
        new.unlink()
    assert done.returncode == 0, done.stderr
    names = subprocess.run(["tar", "-tzf", archive], capture_output=True, text=True).stdout.splitlines()
    assert {"gptjax/cli.py", "launch/new_file_of_a_test.txt", "configs/quickstart.py", "pyproject.toml"} <= set(names)
    assert not any("__pycache__" in name or name.startswith("/") for name in names)


# --- The whole way of a TPU run, in a cloud made of directories ---

# gcloud as far as the launchers use it. A queued resource is a file with its state; a host is a home directory; ssh is
# bash. `python3` puts a Python into a host's environment that takes its orders on worker 0 from the cloud, a code or
# "wait", and on other workers stays until its host goes.
GCLOUD = """
cloud=CLOUD; echo "$*" >> $cloud/calls.txt
value() { for word in "${@:2}"; do case "$word" in --$1=*) echo "${word#--$1=}";; esac; done; }
case "$*" in
  "storage ls --buckets"*) exit 0;;
  "storage ls"*) cat $cloud/listing 2> /dev/null;;
  *"queued-resources describe"*)
    [ -e $cloud/state ] || { echo "ERROR: (gcloud) NOT_FOUND: no such thing" >&2; exit 1; }
    cat $cloud/state;;
  *"queued-resources create"*) mkdir $cloud/w0 $cloud/w1; head -n 1 $cloud/states > $cloud/state; sed -i 1d $cloud/states;;
  *"queued-resources delete"*) rm -rf $cloud/state $cloud/w0 $cloud/w1;;
  *" scp "*) for w in $cloud/w*; do cp "$5" $w/gptjax.tar.gz || exit 1; done;;
  *" ssh "*)
    [ -d $cloud/w0 ] || exit 255
    if [ "$(value worker "$@")" = all ]; then hosts="w0 w1"; else hosts=w0; fi
    for w in $hosts; do HOME=$cloud/$w bash -c "$(value command "$@")" || exit $?; done;;
esac
"""
PYTHON3 = """
mkdir -p gptjax-venv/bin
cat > gptjax-venv/bin/python <<'END'
#!/bin/bash
trap 'echo saved; exit 75' TERM
if [ "$PWD" = CLOUD/w1/gptjax ]; then while [ -e "$PWD" ]; do sleep 0.05; done; exit; fi
order=$(head -n 1 CLOUD/orders); sed -i 1d CLOUD/orders
echo "host $PWD: $*"; while [ "$order" = wait ]; do sleep 0.05; done; exit $order
END
chmod +x gptjax-venv/bin/python
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A cloud with two hosts a slice; orders.txt says how the next runs on worker 0 end."""
    here = tmp_path / "cloud"
    (here / "bin").mkdir(parents=True)
    program(here / "bin/gcloud", GCLOUD.replace("CLOUD", str(here), 1))
    program(here / "bin/python3", PYTHON3.replace("CLOUD", str(here)))
    monkeypatch.setenv("PATH", f"{here / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(tpu_queued_resource, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(tpu_queued_resource, "MIN_BACKOFF_SECONDS", 0.1)
    monkeypatch.setattr(tpu, "RETRY_SECONDS", 0.1)
    yield here
    for file in here.glob("w*/gptjax.pid"):
        subprocess.run(["bash", "-c", f"kill -9 $(cat {file}) 2> /dev/null"])


def calls(cloud, verb: str) -> int:
    return sum(f"queued-resources {verb}" in line for line in (cloud / "calls.txt").read_text().splitlines())


SLICES = ["--accelerator=v5e-16", "--zone=z", "--spot", "--backoff_seconds=0.1"]


def test_slices_are_waited_for_used_followed_and_deleted(cloud, capfd):
    (cloud / "states").write_text("WAITING_FOR_RESOURCES\n")
    (cloud / "orders").write_text("0\n")

    def grant():
        wait_until(lambda: "is WAITING_FOR_RESOURCES" in capfd_text(capfd))
        (cloud / "state").write_text("ACTIVE\n")

    with in_background(grant):
        assert launch("tpu_queued_resource", *SLICES, "--", *TRAIN) == 0
    seen = capfd_text(capfd)
    assert f"host {cloud}/w0/gptjax: -m gptjax.supervisor" in seen and "it's.txt" in seen
    assert calls(cloud, "create") == 1 and calls(cloud, "delete") == 1 and not (cloud / "state").exists()
    assert seen.splitlines()[-1] == "launch: deleted"


def test_preempted_slices_are_asked_for_anew_and_the_run_goes_on(cloud, capfd):
    (cloud / "states").write_text("ACTIVE\nACTIVE\n")
    (cloud / "orders").write_text("wait\n0\n")

    def preempt():
        wait_until(lambda: "gptjax.supervisor" in capfd_text(capfd))
        (cloud / "listing").write_text("gs://bucket/a run/checkpoints/900/\ngs://bucket/a run/checkpoints/1000/\n")
        (cloud / "state").write_text("SUSPENDED\n")
        groups = [os.getpgid(int(file.read_text())) for file in cloud.glob("w*/gptjax.pid")]
        for home in cloud.glob("w*"):
            shutil.rmtree(home)
        for group in groups:
            os.killpg(group, signal.SIGKILL)

    with in_background(preempt):
        assert launch("tpu_queued_resource", *SLICES, "--", *TRAIN) == 0
    seen = capfd_text(capfd)
    assert "the hosts are gone" in seen and "at step 1000, having gained 1000" in seen
    assert "is SUSPENDED: deleted and asked for anew" in seen
    assert calls(cloud, "create") == 2 and calls(cloud, "delete") == 2 and not (cloud / "state").exists()


def test_a_run_that_has_given_up_on_its_hosts_is_not_tried_again_and_the_slices_are_deleted(cloud, capfd):
    (cloud / "states").write_text("ACTIVE\n")
    (cloud / "orders").write_text("79\n")
    assert launch("tpu_queued_resource", *SLICES, "--", *TRAIN) == supervisor.GAVE_UP
    assert calls(cloud, "create") == 1 and not (cloud / "state").exists()


def test_a_request_that_failed_is_deleted_and_kept_slices_are_named(cloud, capfd):
    (cloud / "states").write_text("FAILED\nACTIVE\n")
    (cloud / "orders").write_text("0\n")
    assert launch("tpu_queued_resource", *SLICES, "--", *TRAIN) == 2
    assert "has FAILED" in capfd_text(capfd) and not (cloud / "state").exists()
    assert launch("tpu_queued_resource", *SLICES, "--keep", "--", *TRAIN) == 0
    last = capfd_text(capfd).splitlines()[-1]
    assert (cloud / "state").exists() and "kept as asked" in last and "delete gptjax-quickstart --force" in last


def start_launcher(cloud, *words) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "launch/tpu_queued_resource.py"), *SLICES, *words, "--", *TRAIN]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def read_until(process: subprocess.Popen, part: str) -> None:
    for line in process.stdout:
        if part in line:
            return
    raise AssertionError(f"ended without {part!r}")


def test_ctrl_c_while_waiting_deletes_the_request(cloud):
    (cloud / "states").write_text("WAITING_FOR_RESOURCES\n")
    process = start_launcher(cloud)
    read_until(process, "launch: gcloud compute tpus queued-resources create")
    wait_until(lambda: (cloud / "state").exists())
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == interrupt.SAVED_AND_STOPPED and rest.splitlines()[-1] == "launch: deleted"
    assert not (cloud / "state").exists()


def test_ctrl_c_during_the_run_saves_on_every_host_and_deletes(cloud):
    (cloud / "states").write_text("ACTIVE\n")
    (cloud / "orders").write_text("wait\n")
    process = start_launcher(cloud)
    read_until(process, "host ")
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == interrupt.SAVED_AND_STOPPED and "saved" in rest, rest
    assert rest.splitlines()[-1] == "launch: deleted" and not (cloud / "state").exists()
    assert sum("kill -TERM" in line and "--worker=all" in line for line in (cloud / "calls.txt").open()) == 1


def test_a_launcher_that_was_killed_finds_its_run_again(cloud, capfd):
    (cloud / "states").write_text("ACTIVE\n")
    (cloud / "orders").write_text("wait\n0\n")
    process = start_launcher(cloud)
    read_until(process, "host ")
    process.kill()
    process.wait()
    pid = (cloud / "w0/gptjax.pid").read_text()

    def stop():
        wait_until(lambda: "a run is going on" in capfd_text(capfd) and "host " in capfd_text(capfd))
        subprocess.run(["kill", "-9", pid.strip()])

    with in_background(stop):
        assert launch("tpu_queued_resource", *SLICES, "--max_restarts=0", "--", *TRAIN) == supervisor.GAVE_UP
    assert "code 137 (SIGKILL)" in capfd_text(capfd) and calls(cloud, "create") == 1


@pytest.fixture(autouse=True)
def forget_captured():
    CAPTURED.clear()
    yield


CAPTURED: list[str] = []


def capfd_text(capfd) -> str:
    """Everything that this process and its children have printed so far."""
    output = capfd.readouterr()
    CAPTURED.append(output.out + output.err)
    return "".join(CAPTURED)


class in_background:
    """Runs a function beside the body of the `with`, and raises what it raised."""

    def __init__(self, function):
        self._function, self._error = function, None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._function()
        except BaseException as error:  # raised in the test's own thread, which may be waiting for what never comes
            self._error = error
            os.kill(os.getpid(), signal.SIGINT)

    def __enter__(self):
        self._thread.start()

    def __exit__(self, *error):
        self._thread.join()
        if self._error:
            raise self._error


# --- Processes on this machine ---


@pytest.fixture
def group():
    """group(code of each process ...) are Python processes as one Job; none outlives the test."""
    groups = []

    def start(*codes: str, grace_seconds: float = 20):
        made = local.Group([sys.executable, "-u", "-c", "import os; exec(os.environ['CODE'])"], [
            common.environment(CODE=code) for code in codes
        ], grace_seconds)  # fmt: skip
        groups.append(made)
        return made

    yield start
    for made in groups:
        made.send_signal(signal.SIGKILL)
        made.wait()


SAVE = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(75)); print('ready'); time.sleep(60)"


def test_lines_of_each_process_begin_with_its_index(group, capfd):
    assert group("print('a'); print('b')", "import sys; print('c', file=sys.stderr)").wait() == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["[0] a", "[0] b", "[1] c"]


def test_a_signal_reaches_every_process_and_75_means_that_all_have_saved(group, capfd):
    job = group(SAVE, SAVE)
    wait_until(lambda: capfd_text(capfd).count("ready") == 2)
    job.send_signal(signal.SIGTERM)
    assert job.wait() == interrupt.SAVED_AND_STOPPED


def test_the_code_is_that_of_the_process_that_failed_first_and_not_of_those_that_lost_it(group, capfd):
    assert group("raise SystemExit(78)", "import os, time; time.sleep(0.5); os.kill(os.getpid(), 9)").wait() == 137
    assert group("raise SystemExit(3)", "import time; time.sleep(0.5); raise SystemExit(78)").wait() == 3
    assert group("raise SystemExit(75)", "import time; time.sleep(0.3); raise SystemExit(4)").wait() == 4


def test_a_process_that_does_not_notice_the_failure_of_another_is_killed_after_the_grace_time(group, capfd):
    begun = time.monotonic()
    assert group("import os; os.kill(os.getpid(), 9)", "import time; time.sleep(60)", grace_seconds=0.5).wait() == 137
    assert group("raise SystemExit(78)", "import time; time.sleep(60)", grace_seconds=0.1).wait() == 78
    assert 0.5 < time.monotonic() - begun < 10 and "[1] has not ended 0.5 s after" in capfd.readouterr().err


def test_gpus_are_divided_among_the_processes_and_not_shared(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,5")
    args = argparse.Namespace(num_processes=2, devices_per_process=None)
    run = common.Run([CONFIG], "configs/quickstart.py", "x")
    assert local.device_variables(args, run) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,5"}]
    args.devices_per_process = 1
    assert local.device_variables(args, run) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    args.devices_per_process = 3
    with pytest.raises(common.UserError, match="needs 6, but there are 4"):
        local.device_variables(args, run)


# --- Real trainings: quickstart with fewer steps and a small model ---

SMALL = (
    "model.n_layers=1", "model.d_model=24", "model.n_heads=2", "model.context_length=32", "model.scan_unroll=1",
    "data.tokenizer=bytes", "train.steps=400", "train.tensorboard=False", "checkpoint.every_steps=50",
    "eval.every_steps=400", "eval.max_tokens=512", "eval.sample_tokens=0",
)  # fmt: skip
MANY_HOSTS = pytest.mark.skipif(
    importlib.util.find_spec("gptjax.distributed") is None, reason="this checkout trains in one process only"
)


def start_local(workdir: pathlib.Path, processes: int, *flags: str) -> subprocess.Popen:
    train = [CONFIG, f"--workdir={workdir}", *(f"--config.{field}" for field in SMALL)]
    train.append(f"--config.data.cache_dir={workdir.parent / 'cache'}")
    words = [sys.executable, "launch/local.py", f"--num_processes={processes}", "--backoff_seconds=0.1", *flags, "--"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GPTJAX_")}
    return subprocess.Popen(
        [*words, *train], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def children(pid: int) -> list[int]:
    return [int(word) for word in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def logged_losses(workdir: pathlib.Path) -> list[tuple]:
    file = rundir.open_run(str(workdir)).metrics
    return (
        [(row["step"], row["loss"], row["grad_norm"]) for row in metrics.read_metrics(file, "train")]
        if file.exists()
        else []
    )


def wait_for_step(workdir: pathlib.Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not any(row[0] >= step for row in logged_losses(workdir)):
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.01)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=MANY_HOSTS)])
def test_a_killed_run_is_restarted_by_the_supervisor_and_ends_bit_equal_to_an_undisturbed_one(processes, tmp_path):
    undisturbed = start_local(tmp_path / "undisturbed", processes)
    output, _ = undisturbed.communicate(timeout=240)
    assert undisturbed.returncode == 0, output
    killed = start_local(tmp_path / "killed", processes)
    wait_for_step(tmp_path / "killed", 70, killed)
    victims = children(killed.pid)
    assert len(victims) == processes
    os.kill(victims[-1], signal.SIGKILL)
    output, _ = killed.communicate(timeout=240)
    assert killed.returncode == 0, output
    [line] = [line for line in output.splitlines() if line.startswith("supervisor: ")]
    assert re.search(r"code 137 \(SIGKILL\) at step [1-9]\d*, having gained [1-9]\d*; restart 1 of 100", line)
    assert all(f"[{i}] " in output for i in range(processes)) == (processes > 1)
    losses = logged_losses(tmp_path / "undisturbed")
    assert len(losses) == 41 and losses[-1][0] == 400
    assert logged_losses(tmp_path / "killed") == losses


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=MANY_HOSTS)])
def test_sigterm_to_the_launcher_saves_the_run_and_exits_with_75(processes, tmp_path):
    process = start_local(tmp_path / "run", processes)
    wait_for_step(tmp_path / "run", 10, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == interrupt.SAVED_AND_STOPPED, output
    assert "Traceback" not in output and "told to stop by SIGTERM" in output
    assert rundir.open_run(str(tmp_path / "run")).steps()[-1] == logged_losses(tmp_path / "run")[-1][0]


def test_a_mistake_in_the_text_is_not_restarted(tmp_path):
    train = [CONFIG, f"--workdir={tmp_path / 'run'}", "--config.data.path=/nowhere/text.txt"]
    done = subprocess.run([sys.executable, "launch/local.py", "--", *train], capture_output=True, text=True)
    assert done.returncode == 2 and "not restarted: code 2" in done.stderr and "/nowhere/text.txt" in done.stderr
