"""A cleaning report to look at: table(report) for the terminal, samples(report) as Markdown."""

from gptjax.terminal import columns

_TITLES = ("step", "documents", "removed", "", "changed", "split", "MB in", "MB out", "MB/s")


def table(report: dict) -> str:
    """A line a step, and below it, indented, why documents went (-) and what was changed in those that stay (~)."""
    rows = [_TITLES, *(row for step in report["steps"] for row in (_row(step), *_reasons(step)))]
    return "\n".join(columns(rows, left=1))


def _row(step: dict) -> tuple:
    share = f"{step['removed'] / step['documents']:.1%}" if step["documents"] else ""
    counts = [f"{step[name]:,}" for name in ("documents", "removed")] + [share]
    counts += [f"{step[name]:,}" for name in ("changed", "split")]
    speed = f"{step['bytes_in'] / 1e6 / step['seconds']:,.1f}" if step["seconds"] else ""
    return (_short(step["step"]), *counts, *(f"{step[name] / 1e6:,.2f}" for name in ("bytes_in", "bytes_out")), speed)


def _short(spec: str, width: int = 48) -> str:
    return spec if len(spec) <= width else spec[: width - 3] + "..."


def _reasons(step: dict) -> list[tuple]:
    gone = sorted(step["reasons"].items(), key=lambda item: (-item[1], item[0]))
    edits = sorted(step["edits"].items(), key=lambda item: (-item[1], item[0]))
    rows = [(f"  - {name}", "", f"{n:,}", "", "") for name, n in gone]
    rows += [(f"  ~ {name}", "", "", "", f"{n:,}") for name, n in edits]
    return [row + ("",) * (len(_TITLES) - len(row)) for row in rows]


def samples(report: dict) -> str:
    """Markdown: for each step and reason, some documents before and after, the same ones in every run."""
    parts = ["# What cleaning did", "```\n" + table(report) + "\n```"]
    for step in report["steps"]:
        parts.append(f"## {step['step']}")
        for reason, found in step["samples"].items():
            gone, changed = step["reasons"].get(reason), step["edits"].get(reason)
            counts = [f"{gone:,} documents removed"] if gone else []
            counts += [f"{changed:,} times changed"] if changed else []
            parts.append(f"### {reason}: {', '.join(counts)}")
            parts += [_sample(sample) for sample in found]
        if not step["samples"]:
            parts.append("Nothing removed or changed.")
    return "\n\n".join(parts) + "\n"


def _sample(sample: dict) -> str:
    shown = [f"`{sample['where']}`", _block("before", sample["before"])]
    if sample["after"] is not None:
        shown.append(_block("after", sample["after"]))
    return "\n\n".join(shown)


def _block(name: str, text: str) -> str:
    """As it stands, in a fence longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{name}:\n{fence}text\n{text}\n{fence}"
