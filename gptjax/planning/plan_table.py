"""A plan for people: the table that `gptjax plan` prints, and a row of docs/plans.md."""

from gptjax import hardware
from gptjax.terminal import columns, si

GIB = hardware.GIB
COLUMNS = (
    "config | topology | chips | mesh | remat | microbatches | peak GiB | free | step s | tokens/s | MFU"
    " | compile s | compile GiB"
)


def table(facts: dict) -> str:
    """The whole plan."""
    rows = [
        ("machine", machine(facts)),
        ("mesh", f"{mesh(facts)}, remat {facts['remat']}, {facts['microbatches']} microbatches"),
        *_pipeline_rows(facts),
        *memory_rows(facts),
        *_flops_rows(facts),
        *_check_rows(facts),
        *collective_rows(facts["collectives"], "collectives", "a step and device"),
        *_time_rows(facts),
    ]
    return "\n".join(columns(rows))


def mesh(facts: dict) -> str:
    sizes = {axis: size for axis, size in facts["mesh"].items() if size > 1}
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items()) or "one device"


def _pipeline_rows(facts: dict) -> list[tuple[str, str]]:
    """What a pipeline's stages do while they wait: the one program of all devices computes there too, on nothing."""
    if not facts.get("pipeline_bubble"):
        return []
    times = f"{1 + facts['pipeline_bubble']:.2f} times the FLOPs and activations of the layers, because stages that wait compute too"
    return [("  pipeline", f"{times}; a larger mesh.pipeline_microbatches makes it less")]


def machine(facts: dict) -> str:
    slices = "" if facts["num_slices"] == 1 else f" x {facts['num_slices']} slices"
    return f"{facts['topology']}{slices}: {facts['num_chips']} chips, {facts['num_devices']} x {facts['device_kind']}"


def gib(count: float) -> str:
    return f"{count / GIB:,.2f} GiB"


def memory_rows(facts: dict) -> list[tuple[str, str]]:
    peak, parts = facts["peak_bytes"], {name: gib(size) for name, size in facts["bytes"].items()}
    allocated = facts.get("all_temporaries_bytes")
    if allocated is not None and allocated > facts["bytes"]["temporaries"]:
        parts["temporaries"] += f" at the peak, {gib(allocated)} allocated to all"
    rows = [("bytes a device", f"{gib(peak)} peak ({facts['source']}){_verdict(facts)}")]
    rows += [(f"  {name.replace('_', ' ')}", shown) for name, shown in parts.items()]
    if facts.get("estimated_peak_bytes"):
        estimated = facts["estimated_peak_bytes"]
        rows.append(("  estimate", f"{gib(estimated)}, {estimated / peak:.2f} of compiled"))
    return rows


def _verdict(facts: dict) -> str:
    limit, peak = facts["usable_bytes"], facts["peak_bytes"]
    if facts["fits"] is None:
        return ""
    if not facts["fits"]:
        return f" of {gib(limit)}: DOES NOT FIT, {gib(peak - limit)} too much"
    return f" of {gib(limit)}: fits, {1 - peak / limit:.1%} free"


def _flops_rows(facts: dict) -> list[tuple[str, str]]:
    exact, again = facts["flops_per_step"], facts["recomputed_flops_per_step"]
    rows = [("FLOPs a step", f"{exact:.4g} exact + {again:.4g} recomputed, all devices")]
    compiled = facts.get("compiled_flops_per_step")
    if compiled:
        rows.append(("  compiled", f"{compiled:.4g} in matmuls and kernels, {compiled / (exact + again):.3f} of those"))
    return rows


def _check_rows(facts: dict) -> list[tuple[str, str]]:
    found = facts.get("checks")
    warning = [("  warning", facts["kernel_advice"])] if facts.get("kernel_advice") else []
    if found is None:
        return [("attention", f"{facts['kernel']} kernel"), *warning]
    scores = f"T x T TENSOR {found['scores']}" if found["scores"] else "no T x T tensor"
    kernel = f"{facts['kernel']} kernel, {found['kernels']} calls of it in the program"
    kernel = kernel if found["kernels"] else f"{facts['kernel']} ({facts['kernel_reason']}), no kernel in the program"
    loss = f"largest logits {found['logits']}" if found["logits"] else "no float32 logits in memory"
    if found["whole_logits"]:
        loss = f"WHOLE LOGITS {found['whole_logits']}"
    return [("attention", f"{kernel}, {scores}"), *warning, ("loss", loss)]


