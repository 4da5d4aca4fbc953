"""What the tests of the launchers share. The launchers are scripts: their modules are found in launch/."""

import pathlib
import sys
import time
import weakref

from places import ROOT

sys.path.insert(0, str(ROOT / "launch"))

import common  # noqa: E402
import local  # noqa: E402
import slurm  # noqa: E402
import tpu_queued_resource  # noqa: E402
import tpu_vm  # noqa: E402
import xpk  # noqa: E402

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


def program(file: pathlib.Path, script: str) -> None:
    file.write_text(f"#!/bin/bash\n{script}\n")
    file.chmod(0o755)


def wait_until(condition, seconds: float = 20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


SEEN: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def seen(capfd) -> str:
    """Everything that this process and its children have printed so far."""
    output = capfd.readouterr()
    SEEN.setdefault(capfd, []).append(output.out + output.err)
    return "".join(SEEN[capfd])
