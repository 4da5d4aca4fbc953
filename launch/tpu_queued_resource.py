#!/usr/bin/env python3
"""Gets TPU slices through a queued resource, trains on all of their hosts, and deletes them at the end.

    python launch/tpu_queued_resource.py --accelerator=v5p-128 --num_slices=1 --spot --zone=us-east5-a \\
        --bucket=gs://BUCKET -- --config=configs/gpt3_13b.py

The slices are created, waited for, and deleted when the run has ended for whatever reason, unless --keep. Slices that
are preempted are deleted and asked for anew, and the run goes on from its checkpoint. Ctrl-C saves, stops and deletes.
If this command itself is killed, slices and run go on: the same command finds them again.
"""

import shlex
import sys
import tempfile
import time
import typing

import common
import tpu
from common import UserError, supervisor

POLL_SECONDS = 20.0
MIN_BACKOFF_SECONDS = 60.0  # a slice that is being preempted is still called ACTIVE for a while
NAME_LENGTH = 58  # of the 63 that a host's name may have; several slices get a number behind it
MAX_SILENT = 10  # polls without an answer
GONE = ("SUSPENDING", "SUSPENDED", "DELETING")  # https://cloud.google.com/tpu/docs/queued-resources


def add_flags(parser) -> None:
    parser.add_argument("--accelerator", required=True, metavar="TYPE", help="as in v5e-8 or v5p-128")
    parser.add_argument("--num_slices", type=int, default=1, metavar="N", help="default %(default)s")
    parser.add_argument("--name", metavar="NAME", help="of the queued resource; default: gptjax-CONFIGNAME")
    parser.add_argument("--runtime_version", metavar="VERSION", help="default: the one for JAX on this generation")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--spot", action="store_true", help="cheaper, may be preempted at any time")
    kind.add_argument("--reserved", action="store_true", help="from the project's reservation")
    parser.add_argument("--keep", action="store_true", help="do not delete the slices at the end")
    parser.add_argument(
        "--create_flag",
        action="append",
        default=[],
        metavar="FLAG",
        help="for queued-resources create, as in --create_flag=--network=NET; may be repeated",
    )
    tpu.add_flags(parser)


def launch(args) -> int:
    run = common.read_run(args.train, args.bucket)
    common.require_shipped(run)
    accelerator = tpu.read_accelerator(args.accelerator)
    limits = supervisor.Limits.from_args(args)
    name = args.name or f"gptjax-{run.name}"
    common.require_name("name", name, NAME_LENGTH)
    hosts = tpu.Hosts("queued-resources", name, args.zone, args.project)
    create, delete = create_command(args, hosts, accelerator), hosts.gcloud("delete", hosts.name, "--force", "--quiet")
    command = tpu.host_command(run, limits, args.env)
    total = args.num_slices * accelerator.chips
    common.note(f"{args.num_slices} x {accelerator.type}: {total} chips on {args.num_slices * accelerator.hosts} hosts")
    if args.dry_run:
        show(hosts, create, delete, tpu.Plan(hosts, command, f"/tmp/{hosts.name}.tar.gz"), args.keep)
        return 0
    common.require_program("gcloud", tpu.INSTALL_GCLOUD)
    resource = QueuedResource(hosts, create, delete)
    outer = supervisor.Limits(limits.max_restarts, limits.max_stalled, max(limits.backoff_seconds, MIN_BACKOFF_SECONDS))
    with tempfile.TemporaryDirectory() as folder:
        plan = tpu.Plan(hosts, command, f"{folder}/gptjax.tar.gz")
        try:
            return supervisor.supervise(
                lambda: tpu.RemoteRun(plan, resource.ready), lambda: tpu.bucket_step(run.workdir), outer
            )
        finally:
            resource.leave(args.keep)


def create_command(args, hosts: tpu.Hosts, accelerator: tpu.Accelerator) -> list[str]:
    """Raises UserError for a number of slices that is none."""
    if args.num_slices < 1:
        raise UserError(f"--num_slices={args.num_slices}; expected 1 or more.")
    nodes = [f"--node-id={hosts.name}"]
    if args.num_slices > 1:
        nodes = [f"--node-count={args.num_slices}", f"--node-prefix={hosts.name}"]
    kind = ["--spot"] if args.spot else ["--reserved"] if args.reserved else []
    return hosts.gcloud(
        "create",
        hosts.name,
        *nodes,
        f"--accelerator-type={accelerator.type}",
        f"--runtime-version={args.runtime_version or accelerator.runtime_version}",
        *kind,
        *args.create_flag,
    )


def show(hosts: tpu.Hosts, create: list[str], delete: list[str], plan: tpu.Plan, keep: bool) -> None:
    common.show("# asking for the slices", create, "# waiting for them")
    common.show(f'until [ "$({shlex.join(hosts.state_command())})" = ACTIVE ]; do sleep {POLL_SECONDS:g}; done')
    plan.show()
    common.show("# deleting the slices", ("# " if keep else "") + shlex.join(delete))


class QueuedResource:
    """The slices: asked for, waited for, deleted."""

    def __init__(self, hosts: tpu.Hosts, create: list[str], delete: list[str]):
        self._hosts, self._create, self._delete = hosts, create, delete
        self._may_exist = False

    def ready(self, stopped: typing.Callable[[], bool]) -> bool:
        """Waits until the slices are ACTIVE; those that were preempted are asked for anew. False if stopped.

        Raises UserError if the request is refused or has failed.
        """
        shown, silent, pause = None, 0, 1.0
        while not stopped():
            state = self._hosts.state()
            silent = silent + 1 if state == tpu.UNKNOWN else 0
            if silent > MAX_SILENT:
                raise UserError(
                    f"gcloud gave no state of {self._hosts.name} {silent} times in a row; its reason is above."
                )
            self._may_exist = self._may_exist or state is not None
            if state == "ACTIVE":
                return True
            if state == "FAILED":
                self._explain_failure()
            if state in GONE:
                common.note(f"the queued resource {self._hosts.name} is {state}: deleted and asked for anew")
                common.check(self._delete, "deleting the queued resource")
                state = None
            if state is None:
                self._ask_for_it()
            elif state != shown:
                common.note(f"the queued resource {self._hosts.name} is {state}; Ctrl-C deletes it")
                shown = state
            sleep(pause, stopped)
            pause = min(2 * pause, POLL_SECONDS)
        return False

    def _ask_for_it(self) -> None:
        self._may_exist = True
        if common.run(self._create):
            self._may_exist = self._hosts.state() is not None  # refused, or made before the connection broke
            raise UserError("the slices were refused; gcloud's reason is above.")

    def _explain_failure(self) -> None:
        command = self._hosts.gcloud("describe", self._hosts.name, "--format=value(state.failedData.error.message)")
        reason = common.ask(command).text or "no reason is given"
        raise UserError(f"the queued resource {self._hosts.name} has FAILED: {reason}")

    def leave(self, keep: bool) -> None:
        """Deletes the slices, and says so if anything may be left that costs money."""
        if not self._may_exist:
            return
        left = f"the queued resource {self._hosts.name} may still be there and cost money; to delete it:"
        if keep:
            common.note(f"kept as asked: {left} {shlex.join(self._delete)}")
            return
        try:
            deleted = common.run(self._delete) == 0
        except KeyboardInterrupt:
            deleted = False
        common.note("deleted" if deleted else f"NOT deleted: {left} {shlex.join(self._delete)}")


def sleep(seconds: float, stopped: typing.Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stopped():
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(common.main(__doc__.splitlines()[0], add_flags, launch))
