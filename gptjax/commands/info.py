"""`gptjax info`: parameters, FLOPs and memory of a config. Nothing is run, and no device is used."""

import json

from gptjax.commands import flags
from gptjax.errors import UserError


def add_flags(parser) -> None:
    flags.add_config_flag(parser)
    parser.add_argument(
        "--devices", type=int, metavar="N", help="number of devices for the mesh (default: the fewest that it fits)"
    )
    parser.add_argument(
        "--topology",
        metavar="NAME",
        help="a machine, instead of --devices, as in gptjax plan: v5p:8x8x8, h100:8x16, cpu:8",
    )
    parser.add_argument("--num_slices", type=int, metavar="N", help="number of such TPU slices (default: 1)")
    parser.add_argument(
        "--finetuning",
        action="store_true",
        help="compare: bytes per device of full training, LoRA, LoRA on an int8 and an nf4 base",
    )
    parser.add_argument(
        "--rl",
        action="store_true",
        help="bytes per device of what reinforcement learning holds: policy, critic, reference, reward model",
    )
    flags.add_json_flag(parser)


def run(args) -> None:
    config = flags.load_config(args)
    if args.devices is not None and args.devices < 1:
        raise UserError(f"--devices={args.devices} is too small; use at least 1.")
    if args.devices is not None and args.topology is not None:
        raise UserError("--devices and --topology both say how many devices there are; give one of the two.")
    if args.num_slices is not None and (args.topology is None or args.num_slices < 1):
        raise UserError(f"--num_slices={args.num_slices} needs --topology=NAME, and is at least 1.")
    if args.finetuning and args.rl:
        raise UserError("--finetuning and --rl are two tables; give one of the two.")
    if args.rl:
        from gptjax.planning import rl

        rows = rl.models(config, args.devices, args.topology, args.num_slices or 1)
        print(json.dumps(rows, indent=2) if args.json else rl.table(rows, args.topology, args.num_slices or 1))
        return
    from gptjax.planning import info

    if args.finetuning:
        rows = info.finetuning(config, args.devices, args.topology, args.num_slices or 1)
        print(json.dumps(rows, indent=2) if args.json else info.finetuning_table(rows))
        return
    facts = info.info(config, args.devices, args.topology, args.num_slices or 1)
    print(json.dumps(facts, indent=2) if args.json else info.table(facts))
