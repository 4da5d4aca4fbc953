#!/usr/bin/env python3
"""Submits a training to GPU nodes of a Slurm cluster.

    python launch/slurm.py --nodes=2 --gpus_per_node=8 --time=24:00:00 -- --config=configs/gpt3_1_3b.py --workdir=/shared/runs/1b

Nodes see the same files: this checkout, the Python that runs this command, the run directory. JAX finds the
coordinator in Slurm's own variables. Each process runs under the supervisor. --save_seconds before the time limit it
saves, and the job goes back into the queue; so it does after a preemption. When the supervisor gives up, it does not.
"""

import os
import pathlib
import re
import shlex
import string
import sys

import common
from common import ROOT, UserError, errors, supervisor

SIGNAL_EARLY_SECONDS = 60  # that --signal of sbatch may come before its time

SCRIPT = string.Template("""\
#!/bin/bash
$directives

# SIGTERM reaches this shell when the job is cancelled or preempted. The processes get it too, and save.
trap 'echo "sbatch: told to stop by SIGTERM; waiting for the save"' TERM

$exports
cd $directory || exit 2

# A process that has ended for good takes the others along after --wait seconds: time enough for a save, and no more.
srun --label --cpu-bind=none --kill-on-bad-exit=0 --wait=$wait_seconds $command
code=$$?

# Code $saved: saved because the time is up or the node is needed. Incomplete: not if the job was cancelled.
if [ "$$code" -eq $saved ]; then
  if [ "$${SLURM_RESTART_COUNT:-0}" -lt $max_restarts ]; then
    echo "sbatch: saved; back into the queue"
    scontrol requeue Incomplete "$$SLURM_JOB_ID"
  else
    echo "sbatch: saved; was queued $max_restarts times already, which is the limit (--max_restarts)"
  fi
fi
exit "$$code"
""")


def add_flags(parser) -> None:
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="default %(default)s")
    parser.add_argument("--gpus_per_node", type=int, default=8, metavar="N", help="default %(default)s")
    parser.add_argument("--processes_per", choices=("node", "gpu"), default="node", help="default %(default)s")
    parser.add_argument("--time", required=True, metavar="LIMIT", help="as in 24:00:00 or 2-00:00:00")
    parser.add_argument("--save_seconds", type=int, default=300, metavar="S", help="before LIMIT (default %(default)s)")
    parser.add_argument("--partition", metavar="NAME")
    parser.add_argument("--account", metavar="NAME")
    parser.add_argument("--cpus_per_task", type=int, metavar="N", help="default: whole nodes (--exclusive)")
    parser.add_argument("--log_dir", default="runs/slurm", metavar="DIR", help="default %(default)s")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    parser.add_argument(
        "--sbatch_flag", action="append", default=[], metavar="FLAG", help="as in --sbatch_flag=--qos=high"
    )


def launch(args) -> int:
    run = common.read_run(args.train, "runs")
    script = batch_script(args, run)
    if args.dry_run:
        common.show(script.rstrip("\n"))
        return 0
    common.require_program("sbatch", "run this on a login node of the cluster")
    logs = pathlib.Path(args.log_dir)
    logs.mkdir(parents=True, exist_ok=True)
    file = logs / f"gptjax-{run.name}.sbatch"
    file.write_text(script)
    return common.run(["sbatch", str(file)])


def batch_script(args, run: common.Run) -> str:
    """The sbatch file. Raises UserError for numbers that cannot be."""
    for name in ("nodes", "gpus_per_node", "save_seconds", "cpus_per_task"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)}; expected 1 or more.")
    limit = limit_seconds(args.time)
    if 0 < limit <= args.save_seconds + SIGNAL_EARLY_SECONDS:
        raise UserError(
            f"--time={args.time} is {limit} seconds, and the run is told to save --save_seconds={args.save_seconds} before"
            f" its end, or up to {SIGNAL_EARLY_SECONDS} earlier; give more time. HOURS:MINUTES:SECONDS, MINUTES:SECONDS."
        )
    limits = supervisor.Limits.from_args(args)
    return SCRIPT.substitute(
        directives="\n".join(f"#SBATCH {flag}" for flag in directives(args, run)),
        exports="\n".join(f"export {variable}" for variable in variables(args)),
        directory=shlex.quote(os.getcwd()),
        command=shlex.join(run.supervised_command(sys.executable, limits)),
        wait_seconds=max(600, args.save_seconds),
        saved=errors.SAVED_AND_STOPPED,
        max_restarts=limits.max_restarts,
    )


def limit_seconds(time: str) -> int:
    """Of a time limit as sbatch reads it; 0: none. Raises UserError for what it would refuse."""
    if not re.fullmatch(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", time):
        raise UserError(f"--time={time!r}; expected minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES:SECONDS.")
    days, dash, rest = time.rpartition("-")
    numbers = [int(number) for number in rest.split(":")]
    if not dash:  # MINUTES, MINUTES:SECONDS or HOURS:MINUTES:SECONDS; behind days the first are always hours
        numbers = numbers if len(numbers) == 3 else [0, *numbers]
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    return ((24 * int(days or 0) + hours) * 60 + minutes) * 60 + seconds


def directives(args, run: common.Run) -> list[str]:
    tasks = args.gpus_per_node if args.processes_per == "gpu" else 1
    optional = {"--partition": args.partition, "--account": args.account, "--cpus-per-task": args.cpus_per_task}
    return [
        f"--job-name=gptjax-{run.name}",
        f"--nodes={args.nodes}",
        f"--ntasks-per-node={tasks}",
        f"--gpus-per-node={args.gpus_per_node}",
        f"--time={args.time}",
        f"--signal=TERM@{args.save_seconds}",
        "--requeue",
        "--open-mode=append",
        f"--output={args.log_dir}/%x-%j.log",
        *(f"{flag}={value}" for flag, value in optional.items() if value is not None),
        *([] if args.cpus_per_task else ["--exclusive"]),
        *args.sbatch_flag,
    ]


def variables(args) -> list[str]:
    """NAME=VALUE, quoted, of what the processes are told beside Slurm's own variables."""
    own = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    own |= common.read_variables(args.env)
    return [f"{name}={shlex.quote(value)}" for name, value in own.items()]


if __name__ == "__main__":
    sys.exit(common.main(__doc__.splitlines()[0], add_flags, launch))
