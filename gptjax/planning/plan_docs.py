"""docs/plans.md, made by `python -m gptjax.planning.plan_docs docs/plans.md`: shipped sizes on machines that suit them.

Each row is a `gptjax plan` in a process of its own, so that its memory is its own; with `--only=NAME` the other rows
stay as they are, which the same compiler has to have made. GPUs need the extra `gpu-plan`.
"""

import dataclasses
import importlib.metadata
import pathlib
import subprocess
import sys
import typing

from gptjax import hardware
from gptjax.errors import UserError
from gptjax.parallel import tpu
from gptjax.planning import decode_table, plan_table
from gptjax.storage import outputs


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """Plans that one compiler makes. Meshes, microbatches and remat are the configs' own where no flag changes them."""

    title: str
    packages: tuple[str, ...]  # whose versions decide the rows
    plans: dict[str, str]  # config, or what else the row begins with: what follows it on the command line
    heading: typing.Callable = plan_table.heading
    about: str = ""  # what the rows say that others don't


TEXT = """One `gptjax plan --decode --config=configs/NAME.py TOPOLOGY --row` a row: the engine's own prefill and decode
(`gptjax/generation/decoding.py`), not another model of them. Rows have 2,048 tokens, half of them prompt. Weights stay where
they are: `tensor` over as many chips as the heads divide over, copies on the rest.

- Moved / needed: bytes of HBM that the compiled decode step reads and writes on a device for a token of each row, over those
  of its weights and its whole cache. What a call of 64 tokens does once is shared by them. Less than 1: some weights, such
  as the head, stay in the chip's own memory from one token to the next.
- The prefill's MFU counts every matrix for every token of the prompts, causal attention, and the head for the last token."""
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
    Table(
        "Text on TPUs",
        ("jax", "libtpu"),
        {
            "gpt3_1_3b bfloat16": "--decode --topology=v5e:2x2 --batch=8",
            "gpt3_1_3b int8": "--decode --topology=v5e:2x2 --batch=8 --dtype=int8",
            "gpt3_13b bfloat16": "--decode --topology=v5p:2x2x2 --batch=32",
            "gpt3_175b bfloat16": "--decode --topology=v5p:4x4x4 --batch=32",
            "gpt3_175b int8": "--decode --topology=v5p:4x4x4 --batch=32 --dtype=int8",
        },
        decode_table.heading,
        TEXT,
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


ESTIMATES = """## Estimates for GPUs

Without the extra `gpu-plan`, a plan for GPUs is an estimate (`gptjax/planning/estimate.py`). Its memory is within 15% of
every row for GPUs above; `tests/planning/estimate_test.py` holds it there. What it counts beside the state and what layers keep:

- cuDNN's attention has no name for its output, by which `remat="attention"` could keep it. So the forward kernel runs
  again in the backward pass, and the output takes no memory.
- The workspace of cuDNN's backward pass: the gradient of the queries in float32.
- A recomputed layer or a chunk of logits with its gradient, the larger of the two: they do not live at once.
- With several microbatches, the gradient of one in bfloat16, beside their sum in float32.
- XLA's own attention, which runs where dropout of attention weights or packed documents rule cuDNN out, takes 12 bytes for
  each pair of a query and a key of a layer. With `remat="none"` it also keeps the keys and values that each of up to 8
  blocks of queries sees: 4.5 times as much as the keys and values themselves.
- A stage of a pipeline keeps activations also of those iterations in which it waits.

Its time counts matmuls, and what else goes through HBM, one after the other: 8 times what layers keep, 7 passes over the
logits, and for XLA's attention 90 bytes for a pair of a query and a key.

The time is below the roofline of the compiled program by more than 15% where many GPUs share the network (GPT-3 6.7B to
175B): XLA overlaps nearly none of the reduce-scatters of gradients with matmuls, which the estimate assumes. Of the
13B's 2.3 s, 0.64 s are spent waiting for links.
"""


def document(rows: dict[str, list[str]], compiled_by: dict[str, str]) -> str:
    """rows, and the lines that say what compiled them: by the titles of TABLES."""
    parts = [INTRODUCTION]
    for table in TABLES:
        about = [table.about, ""] if table.about else []
        parts += [f"## {table.title}", "", *about, compiled_by[table.title], ""]
        parts += [table.heading(), *rows[table.title], ""]
    parts += [ESTIMATES, "## Published rates", "", plan_table.rates(), "", "## Kinds of TPU", "", *_kinds(), ""]
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
    config = name.split()[0]
    command = [sys.executable, "-m", "gptjax", "plan", f"--config=configs/{config}.py", *arguments.split(), "--row"]
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
