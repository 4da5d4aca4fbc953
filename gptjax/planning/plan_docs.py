"""docs/plans.md, made by `python -m gptjax.planning.plan_docs docs/plans.md`: shipped sizes on machines that suit them.

Each row is a `gptjax plan` in a process of its own, so that its memory is its own; with `--only=NAME` the other rows
stay as they are, which the same compiler has to have made. GPUs need the extra `gpu-plan`.
"""

import dataclasses
import importlib.metadata
import pathlib
import subprocess
import sys

from gptjax import hardware
from gptjax.errors import UserError
from gptjax.parallel import tpu
from gptjax.planning import plan_table
from gptjax.storage import outputs


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Plans that one compiler makes. Meshes, microbatches and remat are the configs' own where no flag changes them."""

    title: str
    packages: tuple[str, ...]  # whose versions decide the rows
    plans: dict[str, str]  # config: what follows it on the command line


TABLES = (
    Table(
        "TPUs",
        ("jax", "libtpu"),
        {
            "gpt3_125m": "--topology=v5e:2x4 --remat=mlp",
            "gpt3_350m": "--topology=v5e:4x4",
            "gpt3_760m": "--topology=v5e:4x4",
            "gpt3_1_3b": "--topology=v5e:8x8 --remat=mlp",
            "gpt3_2_7b": "--topology=v5e:8x8",
            "gpt3_6_7b": "--topology=v5p:4x4x4",
            "gpt3_13b": "--topology=v5p:4x4x4",
            "gpt3_175b": "--topology=v5p:8x8x8",
            "gpt2_xl": "--topology=v5e:8x8 --microbatches=1 --remat=mlp",
        },
    ),
    Table(
        "GPUs",
        ("jax", "jax-cuda13-pjrt", "nvidia-cuda-nvcc"),
        {
            "gpt3_125m": "--topology=h100:8",
            "gpt3_350m": "--topology=h100:8",
            "gpt3_760m": "--topology=h100:8",
            "gpt3_1_3b": "--topology=h100:8",
            "gpt3_2_7b": "--topology=h100:8x2",
            "gpt3_6_7b": "--topology=h100:8x8",
            "gpt3_13b": "--topology=h100:8x16",
            "gpt3_175b": "--topology=h100:8x64 --mesh=fsdp=64,tensor=8",
            "gpt2_small": "--topology=a100-40:8",
            "gpt2_medium": "--topology=a100-40:8",
            "gpt2_large": "--topology=a100-40:8",
            "gpt2_xl": "--topology=a100-40:8",
        },
    ),
)
INTRODUCTION = """# Plans

Made by `python -m gptjax.planning.plan_docs docs/plans.md`, one `gptjax plan --config=configs/NAME.py TOPOLOGY --row` a row.

A plan compiles the real train step ahead of time, and reads the compiled program. Nothing here was run on a chip.

- A TPU slice is described with the wrap-around links that it has. The step is compiled with the options that training
  gives its kind of chip (the last table, from `gptjax/parallel/tpu.py`).
- A GPU is described to XLA:GPU by its published properties. The tiles of its matrix products can be tuned on the device
  only, so this program is read and never run.
- Memory is the peak on a device, with the program itself. On GPUs the workspace of cuDNN is an estimate; the context of
  CUDA and the buffers of NCCL are left out.
- Seconds are a roofline of the compiled schedule: matmuls, HBM and links at the rates below. The step waits for every
  collective that the schedule does not overlap.
- MFU counts FLOPs as the PaLM paper does (`6n_attn_full`).
- Compile seconds (wall time) and GiB are those of the compiler on the machine that made this page.
"""


def document(rows: dict[str, list[str]], compiled_by: dict[str, str]) -> str:
    """rows, and the lines that say what compiled them: by the titles of TABLES."""
    parts = [INTRODUCTION]
    for table in TABLES:
        parts += [f"## {table.title}", "", compiled_by[table.title], "", plan_table.heading(), *rows[table.title], ""]
    parts += ["## Published rates", "", plan_table.rates(), "", "## Kinds of TPU", "", *_kinds(), ""]
    return "\n".join(parts)


def _kinds() -> list[str]:
    """What gptjax/parallel/tpu.py says of each chip, a row each."""
    lines = ["| chip | gathers fused with matmuls | by SparseCores | rings | source |", "|---|---|---|---|---|"]
    for name, chip in hardware.CHIPS.items():
        if kind := tpu.KINDS.get(chip.device_kind):
            options = (tpu.FUSED_GATHERS, f"{tpu.OFFLOAD}_all_gather")
            fused, offloaded = ("yes" if kind.compiler_options.get(option) else "no" for option in options)
            lines.append(f"| {name} | {fused} | {offloaded} | {kind.rings.__doc__.rstrip('.')} | {kind.source} |")
    return lines


def compilers(table: Table) -> str:
    """The line that says what the rows of a table were compiled by: another version's differ."""
    installed = {name: list(importlib.metadata.distributions(name=name)) for name in table.packages}
    versions = [f"{name} {found[0].version}" if found else f"no {name}" for name, found in installed.items()]
    return f"Compiled by {', '.join(versions[:-1])} and {versions[-1]}."


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
    names = [table.title for table in TABLES] + list(dict.fromkeys(name for table in TABLES for name in table.plans))
    if len(files) != 1 or any(name not in names for name in only):
        print(
            f"usage: python -m gptjax.planning.plan_docs FILE [--only=NAME]; names: {', '.join(names)}", file=sys.stderr
        )
        return 2
    try:
        outputs.check_file("FILE", files[0])
        return _make(pathlib.Path(files[0]), only or names)
    except UserError as error:
        print(f"gptjax: {error}", file=sys.stderr)
        return 2


def _make(target: pathlib.Path, names: list[str]) -> int:
    """Makes the rows of these configs and tables, one after the other; the others stay. Returns the exit code."""
    before = _sections(target.read_text()) if target.exists() else {}
    wanted = {table: [name for name in table.plans if {name, table.title} & {*names}] for table in TABLES}
    rows, lines, failed = {}, {}, 0
    for table in TABLES:
        lines_before = before.get(table.title, [])
        rows[table.title] = {row.split(" | ")[0].strip("| "): row for row in lines_before if row.startswith("| gpt")}
        lines[table.title] = compilers(table)
        kept = rows[table.title].keys() - wanted[table]
        if kept and lines[table.title] not in lines_before:
            if wanted[table]:
                raise UserError(
                    f"{target} does not say {lines[table.title]!r}: use --only={table.title}, all its rows."
                )
            lines[table.title] = next(line for line in lines_before if line.startswith("Compiled by"))
    for table, name in ((table, name) for table, chosen in wanted.items() for name in chosen):
        print(f"{table.title}: {name} ...", file=sys.stderr)
        try:
            rows[table.title][name] = planned(name, table.plans[name])
        except UserError as error:
            failed = 1
            print(f"  {error}", file=sys.stderr)
        target.write_text(document({title: _in_order(title, made) for title, made in rows.items()}, lines))
    return failed


def _in_order(title: str, rows: dict[str, str]) -> list[str]:
    [plans] = [table.plans for table in TABLES if table.title == title]
    return [rows[name] for name in plans if name in rows]


def _sections(text: str) -> dict[str, list[str]]:
    """The lines under each heading."""
    parts = ("\n" + text).split("\n## ")[1:]
    return {part.partition("\n")[0]: part.splitlines()[1:] for part in parts}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
