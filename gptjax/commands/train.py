"""`gptjax train`: a run of a config begun, gone on with, or branched off another."""

from gptjax import start
from gptjax.commands import flags


def add_flags(parser, required: bool = True) -> None:
    """What `gptjax train` takes beside changes of the config; a launcher, which knows what is missing, requires none."""
    flags.add_config_flag(parser, required)
    parser.add_argument("--workdir", required=required, metavar="DIR", help="the run directory, local or gs://")
    parser.add_argument("--executable", metavar="FILE", help="a train step compiled by gptjax plan --save_executable")
    parser.add_argument(
        "--allow_change",
        default="",
        metavar="KEYS",
        help="comma-separated config fields that may change when a run continues; train.steps makes a finished run longer",
    )
    parser.add_argument(
        "--branch_from", metavar="RUN_DIR", help="start from a checkpoint of this run instead of step 0"
    )
    parser.add_argument("--branch_step", metavar="N", help="the step of that checkpoint")


def run(args) -> int:
    """The exit code of the run, as errors.py names them."""
    config = flags.load_config(args)
    from gptjax.rundir import resuming

    allowed = resuming.asked(args.allow_change)
    start.start_jax(config)
    from gptjax.hosts import distributed
    from gptjax.training import branching, main

    origin = branching.asked(args.branch_from, args.branch_step)
    return main.train(config, args.workdir, allowed, args.executable, origin, distributed.start)
