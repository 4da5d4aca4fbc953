"""Runs on TPU hosts: their scripts run by bash, and the launcher from request to deletion in a cloud of directories."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import quick_compilation
from launching import ROOT, TRAIN, launch, program, seen, wait_until

from gptjax import errors, supervisor

import tpu  # isort: skip
import tpu_queued_resource  # isort: skip


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch):
    """Where users stand."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("XLA_FLAGS", quick_compilation.FLAGS)


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


def test_a_run_on_a_host_outlives_the_connection_and_its_code_is_found_again(host):
    assert on_host(host, tpu.STATUS).stdout == "gptjax lost\n"
    slow = "bash -c 'pwd; echo begun; until [ -e ../go ]; do sleep 0.05; done; exit 3' gptjax.supervisor"
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
    command = (
        "exec bash -c 'trap \"echo saved; exit 75\" TERM; echo begun; while :; do sleep 0.05; done' gptjax.supervisor"
    )
    on_host(host, tpu.start_script(f"({command})"))
    wait_until(lambda: "begun" in (host / "gptjax.log").read_text())
    assert on_host(host, tpu.STOP).returncode == 0
    wait_until(lambda: (host / "gptjax.exit").exists())
    assert on_host(host, tpu.STATUS).stdout == "gptjax ended 75\n" and "saved" in (host / "gptjax.log").read_text()


def test_a_process_that_got_the_number_of_a_run_before_the_host_restarted_is_neither_taken_for_it_nor_stopped(host):
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        (host / "gptjax.pid").write_text(f"{stranger.pid}\n")
        assert on_host(host, tpu.STATUS).stdout == "gptjax lost\n"
        assert on_host(host, tpu.STOP).returncode != 0
        assert on_host(host, tpu.start_script("echo begun")).stdout == ""
        wait_until(lambda: (host / "gptjax.exit").exists())
        assert (host / "gptjax.log").read_text() == "begun\n" and stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


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


@pytest.mark.parametrize(
    "code, packed", [(1, True), (2, False)], ids=["a file changed", "an archive that is not whole"]
)
def test_a_checkout_that_changes_while_it_is_packed_is_packed_and_an_archive_that_fails_is_not(
    code, packed, tmp_path, monkeypatch
):
    """GNU tar ends with 1 if a file changed as it was read, with 2 if it couldn't do what it was told."""
    tar = tmp_path / "tar"
    tar.write_text(f'#!/bin/sh\n{shutil.which("tar")} "$@"\nexit {code}\n')
    tar.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert (subprocess.run(["bash", "-c", tpu.pack_command(str(tmp_path / "it.tar.gz"))]).returncode == 0) == packed


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
        wait_until(lambda: "is WAITING_FOR_RESOURCES" in seen(capfd))
        (cloud / "state").write_text("ACTIVE\n")

    with in_background(grant):
        assert launch("tpu_queued_resource", *SLICES, "--", *TRAIN) == 0
    shown = seen(capfd)
    assert f"host {cloud}/w0/gptjax: -m gptjax.supervisor" in shown and "it's.txt" in shown
    assert calls(cloud, "create") == 1 and calls(cloud, "delete") == 1 and not (cloud / "state").exists()
    assert shown.splitlines()[-1] == "launch: deleted"


def test_preempted_slices_are_asked_for_anew_and_the_run_goes_on(cloud, capfd):
    (cloud / "states").write_text("ACTIVE\nACTIVE\n")
    (cloud / "orders").write_text("wait\n0\n")

    def preempt():
        wait_until(lambda: "gptjax.supervisor" in seen(capfd))
        (cloud / "listing").write_text("gs://bucket/a run/checkpoints/900/\ngs://bucket/a run/checkpoints/1000/\n")
        (cloud / "state").write_text("SUSPENDED\n")
        groups = [os.getpgid(int(file.read_text())) for file in cloud.glob("w*/gptjax.pid")]
        for home in cloud.glob("w*"):
            shutil.rmtree(home)
        for group in groups:
            os.killpg(group, signal.SIGKILL)

    with in_background(preempt):
        assert launch("tpu_queued_resource", *SLICES, "--", *TRAIN) == 0
    shown = seen(capfd)
    assert "the hosts are gone" in shown and "at step 1000, having gained 1000" in shown
    assert "is SUSPENDED: deleted and asked for anew" in shown
    assert calls(cloud, "create") == 2 and calls(cloud, "delete") == 2 and not (cloud / "state").exists()


@pytest.mark.slow
def test_a_run_that_has_given_up_on_its_hosts_is_not_tried_again_and_the_slices_are_deleted(cloud, capfd):
    (cloud / "states").write_text("ACTIVE\n")
    (cloud / "orders").write_text("79\n")
    assert launch("tpu_queued_resource", *SLICES, "--", *TRAIN) == supervisor.GAVE_UP
    assert calls(cloud, "create") == 1 and not (cloud / "state").exists()


@pytest.mark.slow
def test_a_request_that_failed_is_deleted_and_kept_slices_are_named(cloud, capfd):
    (cloud / "states").write_text("FAILED\nACTIVE\n")
    (cloud / "orders").write_text("0\n")
    assert launch("tpu_queued_resource", *SLICES, "--", *TRAIN) == 2
    assert "has FAILED" in seen(capfd) and not (cloud / "state").exists()
    assert launch("tpu_queued_resource", *SLICES, "--keep", "--", *TRAIN) == 0
    last = seen(capfd).splitlines()[-1]
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
    assert process.returncode == errors.SAVED_AND_STOPPED and rest.splitlines()[-1] == "launch: deleted"
    assert not (cloud / "state").exists()


def test_ctrl_c_during_the_run_saves_on_every_host_and_deletes(cloud):
    (cloud / "states").write_text("ACTIVE\n")
    (cloud / "orders").write_text("wait\n")
    process = start_launcher(cloud)
    read_until(process, "host ")
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == errors.SAVED_AND_STOPPED and "saved" in rest, rest
    assert rest.splitlines()[-1] == "launch: deleted" and not (cloud / "state").exists()
    assert sum("kill -TERM" in line and "--worker=all" in line for line in (cloud / "calls.txt").open()) == 1


@pytest.mark.slow
def test_a_launcher_that_was_killed_finds_its_run_again(cloud, capfd):
    (cloud / "states").write_text("ACTIVE\n")
    (cloud / "orders").write_text("wait\n0\n")
    process = start_launcher(cloud)
    read_until(process, "host ")
    process.kill()
    process.wait()
    pid = (cloud / "w0/gptjax.pid").read_text()

    def stop():
        wait_until(lambda: "a run is going on" in seen(capfd) and "host " in seen(capfd))
        subprocess.run(["kill", "-9", pid.strip()])

    with in_background(stop):
        assert launch("tpu_queued_resource", *SLICES, "--max_restarts=0", "--", *TRAIN) == supervisor.GAVE_UP
    assert "code 137 (SIGKILL)" in seen(capfd) and calls(cloud, "create") == 1


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
