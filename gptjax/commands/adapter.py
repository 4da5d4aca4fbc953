"""`gptjax adapter merge`: a run directory of the model of a run with an adapter, whose matrices have taken it up."""

import json

from gptjax import start
from gptjax.commands import flags


def add_flags(parser) -> None:
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    help = "make a run directory of the same model without an adapter, in float32, as gptjax import makes one"
    merge = commands.add_parser("merge", help=help, description=help, allow_abbrev=False)
    merge.set_defaults(act=_merge, command="adapter merge")
    flags.add_run_flag(merge)
    merge.add_argument("--out", required=True, metavar="DIR", help="the run directory to create, local or gs://")
    flags.add_checkpoint_flags(merge)
    flags.add_json_flag(merge)


def run(args) -> None:
    start.refuse_several(args.command)
    start.start_jax()
    args.act(args)


def _merge(args) -> None:
    from gptjax.run import adapters
    from gptjax.run import run as runs

    loaded = runs.read(args.workdir, args.step, ema=args.ema)
    adapters.write_merged(loaded, args.out)
    about = {"workdir": args.workdir, "step": loaded.step, "out": args.out, "adapter": loaded.config.model.adapter}
    if args.json:
        print(json.dumps(about, indent=2))
        return
    print(f"{args.out}: step {loaded.step} of {args.workdir} with its adapter merged, {about['adapter']}, float32")