def collective_rows(entries: list[dict], name: str, unit: str) -> list[tuple[str, str]]:
    rows = [(name, f"{unit}: count, bytes, link, seconds on it, of those nothing else running")]
    for entry in entries:
        times = ""
        if entry.get("seconds") is not None:
            times = f"  {entry['link']}  {_short(entry['seconds'])}"
            if "exposed_seconds" in entry:
                times += f"  {_short(entry['exposed_seconds'])}"
            times += "  overlapped" if entry["overlapped"] else ""
        largest = f"  {entry['largest']}" if entry.get("largest") else ""
        rows.append(
            (f"  {entry['kind']} {entry['axis']}", f"{entry['count']:,.0f} x  {si(entry['bytes'])}B{times}{largest}")
        )
    return rows if entries else []


def _short(seconds: float) -> str:
    return f"{seconds:.4f} s" if seconds >= 0.01 or seconds == 0 else f"{1e6 * seconds:.0f} us"


def _time_rows(facts: dict) -> list[tuple[str, str]]:
    rows = []
    if facts["step_seconds"] is None:
        rows.append(("step", "no roofline: no published rates" if facts["hbm_bytes"] is None else "not known"))
    else:
        parts = f"matmul {facts['matmul_seconds']:.3f}, HBM {facts['memory_seconds']:.3f}"
        rows += [
            ("step", f"{facts['step_seconds']:.4g} s ({parts}, waiting for links {facts['exposed_seconds']:.3f})"),
            ("  assumed", facts["assumption"]),
            ("tokens/s", f"{facts['tokens_per_second']:,.0f}"),
            ("MFU", _mfu(facts)),
            ("run", f"{facts['run_hours']:,.1f} hours, {facts['chip_hours']:,.0f} chip-hours{_cost(facts)}"),
        ]
    if facts["compile_seconds"] is not None:
        cpu = f"{facts['compile_cpu_seconds']:.1f} s of CPU"
        rows.append(
            ("compiled in", f"{facts['compile_seconds']:.1f} s, {cpu}, {gib(facts['compile_rss_bytes'])} max RSS")
        )
    if facts.get("executable_bytes"):
        rows.append(("executable", f"{si(facts['executable_bytes'])}B written"))
    return rows


def _mfu(facts: dict) -> str:
    """PaLM's, and by exact FLOPs too where these are fewer by a tenth: then attention is much of the work."""
    mfu, exact = facts["mfu"], facts["mfu_exact"]
    shown = f"{mfu:.1%}, FLOPs: 6N + attention, as in the PaLM paper"
    if mfu > 1.1 * exact:
        skipped = ", which the kernel skips" if facts["kernel"] != "xla" else ""
        shown += f", masked attention too{skipped}; {exact:.1%} by exact FLOPs"
    return shown


def _cost(facts: dict) -> str:
    return "" if facts["cost_usd"] is None else f", ${facts['cost_usd']:,.0f}"


def rates() -> str:
    """The published rates that every plan uses, with their sources."""
    lines = ["| chip | bf16 TFLOP/s | HBM GiB | HBM GB/s | torus | GB/s a link, one way | network GB/s | source |"]
    lines.append("|" + "---|" * 8)
    for name, chip in hardware.CHIPS.items():
        torus = f"{chip.dims}-D" if chip.dims else "switch"
        lines.append(
            f"| {name} | {chip.flops_per_second / 1e12:,.0f} | {chip.hbm_bytes / GIB:.0f} |"
            f" {chip.hbm_bandwidth / 1e9:,.0f} | {torus} | {chip.link_bandwidth / 1e9:.0f} |"
            f" {chip.network_bandwidth / 1e9:g} | {chip.source} |"
        )
    return "\n".join(lines)


def heading(header: str = COLUMNS) -> str:
    names = [name.strip() for name in header.split("|")]
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


def row(name: str, facts: dict) -> str:
    """A row of docs/plans.md."""
    known = facts["step_seconds"] is not None
    compiled = facts["compile_seconds"] is not None
    cells = [
        name,
        facts["topology"],
        str(facts["num_chips"]),
        mesh(facts),
        facts["remat"],
        str(facts["microbatches"]),
        f"{facts['peak_bytes'] / GIB:.1f}",
        f"{1 - facts['peak_bytes'] / facts['usable_bytes']:.0%}",
        f"{facts['step_seconds']:.3g}" if known else "-",
        f"{facts['tokens_per_second']:,.0f}" if known else "-",
        f"{facts['mfu']:.1%}" if known else "-",
        f"{facts['compile_seconds']:.0f}" if compiled else "-",
        f"{facts['compile_rss_bytes'] / GIB:.1f}" if compiled else "-",
    ]
    return f"| {' | '.join(cells)} |"
