"""Cloud TPU VMs: names of slices, and a supervised run on every host of one over `gcloud ... ssh`.

The hosts get this checkout as a tar file, uncommitted changes included, and a Python of their own with what it needs.
The run is detached from ssh: a lost connection, or a launcher that ends, leaves it running, and the same command finds
it again. Each host keeps gptjax.log, gptjax.pid and, at the end, gptjax.exit in its home directory.
"""

import dataclasses
import re
import shlex
import subprocess
import time
import typing

import common
from common import ROOT, UserError, supervisor

HOST_PYTHON = "../gptjax-venv/bin/python"  # seen from the checkout
READY = ("ACTIVE", "READY")  # states of a queued resource and of a TPU VM
UNKNOWN = "UNKNOWN"  # the state of hosts that gcloud could not be asked for
RETRY_SECONDS = 20.0  # before asking for the log again
INSTALL_GCLOUD = "see https://cloud.google.com/sdk/docs/install, then: gcloud auth login"


@dataclasses.dataclass(frozen=True)
class Generation:
    """prefix: of the accelerator type. Its number counts chips, or TensorCores where cores_per_chip is 2."""

    prefix: str
    runtime_version: str
    cores_per_chip: int
    largest_single_host: int  # chips; larger slices have hosts of 4 chips
    sizes: tuple[int, ...]  # slices that there are, in chips


FLAT = (1, 4, 8, 16, 32, 64, 128, 256)  # of two dimensions


def cubes(largest: int) -> tuple[int, ...]:
    """Slices of three dimensions: parts of a cube of 4x4x4 chips, or whole ones, up to so many chips."""
    return (4, 8, 16, 32, *range(64, largest + 1, 64))


# Runtime versions for JAX: https://cloud.google.com/tpu/docs/runtimes. Names and hosts of slices:
# https://cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e.
GENERATIONS = {
    "v4": Generation("v4", "tpu-ubuntu2204-base", 2, 4, cubes(4096)),
    "v5e": Generation("v5litepod", "v2-alpha-tpuv5-lite", 1, 8, FLAT),
    "v5p": Generation("v5p", "v2-alpha-tpuv5", 2, 4, cubes(6144)),
    "v6e": Generation("v6e", "v2-alpha-tpuv6e", 1, 8, FLAT),
}


@dataclasses.dataclass(frozen=True)
class Accelerator:
    type: str  # as gcloud and XPK name it
    runtime_version: str
    chips: int
    hosts: int


def read_accelerator(name: str) -> Accelerator:
    """v5e-8, v5litepod-8 or v5p-128. Raises UserError for what is none."""
    prefix, _, number = name.partition("-")
    found = [g for key, g in GENERATIONS.items() if prefix in (key, g.prefix)]
    if not found or not (number.isascii() and number.isdecimal()):
        raise UserError(f"--accelerator={name!r}; expected one of {', '.join(GENERATIONS)} and a size, as in v5p-128.")
    [generation] = found
    chips, rest = divmod(int(number), generation.cores_per_chip)
    if rest or chips not in generation.sizes:
        smaller = [size for size in generation.sizes if size * generation.cores_per_chip < int(number)][-1:]
        larger = [size for size in generation.sizes if size * generation.cores_per_chip > int(number)][:1]
        near = " and ".join(f"{prefix}-{size * generation.cores_per_chip}" for size in smaller + larger)
        counts = "TensorCores, two a chip" if generation.cores_per_chip == 2 else "chips"
        raise UserError(f"--accelerator={name}: there is no such slice; near are {near} (the number counts {counts}).")
    hosts = 1 if chips <= generation.largest_single_host else chips // 4
    return Accelerator(f"{generation.prefix}-{number}", generation.runtime_version, chips, hosts)


def add_flags(parser) -> None:
    parser.add_argument("--zone", required=True, metavar="ZONE", help="as in us-west4-a")
    parser.add_argument("--project", metavar="PROJECT", help="default: that of gcloud config")
    parser.add_argument("--bucket", metavar="gs://BUCKET", help="a run without --workdir goes to BUCKET/CONFIGNAME")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="for the run on every host; may be repeated"
    )


def host_command(run: common.Run, limits: supervisor.Limits, env: list[str], python: str = HOST_PYTHON) -> str:
    """What each host runs, in the checkout, as a shell line. env: NAME=VALUE."""
    variables = [f"{name}={value}" for name, value in common.read_variables(env).items()]
    command = run.supervised_command(python, limits)
    return shlex.join(["env", *variables, *command] if variables else command)


