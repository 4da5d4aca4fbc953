#!/usr/bin/env python3
"""Trains on a TPU VM that exists, on all of its hosts, and shows the log of worker 0.

    python launch/tpu_vm.py --name=my-tpu --zone=us-west4-a --bucket=gs://BUCKET -- --config=configs/gpt2_small.py

Ctrl-C saves and stops the run on every host; the machine is left as it is, and costs what it costs. If this command is
cut off, the run goes on, and the same command shows its log again.
"""

import sys
import tempfile

import common
import tpu
from common import supervisor


def add_flags(parser) -> None:
    parser.add_argument("--name", required=True, metavar="TPU", help="of the TPU VM")
    tpu.add_flags(parser)


def launch(args) -> int:
    run = common.read_run(args.train, args.bucket)
    common.require_shipped(run)
    limits = supervisor.Limits.from_args(args)
    hosts = tpu.Hosts("tpu-vm", args.name, args.zone, args.project)
    command = tpu.host_command(run, limits, args.env)
    if args.dry_run:
        tpu.Plan(hosts, command, f"/tmp/{args.name}.tar.gz").show()
        return 0
    common.require_program("gcloud", tpu.INSTALL_GCLOUD)
    with tempfile.TemporaryDirectory() as folder:
        plan = tpu.Plan(hosts, command, f"{folder}/gptjax.tar.gz")
        return supervisor.supervise(
            lambda: tpu.RemoteRun(plan, lambda stopped: ready(hosts)), lambda: tpu.bucket_step(run.workdir), limits
        )


def ready(hosts: tpu.Hosts) -> bool:
    """Whether the TPU VM can be used now; says why if not."""
    state = hosts.state()
    if state != "READY":
        common.note(f"the TPU VM {hosts.name} is {state or 'not there; make one with launch/tpu_queued_resource.py'}")
    return state == "READY"


if __name__ == "__main__":
    sys.exit(common.main(__doc__.splitlines()[0], add_flags, launch))
