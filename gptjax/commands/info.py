"""`gptjax info`: parameters, FLOPs and memory of a config. Nothing is run, and no device is used."""

import json

from gptjax.commands import flags
from gptjax.errors import UserError


def add_flags(parser) -> None:
    flags.add_config_flag(parser)
    parser.add_argument(
        "--devices", type=int, metavar="N", help="devices to lay the mesh over (default: the fewest it fits)"
    )
    flags.add_json_flag(parser)


def run(args) -> None:
    config = flags.load_config(args)
    if args.devices is not None and args.devices < 1:
        raise UserError(f"--devices={args.devices} is too small; use at least 1.")
    from gptjax.planning import info

    facts = info.info(config, args.devices)
    print(json.dumps(facts, indent=2) if args.json else info.table(facts))