# After a restart of the host the number in gptjax.pid may be another program's.
RUNNING = '[ -s gptjax.pid ] && grep -qsa "gptjax[.]supervisor" "/proc/$(cat gptjax.pid)/cmdline"'

# TPU VM images carry Python 3.10, gptjax needs 3.11: uv fetches one. gs:// paths need etils' own extra.
SETUP = f"""\
set -e
cd "$HOME"
if {RUNNING}; then echo "$(hostname): a run is going on; its code is left as it is"; exit 0; fi
rm -rf gptjax && mkdir gptjax && tar -xzf gptjax.tar.gz -C gptjax
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python=3.12 gptjax-venv
python3 -m uv pip install --quiet --python=gptjax-venv/bin/python -e './gptjax[tpu]' 'etils[epath-gcs]'
"""

START = f"""\
set -e
cd "$HOME"
if {RUNNING}; then echo "$(hostname): a run is going on; it is left as it is"; exit 0; fi
rm -f gptjax.exit gptjax.pid
if [ -e gptjax.log ]; then mv gptjax.log gptjax.log.before; fi
nohup setsid bash -c RUN > gptjax.log 2>&1 < /dev/null &
until [ -s gptjax.pid ]; do sleep 0.1; done
"""

FOLLOW = 'cd "$HOME" && tail -n +1 -F --pid="$(cat gptjax.pid)" gptjax.log'

STATUS = f"""\
cd "$HOME"
if [ -s gptjax.exit ]; then echo "gptjax ended $(cat gptjax.exit)"
elif {RUNNING}; then echo "gptjax running"
else echo "gptjax lost"; fi
"""

STOP = f'cd "$HOME" && {RUNNING} && kill -TERM "$(cat gptjax.pid)"'


def start_script(command: str) -> str:
    """START of a command, whose process id and exit code are kept."""
    run = f"cd gptjax; {command} & echo $! > ../gptjax.pid; wait $!; echo $? > ../gptjax.exit"
    return START.replace("RUN", shlex.quote(run))


def pack_command(archive: str) -> str:
    """A shell line that packs this checkout: tracked files and new ones that git does not ignore, as they are now."""
    files = "git ls-files -z --cached --others --exclude-standard"
    if (ROOT / ".git").is_dir():  # so that the run's manifest names the revision
        files = f"{{ {files}; printf '.git\\0'; }}"
    tar = f"tar --null --ignore-failed-read --files-from=- -czf {shlex.quote(archive)}"
    tar = f"{{ {tar} || [ $? = 1 ]; }}"  # 1: a file changed while it was read, as .git does at anyone's `git status`
    return f"(cd {shlex.quote(str(ROOT))} && set -o pipefail && {files} | {tar})"


