"""`gptjax plan`: one plan or a search, printed as a table, a row or JSON. Exit code 1 where the config does not fit."""

import sys

from gptjax.errors import UserError
from gptjax.planning import plan, plan_table, topology
from gptjax.terminal import Progress
from gptjax.training import executable


def run(config, args) -> int:
    """Plans what the command line asks for. Returns the exit code."""
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
    if args.json:
        print(plan.to_json(facts))
    elif args.row:
        name = args.config.rsplit("/", 1)[-1].removesuffix(".py")
        print(plan_table.row(name, facts))
    else:
        print(plan_table.table(facts))
    if facts["fits"] is False:
        print(f"gptjax: {_excess(facts)}", file=sys.stderr)
        return 1
    return 0


def _check_saving(args, machine: topology.Topology) -> None:
    """Raises UserError, before anything is compiled, where no executable would be written."""
    if machine.devices is None:
        raise UserError(
            f"--save_executable={args.save_executable} needs a compiled step, and for GPUs as --topology={args.topology}"
            " nothing is compiled without one; leave it out, or plan for a TPU."
        )
    if args.search:
        raise UserError("--save_executable is of one plan, not of --search; give it with the mesh that was found.")
    executable.check_target(args.save_executable)


def _excess(facts: dict) -> str:
    peak, limit = facts["peak_bytes"], facts["usable_bytes"]
    return (
        f"does not fit: {plan_table.gib(peak)} a device, {plan_table.gib(peak - limit)} more than the"
        f" {plan_table.gib(limit)} it may fill; try --search, more microbatches, --remat=full or more devices."
    )
