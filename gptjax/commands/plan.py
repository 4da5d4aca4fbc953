"""`gptjax plan`: a plan of training or of making text, or a search, printed as a table, a row or JSON.

Exit code 1 where the config does not fit.
"""

import math
import sys

from gptjax import start
from gptjax.commands import flags
from gptjax.errors import UserError
from gptjax.terminal import Progress


def add_flags(parser) -> None:
    flags.add_config_flag(parser)
    parser.add_argument(
        "--topology", required=True, metavar="NAME", help="v5p:8x8x8, v5e:8x8, h100:8x16 (GPUs a host x hosts), cpu:8"
    )
    parser.add_argument(
        "--num_slices",
        type=int,
        default=1,
        metavar="N",
        help="number of TPU slices, joined by the data center network (default: 1)",
    )
    parser.add_argument(
        "--mesh", metavar="AXES", help="sizes of the mesh axes, such as fsdp=64,tensor=8; those left out are 1"
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help="train.batch_size, in sequences; with --decode: rows of text"
    )
    parser.add_argument("--microbatches", type=int, metavar="N", help="train.microbatches")
    parser.add_argument("--remat", metavar="NAME", help="model.remat")
    parser.add_argument("--search", action="store_true", help="try meshes, microbatches and remat; list the best")
    parser.add_argument(
        "--search_compiles",
        type=int,
        default=3,
        metavar="N",
        help="with --search: how many of the best are compiled (default: %(default)s)",
    )
    parser.add_argument(
        "--decode", action="store_true", help="plan making text (prefill and decode) instead of training"
    )
    parser.add_argument(
        "--length",
        type=int,
        metavar="N",
        help="with --decode: tokens of a row, half of them prompt (default: the context)",
    )
    parser.add_argument(
        "--dtype",
        metavar="NAME",
        help="with --decode: of the weights, bfloat16, float32 or int8 (default: bfloat16)",
    )
    flags.add_cost_flags(parser)
    parser.add_argument(
        "--save_executable", metavar="FILE", help="save the compiled step here, for gptjax train --executable=FILE"
    )
    parser.add_argument("--row", action="store_true", help="print a row of docs/plans.md only")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> int:
    """0; 1 where the config does not fit."""
    from gptjax.config import config_file
    from gptjax.planning import topology

    _check_flags(args)
    topology.set_environment(args.topology, args.num_slices)  # before JAX is imported
    chosen = config_file.load_config(args.config, args.overrides + config_file.plan_overrides(args))
    start.start_jax(chosen, keep_programs=args.topology.startswith("cpu"))  # a TPU's could not be read back without one
    return print_plan(chosen, args)


def _check_flags(args) -> None:
    if args.num_slices < 1 or not 0 < args.matmul_fraction <= 1:
        raise UserError("--num_slices must be at least 1, and --matmul_fraction a share of the peak such as 0.7.")
    if args.price is not None and not 0 <= args.price < math.inf:
        raise UserError(f"--price={args.price:g} is not a price; give US dollars for a chip and hour, such as 4.2.")
    if args.search_compiles < 1:
        raise UserError(f"--search_compiles={args.search_compiles} is too small; use at least 1.")
    _check_text_flags(args)
    if args.row and (args.json or args.search):
        raise UserError(
            f"--row prints one line, --{'json' if args.json else 'search'} prints more; give one of the two."
        )


def _check_text_flags(args) -> None:
    """Raises UserError: a flag of training with --decode, or one of text without."""
    training = ("microbatches", "remat", "search", "save_executable")
    if args.decode and (wrong := [name for name in training if getattr(args, name)]):
        raise UserError(f"--{wrong[0]} is of training, and --decode plans making text; leave one of the two out.")
    if not args.decode and (wrong := [name for name in ("length", "dtype") if getattr(args, name) is not None]):
        instead = {"length": "--config.model.context_length", "dtype": "--config.model.dtype"}[wrong[0]]
        raise UserError(f"--{wrong[0]} is of text; give --decode too, or for training {instead}=VALUE.")


def print_text_plan(config, args) -> int:
    """Plans making text as the command line asks for it. Returns the exit code."""
    from gptjax.planning import decode, decode_table, plan, topology

    options = plan.Options(args.price, args.matmul_fraction, None, Progress().message)
    machine = topology.describe(args.topology, args.num_slices)
    context = 1 << (config.model.context_length.bit_length() - 1)
    text = decode.Text(
        1 if args.batch is None else args.batch,
        context if args.length is None else args.length,
        args.dtype or "bfloat16",
    )
    given = args.mesh is not None or any(change.startswith("mesh.") for change in args.overrides)
    facts = decode.plan_text(config, machine, options, text, config.mesh if given else None)
    return _print_facts(args, facts, decode_table, "fewer rows, a shorter --length, --dtype=int8 or more devices")


def print_plan(config, args) -> int:
    """Plans what the command line asks for. Returns the exit code."""
    if args.decode:
        return print_text_plan(config, args)
    from gptjax.planning import plan, plan_table, topology

    progress = Progress()
    options = plan.Options(args.price, args.matmul_fraction, args.save_executable, progress.message)
    machine = topology.describe(args.topology, args.num_slices)
    if args.save_executable is not None:
        _check_saving(args, machine)
    if args.search:
        from gptjax.planning import search

        results = search.search(config, machine, options, args.search_compiles, progress)
        print(plan.to_json(results) if args.json else search.table(results))
        return 0 if any(found["fits"] for found in results["compiled"]) else 1
    facts = plan.plan(config, machine, options)
    return _print_facts(args, facts, plan_table, "--search, more microbatches, --remat=full or more devices")


def _print_facts(args, facts: dict, tables, cures: str) -> int:
    """Prints a plan as it was asked for, with the row and table of a module of tables. Returns the exit code."""
    from gptjax.planning import plan

    if args.json:
        print(plan.to_json(facts))
    elif args.row:
        print(tables.row(args.config.rsplit("/", 1)[-1].removesuffix(".py"), facts))
    else:
        print(tables.table(facts))
    if facts["fits"] is False:
        print(f"gptjax: {_excess(facts, cures)}", file=sys.stderr)
        return 1
    return 0


def _check_saving(args, machine) -> None:
    """Raises UserError, before anything is compiled, where no executable would be written."""
    if machine.platform == "gpu":
        raise UserError(
            f"--save_executable={args.save_executable} is for TPUs: a step that is compiled for --topology={args.topology} without"
            " the device has untuned tiles, and would run slowly; leave it out."
        )
    if args.search:
        raise UserError("--save_executable is of one plan, not of --search; give it with the mesh that was found.")
    from gptjax.training import executable

    executable.check_target(args.save_executable)


def _excess(facts: dict, cures: str) -> str:
    from gptjax.planning import plan_table

    peak, limit = facts["peak_bytes"], facts["usable_bytes"]
    return (
        f"does not fit: {plan_table.gib(peak)} a device, {plan_table.gib(peak - limit)} more than the"
        f" {plan_table.gib(limit)} it may fill; try {cures}."
    )
