"""`gptjax parity`: a config in miniature, trained on every mesh of eight CPU devices. What is compared: diagnostics."""

import json
import os
import sys

from gptjax import start
from gptjax.commands import flags
from gptjax.errors import UserError


def add_flags(parser) -> None:
    flags.add_config_flag(parser)
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps after which parameters are compared")
    flags.add_json_flag(parser)


def run(args) -> int:
    """Live: a row of the table as each run ends, and how far it is on the terminal's last line."""
    config = flags.load_config(args)
    if args.steps < 1:
        raise UserError(f"--steps={args.steps} is too small; use at least 1.")
    _start_eight_cpu_devices()
    from gptjax import terminal
    from gptjax.diagnostics import miniature, parity

    progress = terminal.Progress(sys.stderr if args.json else sys.stdout)

    def report(outcome, done: int, total: int) -> None:
        if outcome is not None and not args.json:
            progress.message(parity.line(outcome))
        if args.json or sys.stdout.isatty():  # elsewhere the rows themselves say how far it is
            progress.update(f"{done} of {total} runs")

    if not args.json:
        for line in (*miniature.differences(config), parity.HEADER):
            progress.message(line)
    outcomes = parity.certify(config, args.steps, report=report)
    progress.close()
    facts = parity.summary(config, args.steps, outcomes)
    print(json.dumps(facts, indent=2) if args.json else parity.verdict(outcomes))
    return 0 if facts["passed"] else 1


def _start_eight_cpu_devices() -> None:
    """Before JAX starts: eight of them on this machine's CPU, whatever accelerator it has."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's warnings of slow layouts: here only numbers count
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
    start.start_jax()
