"""The commands that start the runs of a study: here, or through the scripts of launch/.

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
SCRIPTS = {"slurm": "slurm.py", "xpk": "xpk.py", "queued_resource": "tpu_queued_resource.py"}
NAMES = ("local", *SCRIPTS)
STAND_IN = ["--config=configs/quickstart.py", "--workdir=gs://bucket/run"]  # to try a launcher's flags with


@dataclasses.dataclass(frozen=True)
class Launcher:
    name: str
    flags: tuple[str, ...]  # for the script of launch/

    @property
    def local(self) -> bool:
        return self.name == "local"

    def command(self, directory: StudyDirectory, key: str, attempt: int, words: list[str]) -> list[str]:
        """That runs one run to its end. words: what `gptjax train` is told beside config and run directory."""
        train = [f"--config={directory.config(key)}", f"--workdir={directory.run(key)}", *words]
        if self.local:
            return [*gptjax_command(), "train", *train]
        script = [sys.executable, str(ROOT / "launch" / SCRIPTS[self.name]), *self.flags]
        if self.name == "slurm":
            script += [*self._log_dir(directory), "--sbatch_flag=--wait", "--sbatch_flag=--dependency=singleton"]
        if self.name == "xpk":
            return self._xpk(script, train, f"gptjax-{key}-{attempt}")
        return [*script, "--", *train]

    def _log_dir(self, directory: StudyDirectory) -> list[str]:
        given = any(flag.startswith("--log_dir=") for flag in self.flags)
        return [] if given else [f"--log_dir={directory.path}/logs/slurm"]

    def _xpk(self, script: list[str], train: list[str], workload: str) -> list[str]:
        """Submits, unless a workload of the name is there, and waits: 0 it succeeded, 125 it did not, 1 there is none."""
        place = [flag for flag in self.flags if flag.partition("=")[0] in ("--cluster", "--zone", "--project")]
        wait = ["xpk", "workload", "list", *place, f"--wait-for-job-completion={workload}"]
        submit = [*script, f"--workload={workload}", "--", *train]
        return ["bash", "-c", f"{shlex.join(submit)}; exec {shlex.join(wait)}"]

    def survives(self) -> str | None:
        """What is left running where this process is stopped, and how it is ended; None: nothing."""
        return {
            "slurm": "jobs that were submitted go on; scancel --name=gptjax-KEY ends one",
            "xpk": "workloads that were submitted go on; xpk workload delete --workload=gptjax-KEY-ATTEMPT ends one",
        }.get(self.name)


def gptjax_command() -> list[str]:
    """This gptjax, whatever lies in the folder where it is started."""
    return [sys.executable, "-P", "-m", "gptjax"]


def batched_command() -> list[str]:
    return [sys.executable, "-P", "-m", "gptjax.study.batched"]


def environment(**extra: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}


def launcher(name: str, flags: list[str], directory: StudyDirectory) -> Launcher:
    """Raises UserError: flags that the script of launch/ refuses, or a folder that the machines do not share."""
    choose(dict.fromkeys(NAMES), name, "--launcher")
    if name == "local":
        if flags:
            raise UserError(f"--launcher_flag={flags[0]} is for a launcher of launch/, and --launcher=local has none.")
        return Launcher(name, ())
    flags = [flag if flag.startswith("--") else f"--{flag}" for flag in flags]
    if name in ("xpk", "queued_resource") and directory.local:
        raise UserError(
            f"--out={directory.path} is on no disk that the machines of --launcher={name} share; use --out=gs://BUCKET/DIR."
        )
    for flag in flags:
        if flag.partition("=")[0] in ("--name", "--workload"):
            raise UserError(f"--launcher_flag={flag} would give all runs one name; leave it out: they are gptjax-KEY.")
    _check_flags(name, flags)
    return Launcher(name, tuple(flags))


def _check_flags(name: str, flags: list[str]) -> None:
    """Lets the script say what is wrong with its flags, before anything is started."""
    script = ROOT / "launch" / SCRIPTS[name]
    if not script.exists():
        raise UserError(f"--launcher={name} is launch/{SCRIPTS[name]} of a checkout of gptjax; {ROOT} has none.")
    if "--" in flags:
        raise UserError("--launcher_flag=--: what follows -- is the study's to say; give flags of the launcher alone.")
    command = [sys.executable, str(script), *flags, "--dry_run", "--", *STAND_IN]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith(script.name)] or done.stderr.splitlines()
        reason = said[-1].removeprefix(f"{script.name}: ").removeprefix("error: ") if said else "it gave no reason"
        raise UserError(
            f"--launcher={name}: {reason.rstrip('.')}. Its flags are given as --launcher_flag=--NAME=VALUE;"
            f" launch/{script.name} --help lists them."
        )