@dataclasses.dataclass(frozen=True)
class Hosts:
    """All hosts of a TPU VM ("tpu-vm") or of the slices of a queued resource ("queued-resources")."""

    group: str
    name: str
    zone: str
    project: str | None

    def gcloud(self, verb: str, *words: str) -> list[str]:
        where = [f"--zone={self.zone}", *([f"--project={self.project}"] if self.project else [])]
        return ["gcloud", "compute", "tpus", self.group, verb, *words, *where]

    def on_all(self, script: str) -> list[str]:
        return self.gcloud("ssh", self.name, *self._workers("all"), f"--command={script}", "--quiet")

    def on_first(self, script: str) -> list[str]:
        return self.gcloud("ssh", self.name, *self._workers("0"), f"--command={script}", "--quiet")

    def copy(self, file: str, target: str) -> list[str]:
        return self.gcloud("scp", file, f"{self.name}:{target}", *self._workers("all"), "--quiet")

    def state_command(self) -> list[str]:
        field = "state.state" if self.group == "queued-resources" else "state"
        return self.gcloud("describe", self.name, f"--format=value({field})")

    def state(self) -> str | None:
        """As Cloud TPU calls it; None if there is no such thing; UNKNOWN, with gcloud's reason shown, if it fails."""
        answer = common.ask(self.state_command())
        if answer.code == 0:
            return answer.text
        if "NOT_FOUND" in answer.error or "not found" in answer.error:
            return None
        common.note(f"{self.name}: {answer.reason}")
        return UNKNOWN

    def _workers(self, which: str) -> list[str]:
        return [f"--worker={which}", *([f"--node={which}"] if self.group == "queued-resources" else [])]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The commands that bring a run to hosts and start it there, in order: (what it does, command)."""

    hosts: Hosts
    command: str
    archive: str

    def steps(self) -> list[tuple[str, list[str]]]:
        return [
            ("packing the checkout", ["bash", "-c", pack_command(self.archive)]),
            ("copying it to every host", self.hosts.copy(self.archive, "gptjax.tar.gz")),
            ("installing it on every host", self.hosts.on_all(SETUP)),
            ("starting the run on every host", self.hosts.on_all(start_script(self.command))),
        ]

    def show(self) -> None:
        """As a script: the steps, then the log of the first host."""
        for doing, command in self.steps():
            common.show(f"# {doing}", command)
        common.show("# the log of worker 0; Ctrl-C ends the log, not the run", self.hosts.on_first(FOLLOW))
        common.show("# worker 0's exit code", self.hosts.on_first(STATUS))
        common.show(f"# to save and stop: {shlex.join(self.hosts.on_all(STOP))}")


class RemoteRun:
    """A run on TPU hosts as one Job of the supervisor: brought there, started, followed, stopped when asked to."""

    def __init__(self, plan: Plan, ready: typing.Callable[[typing.Callable[[], bool]], bool]):
        """ready(stopped): waits until the hosts are there; False if that has to be given up or was stopped."""
        self._plan, self._hosts, self._ready = plan, plan.hosts, ready
        self._signals = 0

    def send_signal(self, number: int) -> None:
        self._signals += 1

    def wait(self) -> int:
        if not self._ready(self._stopped):
            return 1
        for doing, command in self._plan.steps():
            if self._stopped():
                return 1
            common.note(doing)
            code = supervisor.exit_code(subprocess.run(command, start_new_session=True).returncode)
            if code:
                common.note(f"{doing} failed with code {code}")
                return 1
        return self._follow()

    def _stopped(self) -> bool:
        return self._signals > 0

    def _follow(self) -> int:
        """Shows worker 0's log until the run has ended. Returns its exit code there, 1 if the hosts are gone."""
        asked = False
        while True:
            log = subprocess.Popen(self._hosts.on_first(FOLLOW), start_new_session=True)
            while log.poll() is None:
                time.sleep(0.2)
                if self._stopped() and not asked:
                    asked = True
                    common.note("asking every host to save and stop; a second Ctrl-C leaves without waiting")
                    common.run(self._hosts.on_all(STOP))
                if self._signals > 1:
                    log.terminate()
                    return 1
            words = re.search(r"gptjax (ended (\d+)|running|lost)", common.ask(self._hosts.on_first(STATUS)).text)
            if words and words[2]:
                return self._ended(int(words[2]))
            if words and words[1] == "lost":
                common.note("worker 0 runs no supervisor any more: it was killed, or the host was restarted")
                return 1
            if not words and self._hosts.state() not in (*READY, UNKNOWN):
                common.note("the hosts are gone")
                return 1
            common.note(f"the connection to worker 0 was lost, the run goes on; again in {RETRY_SECONDS:g} s")
            time.sleep(RETRY_SECONDS)

    def _ended(self, code: int) -> int:
        """code, or 1 where the supervisor has given up because other hosts of the slices are gone."""
        if code == supervisor.GAVE_UP and self._hosts.state() not in READY:
            common.note("the hosts gave up because some of them are gone")
            return 1
        return code


def bucket_step(workdir: str) -> int:
    """The newest checkpoint's step of a gs:// run directory, 0 if there is none, asked of gcloud.

    Raises UserError if the bucket itself cannot be listed.
    """
    listing = common.ask(["gcloud", "storage", "ls", f"{workdir.rstrip('/')}/checkpoints/"])
    if listing.code:  # no such folder yet, or no such bucket
        bucket = "/".join(workdir.split("/")[:3])
        answer = common.ask(["gcloud", "storage", "ls", "--buckets", bucket])
        if answer.code:
            raise UserError(
                f"{bucket} cannot be read ({answer.reason}); see launch/README.md to make it, or to log in."
            )
    return max((int(name) for name in re.findall(r"/checkpoints/(\d+)/", listing.text)), default=0)
