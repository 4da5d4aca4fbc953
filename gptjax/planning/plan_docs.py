"""docs/plans.md, made by `python -m gptjax.planning.plan_docs docs/plans.md`: every shipped size on a machine that suits it.

Each row is a `gptjax plan` in a process of its own, so that its memory is its own; with `--only=NAME` the other rows
stay as they are, which the same compiler has to have made.
"""

import importlib.metadata
import pathlib
import subprocess
import sys

from gptjax import hardware
from gptjax.errors import UserError
from gptjax.parallel import tpu
from gptjax.planning import plan_table
from gptjax.storage import outputs

PLANS = {  # config: what follows it on the command line; meshes, microbatches and remat are the configs' own
    "gpt3_125m": "--topology=v5e:2x4",
    "gpt3_350m": "--topology=v5e:4x4",
    "gpt3_760m": "--topology=v5e:4x4",
    "gpt3_1_3b": "--topology=v5e:8x8",
    "gpt3_2_7b": "--topology=v5e:8x8",
    "gpt3_6_7b": "--topology=v5p:4x4x4",
    "gpt3_13b": "--topology=v5p:4x4x4",
    "gpt3_175b": "--topology=v5p:8x8x8",
    "gpt2_xl": "--topology=v5e:8x8 --microbatches=1 --remat=attention",
}
INTRODUCTION = """# Plans

Made by `python -m gptjax.planning.plan_docs docs/plans.md`, one `gptjax plan --config=configs/NAME.py TOPOLOGY --row` a row.
{compilers}

A plan compiles the real train step ahead of time, for a slice with the wrap-around links that it has, and with the
options that training gives its kind of chip (the last table, from `gptjax/parallel/tpu.py`).

- Memory is XLA's peak on a device, with the program itself.
- Seconds are a roofline of the compiled schedule: matmuls, HBM and links at the rates below. The step waits for every
  collective that the schedule does not overlap.
- MFU counts FLOPs as the PaLM paper does (`6n_attn_full`).
- Compile seconds (wall time) and GiB are those of the compiler on the machine that made this page.
"""


def document(rows: list[str]) -> str:
    parts = [INTRODUCTION.format(compilers=compilers()), plan_table.heading(), *rows, ""]
    parts += ["## Published rates", "", plan_table.rates(), "", "## Kinds of TPU", "", *_kinds(), ""]
    return "\n".join(parts)


def _kinds() -> list[str]:
    """What gptjax/parallel/tpu.py says of each chip, a row each."""
    lines = ["| chip | gathers fused with matmuls | rings | source |", "|---|---|---|---|"]
    for name, chip in hardware.CHIPS.items():
        if kind := tpu.KINDS.get(chip.device_kind):
            fused = "yes" if kind.compiler_options[tpu.FUSED_GATHERS] else "no"
            lines.append(f"| {name} | {fused} | {kind.rings.__doc__.rstrip('.')} | {kind.source} |")
    return lines


def compilers() -> str:
    """The line that says what the rows were compiled by: they are of one version each, and another's differ."""
    installed = {name: list(importlib.metadata.distributions(name=name)) for name in ("jax", "libtpu")}
    versions = (f"{name} {found[0].version}" if found else f"no {name}" for name, found in installed.items())
    return f"Compiled by {' and '.join(versions)}."


def planned(name: str, arguments: str) -> str:
    """The row of a config. Raises UserError with what gptjax plan said if it could not plan."""
    command = [sys.executable, "-m", "gptjax", "plan", f"--config=configs/{name}.py", *arguments.split(), "--row"]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    if not rows:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise UserError(f"{' '.join(command[1:])}: {last} (exit code {done.returncode})")
    return rows[0]


def main(arguments: list[str]) -> int:
    files = [argument for argument in arguments if not argument.startswith("--")]
    only = [argument.removeprefix("--only=") for argument in arguments if argument.startswith("--only=")]
    if len(files) != 1 or any(name not in PLANS for name in only):
        print(
            f"usage: python -m gptjax.planning.plan_docs FILE [--only=NAME]; names: {', '.join(PLANS)}", file=sys.stderr
        )
        return 2
    try:
        outputs.check_file("FILE", files[0])
    except UserError as error:
        print(f"gptjax: {error}", file=sys.stderr)
        return 2
    target = pathlib.Path(files[0])
    before = target.read_text().splitlines() if target.exists() else []
    if only and before and compilers() not in before:
        print(f"{target} does not say {compilers()!r} as here; remake all its rows, without --only.", file=sys.stderr)
        return 2
    rows, failed = {name: [line for line in before if line.startswith(f"| {name} |")] for name in PLANS}, 0
    for name in only or PLANS:
        print(f"{name} ...", file=sys.stderr)
        try:
            rows[name] = [planned(name, PLANS[name])]
        except UserError as error:
            failed = 1
            print(f"  {error}", file=sys.stderr)
        target.write_text(document([row for found in rows.values() for row in found]))
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
