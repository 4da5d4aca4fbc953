"""`gptjax reward scale`: a run directory of a reward model whose scores are put on a scale."""

import json

from gptjax import start
from gptjax.commands import flags


def add_flags(parser) -> None:
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    help = "make a run directory of the same reward model with its scores moved to a scale, as gptjax import makes one"
    scale = commands.add_parser("scale", help=help, description=help, allow_abbrev=False)
    scale.set_defaults(act=_scale, command="reward scale")
    flags.add_run_flag(scale)
    scale.add_argument("--out", required=True, metavar="DIR", help="the run directory to create, local or gs://")
    scale.add_argument(
        "--to",
        default="zero",
        metavar="SCALE",
        help="zero: demonstrations score 0 on average; standard: answers have mean 0 and standard deviation 1 (default: zero)",
    )
    scale.add_argument(
        "--data",
        metavar="SPEC",
        help="conversations to measure the scores on, such as jsonl:demonstrations.jsonl (default: the training preferences:"
        " of zero the best answers, of standard all answers)",
    )
    flags.add_checkpoint_flags(scale)
    flags.add_json_flag(scale)


def run(args) -> None:
    start.refuse_several(args.command)
    start.start_jax()
    args.act(args)


def _scale(args) -> None:
    from gptjax.run import rewards
    from gptjax.run import run as runs

    loaded = runs.read(args.workdir, args.step, ema=args.ema)
    scale = rewards.write(loaded, args.to, args.out, args.data)
    about = {"workdir": args.workdir, "step": loaded.step, "out": args.out, "to": args.to, **scale._asdict()}
    if args.json:
        print(json.dumps(about, indent=2))
        return
    print(
        f"{args.out}: step {loaded.step} of {args.workdir}, whose score r is now (r - {scale.mean:.6g}) / {scale.deviation:.6g}"
        f" ({args.to}, measured on {scale.answers:,} answers)"
    )
