"""A plan of making text for people: the table that `gptjax plan --decode` prints, and a row of docs/plans.md."""

from gptjax import hardware
from gptjax.planning import plan_table
from gptjax.terminal import columns, si

GIB = hardware.GIB
COLUMNS = (
    "config, weights | topology | chips | mesh | rows x length | peak GiB | free | weights + cache GiB | moved / needed"
    " | ms a token | tokens/s a chip | prefill s | prefill MFU | compile s"
)


def table(facts: dict) -> str:
    """The whole plan."""
    rows = [
        ("machine", plan_table.machine(facts)),
        ("mesh", f"{plan_table.mesh(facts)}, weights in {facts['dtype']}"),
        ("text", _text(facts)),
        *plan_table.memory_rows(facts),
    ]
    if facts["token_seconds"] is None:
        return "\n".join(columns([*rows, ("token", "not known")]))
    return "\n".join(columns([*rows, *_token_rows(facts), *_prefill_rows(facts), *_compile_rows(facts)]))


def _text(facts: dict) -> str:
    prompt, length = facts["prompt_tokens"], facts["length"]
    return f"{facts['batch_size']} rows at a time, {prompt:,} tokens of prompt and {length - prompt:,} new ones"


def _token_rows(facts: dict) -> list[tuple[str, str]]:
    """Of a token of each row."""
    moved, needed = facts["hbm_bytes_per_token"], facts["needed_bytes_per_token"]
    parts = f"matmul {_ms(facts['matmul_seconds'])}, HBM {_ms(facts['memory_seconds'])}"
    parts += f", waiting for links {_ms(facts['exposed_seconds'])}, for copies {_ms(facts['copy_seconds'])}"
    rate = f"{facts['tokens_per_second']:,.0f}, {facts['tokens_per_second_per_chip']:,.1f} a chip"
    price = facts["usd_per_million_tokens"]
    if price is not None:
        rate += f", ${price:,.2f} a million tokens"
    rows = [
        ("bytes a token", f"{si(moved)}B a device, {moved / needed:.3f} of weights + cache ({si(needed)}B)"),
        ("  once a call", f"{si(facts['hbm_bytes_per_call'])}B, shared by the tokens of a call"),
        ("a token of each row", f"{_ms(facts['token_seconds'])} ({parts})"),
        ("  with cuts", f"{_ms(facts['cut_seconds'])} more with top_k, top_p or min_p, which sort the logits"),
        ("  assumed", facts["assumption"]),
        ("tokens/s", rate),
    ]
    return rows + plan_table.collective_rows(facts["collectives"], "collectives", "a token and device")


def _prefill_rows(facts: dict) -> list[tuple[str, str]]:
    flops = f"{si(facts['prefill_flops'])}FLOPs on all devices"
    rows = [("prefill", f"{facts['prefill_seconds']:.4g} s, MFU {facts['prefill_mfu']:.1%} of {flops}")]
    return rows + plan_table.collective_rows(facts["prefill_collectives"], "  collectives", "a prefill and device")


def _compile_rows(facts: dict) -> list[tuple[str, str]]:
    cpu, memory = f"{facts['compile_cpu_seconds']:.1f} s of CPU", plan_table.gib(facts["compile_rss_bytes"])
    return [("compiled in", f"{facts['compile_seconds']:.1f} s, {cpu}, {memory} max RSS")]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def heading() -> str:
    return plan_table.heading(COLUMNS)


def row(name: str, facts: dict) -> str:
    """A row of docs/plans.md."""
    known = facts["token_seconds"] is not None
    cells = [
        f"{name} {facts['dtype']}",
        facts["topology"],
        str(facts["num_chips"]),
        plan_table.mesh(facts),
        f"{facts['batch_size']} x {facts['length']}",
        f"{facts['peak_bytes'] / GIB:.1f}",
        f"{1 - facts['peak_bytes'] / facts['usable_bytes']:.0%}",
    ]
    cells += (
        [
            f"{facts['needed_bytes_per_token'] / GIB:.2f}",
            f"{facts['bytes_ratio']:.3f}",
            f"{1000 * facts['token_seconds']:.3g}",
            f"{facts['tokens_per_second_per_chip']:,.0f}",
            f"{facts['prefill_seconds']:.3g}",
            f"{facts['prefill_mfu']:.1%}",
            f"{facts['compile_seconds']:.0f}",
        ]
        if known
        else ["-"] * 7
    )
    return f"| {' | '.join(cells)} |"
