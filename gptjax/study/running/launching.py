"""The commands that start the runs of a study: here, or through the scripts of launch/.

To add one, derive a class from Launcher (or from Script, around a script like those of launch/) and name it in LAUNCHERS.
Every launcher is a process on this machine that ends when the run does, with the run's exit code: `gptjax train`
itself; `sbatch --wait`; XPK's submission and then its wait; the queued resource's launcher, which stays. Whoever reads
the run directory afterwards knows how it went.

Names on a cluster are gptjax-KEY, so that a study that is run again finds what it started before: a queued resource is
joined; of two Slurm jobs of one name the later waits for the earlier (--dependency=singleton) and then finds the run
done; XPK makes no second workload of a name, which therefore ends in the number of the attempt.
"""

import dataclasses
import os
import pathlib
import shlex
import subprocess
import sys

import gptjax
from gptjax.errors import UserError, choose
from gptjax.study.running.layout import StudyDirectory

ROOT = pathlib.Path(gptjax.__file__).resolve().parent.parent
STAND_IN = ["--config=configs/quickstart.py", "--workdir=gs://bucket/run"]  # to try a launcher's flags with


@dataclasses.dataclass(frozen=True)
class Launcher:
    """What starts one run as a process of this machine, which ends when the run does, with its exit code."""

    name: str
    flags: tuple[str, ...] = ()  # that it was given by --launcher_flag

    local = False  # whether runs compute on this machine: its devices are shared out, and small runs share a process
    survives = None  # what is left running where this process is stopped, and how it is ended; None: nothing

    def check(self, directory: StudyDirectory) -> None:
        """Raises UserError before anything is started: flags it refuses, or a folder that its machines do not share."""

    def command(self, directory: StudyDirectory, key: str, attempt: int, words: list[str]) -> list[str]:
        """That runs one run to its end. words: what `gptjax train` is told beside config and run directory."""
        raise NotImplementedError


def train_words(directory: StudyDirectory, key: str, words: list[str]) -> list[str]:
    """What follows `gptjax train` to train the run of a key."""
    return [f"--config={directory.config(key)}", f"--workdir={directory.run(key)}", *words]


class Local(Launcher):
    """`gptjax train` itself."""

    local = True

    def check(self, directory):
        if self.flags:
            raise UserError(
                f"--launcher_flag={self.flags[0]} is for a launcher of launch/, but --launcher={self.name} is not one of them."
            )

    def command(self, directory, key, attempt, words):
        return [*gptjax_command(), "train", *train_words(directory, key, words)]


class Script(Launcher):
    """A script of launch/, whose own flags those of the command line are."""

    script: str  # in launch/, or a whole path
    shares_disks = False  # whether its machines see the disks of this one

    @property
    def start(self) -> list[str]:
        return [sys.executable, str(ROOT / "launch" / self.script), *map(_dashed, self.flags)]

    def check(self, directory):
        """Lets the script say what is wrong with its flags."""
        if directory.local and not self.shares_disks:
            raise UserError(
                f"--out={directory.path} is on no disk that the machines of --launcher={self.name} share;"
                " use --out=gs://BUCKET/DIR."
            )
        for flag in map(_dashed, self.flags):
            if flag.partition("=")[0] in ("--name", "--workload"):
                raise UserError(
                    f"--launcher_flag={flag} would give all runs one name; leave it out: they are gptjax-KEY."
                )
        _check_flags(self)

    def command(self, directory, key, attempt, words):
        return [*self.start, "--", *train_words(directory, key, words)]


class QueuedResource(Script):
    """TPU slices of a queued resource for each run, by launch/tpu_queued_resource.py."""

    script = "tpu_queued_resource.py"


class Slurm(Script):
    """A job of Slurm for each run, by launch/slurm.py."""

    script = "slurm.py"
    shares_disks = True
    survives = "jobs that were submitted go on; scancel --name=gptjax-KEY ends one"

    def command(self, directory, key, attempt, words):
        given = any(flag.startswith("--log_dir=") for flag in map(_dashed, self.flags))
        log_dir = [] if given else [f"--log_dir={directory.path}/logs/slurm"]
        wait = ["--sbatch_flag=--wait", "--sbatch_flag=--dependency=singleton"]
        return [*self.start, *log_dir, *wait, "--", *train_words(directory, key, words)]


class Xpk(Script):
    """A workload of a GKE cluster for each run, by launch/xpk.py."""

    script = "xpk.py"
    survives = "workloads that were submitted go on; xpk workload delete --workload=gptjax-KEY-ATTEMPT ends one"

    def command(self, directory, key, attempt, words):
        """Submits, unless a workload of the name is there, and waits: 0 it succeeded, 125 it did not, 1 there is none."""
        workload = f"gptjax-{key}-{attempt}"
        flags = map(_dashed, self.flags)
        place = [flag for flag in flags if flag.partition("=")[0] in ("--cluster", "--zone", "--project")]
        submit = [*self.start, f"--workload={workload}", "--", *train_words(directory, key, words)]
        wait = ["xpk", "workload", "list", *place, f"--wait-for-job-completion={workload}"]
        return ["bash", "-c", f"{shlex.join(submit)}; exec {shlex.join(wait)}"]


LAUNCHERS = {"local": Local, "slurm": Slurm, "xpk": Xpk, "queued_resource": QueuedResource}


def launcher(name: str, flags: list[str], directory: StudyDirectory) -> Launcher:
    """Raises UserError: there is none of the name, or it refuses its flags or the folder."""
    made = choose(LAUNCHERS, name, "--launcher")(name, tuple(flags))
    made.check(directory)
    return made


def _dashed(flag: str) -> str:
    return flag if flag.startswith("--") else f"--{flag}"


def _check_flags(launcher: Script) -> None:
    script = ROOT / "launch" / launcher.script
    if not script.exists():
        raise UserError(
            f"--launcher={launcher.name} is launch/{launcher.script} of a checkout of gptjax; {ROOT} has none."
        )
    if "--" in launcher.flags:
        raise UserError("--launcher_flag=--: what follows -- is the study's to say; give flags of the launcher alone.")
    command = [*launcher.start, "--dry_run", "--", *STAND_IN]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith(script.name)] or done.stderr.splitlines()
        reason = said[-1].removeprefix(f"{script.name}: ").removeprefix("error: ") if said else "it gave no reason"
        raise UserError(
            f"--launcher={launcher.name}: {reason.rstrip('.')}. Its flags are given as --launcher_flag=--NAME=VALUE;"
            f" launch/{script.name} --help lists them."
        )


def gptjax_command() -> list[str]:
    """This gptjax, whatever lies in the folder where it is started."""
    return [sys.executable, "-P", "-m", "gptjax"]


def batched_command() -> list[str]:
    return [sys.executable, "-P", "-m", "gptjax.study.batched"]


def environment(**extra: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}
