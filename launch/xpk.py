#!/usr/bin/env python3
"""Submits a training to TPU slices of a GKE cluster through XPK.

    python launch/xpk.py --cluster=CLUSTER --accelerator=v5p-128 --num_slices=2 --zone=us-east5-a \\
        --bucket=gs://BUCKET -- --config=configs/gpt3_13b.py

Without --docker_image XPK lays this checkout into --base_docker_image, and every container installs it before it
starts, in about two minutes. A host's supervisor restarts what crashes; GKE restarts the workload when a node goes or
a host was told to stop (code 75), and not when the supervisor has given up.
"""

import shlex
import sys

import common
import tpu
from common import ROOT, UserError, errors, supervisor

INSTALL_XPK = "pip install xpk, see https://github.com/AI-Hypercomputer/xpk/blob/main/docs/installation.md"
INSTALL_GPTJAX = "pip install --quiet -e '.[tpu]' 'etils[epath-gcs]'"
NAME_LENGTH = 40  # of a workload
COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"  # of a pod: its host within the slice
SAVE_SECONDS = 300  # for saving before a pod is ended; the pod's share of a spot machine's own notice may be less


def add_flags(parser) -> None:
    parser.add_argument("--cluster", required=True, metavar="CLUSTER", help="made by xpk cluster create")
    parser.add_argument("--accelerator", required=True, metavar="TYPE", help="as in v5e-8 or v5p-128")
    parser.add_argument("--num_slices", type=int, default=1, metavar="N", help="default %(default)s")
    parser.add_argument("--workload", metavar="NAME", help="default: gptjax-CONFIGNAME")
    parser.add_argument("--docker_image", metavar="IMAGE", help="holds gptjax, installed; nothing is copied into it")
    parser.add_argument("--base_docker_image", default="python:3.12", metavar="IMAGE", help="default %(default)s")
    parser.add_argument("--priority", default="medium", metavar="LEVEL", help="very-low to very-high")
    parser.add_argument(
        "--xpk_flag", action="append", default=[], metavar="FLAG", help="for xpk workload create; may be repeated"
    )
    tpu.add_flags(parser)


def launch(args) -> int:
    run = common.read_run(args.train, args.bucket)
    common.require_shipped(run)
    name = workload_name(args, run)
    command = create_command(args, run, name)
    if args.dry_run:
        common.show(command)
        return 0
    common.require_program("xpk", INSTALL_XPK)
    common.check(command, "submitting the workload")
    where = [f"--cluster={args.cluster}", *place(args)]
    common.note(f"to see it:  {shlex.join(['xpk', 'workload', 'list', *where])}")
    first = {"jobset.sigs.k8s.io/jobset-name": name, "jobset.sigs.k8s.io/job-index": 0, COMPLETION_INDEX: 0}
    selector = ",".join(f"{label}={value}" for label, value in first.items())
    common.note(f"worker 0:   kubectl logs --follow --all-containers --selector={selector}")
    common.note(f"to end it:  {shlex.join(['xpk', 'workload', 'delete', f'--workload={name}', *where])}")
    return 0


def workload_name(args, run: common.Run) -> str:
    """Raises UserError for one that Kubernetes would refuse."""
    name = args.workload or f"gptjax-{run.name}"
    common.require_name("workload", name, NAME_LENGTH)
    return name


def create_command(args, run: common.Run, name: str) -> list[str]:
    if args.num_slices < 1:
        raise UserError(f"--num_slices={args.num_slices}; expected 1 or more.")
    limits = supervisor.Limits.from_args(args)
    start = tpu.host_command(run, limits, args.env, python="python")
    if args.docker_image:
        image, command = [f"--docker-image={args.docker_image}"], f"exec {start}"
    else:
        image = [f"--base-docker-image={args.base_docker_image}", f"--script-dir={ROOT}"]
        command = f"{INSTALL_GPTJAX} && exec {start}"
    if "\n" in command:
        raise UserError("XPK takes commands of one line only; one of the flags or variables holds a line break.")
    return [
        *("xpk", "workload", "create"),
        f"--cluster={args.cluster}",
        f"--workload={name}",
        f"--tpu-type={tpu.read_accelerator(args.accelerator).type}",
        f"--num-slices={args.num_slices}",
        *image,
        f"--priority={args.priority}",
        f"--max-restarts={limits.max_restarts}",
        f"--restart-on-exit-codes={errors.SAVED_AND_STOPPED}",
        f"--termination-grace-period-seconds={SAVE_SECONDS}",
        *place(args),
        *args.xpk_flag,
        f"--command={command}",
    ]


def place(args) -> list[str]:
    return [f"--zone={args.zone}", *([f"--project={args.project}"] if args.project else [])]


if __name__ == "__main__":
    sys.exit(common.main(__doc__.splitlines()[0], add_flags, launch))
