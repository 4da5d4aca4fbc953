"""`gptjax study plan STUDY`: reads the file, opens its text for the vocabulary, and prints the table or JSON."""

import json
import math

from gptjax.commands import flags
from gptjax.errors import UserError
from gptjax.study.declare import declaration, plan


def add_flags(parser) -> None:
    parser.add_argument("study", metavar="STUDY", help="a study file, such as those in configs/studies/")
    parser.add_argument(
        "--topology", metavar="NAME", help="the machine for which to count chip-hours: v5p:2x2x1, h100:8x1 ..."
    )
    flags.add_cost_flags(parser)
    parser.add_argument(
        "--flops_per_second",
        type=float,
        metavar="R",
        help="instead of --topology: FLOPs per second that a machine was seen to do",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_limits(parser)


def add_limits(parser) -> None:
    """What a study may be at most."""
    parser.add_argument("--max_flops", type=float, metavar="C", help="refuse a study that needs more FLOPs")
    parser.add_argument("--max_cost", type=float, metavar="USD", help="refuse a study that costs more")


def run(args) -> int:
    _check_flags(args)
    if args.topology is not None:
        from gptjax.planning import topology

        topology.set_environment(args.topology, 1)  # before JAX is imported
    from gptjax.study.running import identity

    study = declaration.load(args.study)
    runs = declaration.runs(study, identity.vocab_size(study.base))
    planned = plan.plan(runs, _clock(args), args.price)
    print(json.dumps(planned, indent=2) if args.json else plan.table(planned))
    plan.Limits(args.max_flops, args.max_cost).check(planned["totals"])
    return 0


def _check_flags(args) -> None:
    for name in ("price", "max_flops", "max_cost", "flops_per_second"):
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"--{name}={value:g} must be positive.")
    if args.topology is not None and args.flops_per_second is not None:
        raise UserError("--topology and --flops_per_second both give the speed of a run; give one of them.")
    if not 0 < args.matmul_fraction <= 1:
        raise UserError(f"--matmul_fraction={args.matmul_fraction:g} is not a share of a peak; use for example 0.7.")
    if args.price is not None and args.topology is None and args.flops_per_second is None:
        raise UserError(
            "--price is for chip-hours, and counting those needs --topology or --flops_per_second; give one."
        )


def _clock(args):
    """hours_of(config), see plan.plan; None where no machine was named."""
    if args.flops_per_second is not None:
        from gptjax import flops

        return lambda config: (flops.train_flops(config) / args.flops_per_second / 3600,) * 2
    return None if args.topology is None else _Compiled(args)


class _Compiled:
    """Times by `gptjax plan`, one compilation for all configs of a program."""

    def __init__(self, args):
        from gptjax import terminal
        from gptjax.planning import topology

        self.machine = topology.describe(args.topology)
        self.progress, self.known = terminal.Progress(), {}
        self.matmul_fraction = args.matmul_fraction

    def __call__(self, config) -> tuple[float, float]:
        """(hours, chip-hours) of a run. Raises UserError: the machine has no published rates, or is too small."""
        from gptjax import schedule
        from gptjax.training import executable

        program = executable.config_hash(config.replace(train={"seed": 0}))
        if program not in self.known:
            self.known[program] = self._step_seconds(config)
        hours = schedule.total_steps(config) * self.known[program] / 3600
        return hours, hours * self.machine.num_chips

    def _step_seconds(self, config) -> float:
        from gptjax.planning import plan as plans

        self.progress.update(f"compiling program {len(self.known) + 1} for {self.machine.name}")
        options = plans.Options(matmul_fraction=self.matmul_fraction, say=self.progress.message)
        found = plans.plan(config, self.machine, options)
        if found["fits"] is False:
            raise UserError(
                f"a model of {config.model.n_layers} layers, width {config.model.d_model} does not fit"
                f" --topology={self.machine.name}; name a larger one."
            )
        if found["step_seconds"] is None:
            raise UserError(
                f"--topology={self.machine.name} has no published rates; give --flops_per_second, measured by a run there."
            )
        return found["step_seconds"]
