"""What `gptjax prepare` tells of a folder, from the records of its shards: report.json, samples.md, performance.json.

records: of the tasks that wrote the shards; read: of those that read the source, the same ones where nothing was
deduplicated; order: a preparation.Order.
"""

import itertools

from gptjax.data.preparing import shardmaker

_NAMED_FAILURES = 1000
_SAMPLES = 10  # of duplicates


def report(order, read: list[dict], records: list[dict], shards: dict, duplicates) -> tuple[dict, list]:
    """JSON values, equal for equal text and settings, and the seconds of each cleaning step."""
    counts = {name: sum(record["counts"][name] for record in read) for name in ("documents", "bytes")}
    messages = [message for record in read for message in record["failures"]["messages"]]
    failures = {"count": sum(r["failures"]["count"] for r in read), "messages": messages[:_NAMED_FAILURES]}
    cleaning, seconds = _cleaning_report(order, read)
    splits = {
        split: {name: sum(entry[name] for entry in entries.values()) for name in ("documents", "tokens", "bytes")}
        for split, entries in shards.items()
    }
    if order.config.chat is not None:
        for split, counts_of in splits.items():
            counts_of["targets"] = sum(entry["targets"] for entry in shards[split].values())
            counts_of["turns"] = sum(record["turns"][split] for record in records)
    found = {
        "source": order.spec,
        "tokenizer": {"kind": order.tokenizer.kind, "vocab_size": order.tokenizer.vocab_size},
        "read": counts | {"failures": failures["count"]},
        "splits": splits,
        "cleaning": cleaning,
        "duplicates": None if duplicates is None else duplicates | _removed_duplicates(records),
        "failures": failures,
    }
    return found, seconds


def _cleaning_report(order, read: list[dict]) -> tuple[dict | None, list[float]]:
    if order.clean is None:
        return None, []
    from gptjax.data.preparing import cleaning

    merged = cleaning.merge(record["cleaning"] for record in read)
    seconds = [step["seconds"] for step in merged["steps"]]
    return merged | {"steps": [step | {"seconds": 0} for step in merged["steps"]]}, seconds


def _removed_duplicates(records: list[dict]) -> dict:
    found = [record["duplicates"] for record in records]
    shown = itertools.chain.from_iterable(one["samples"] for one in found)
    return {"bytes": sum(one["bytes"] for one in found), "samples": list(itertools.islice(shown, _SAMPLES))}


def samples(report: dict) -> str:
    """Markdown."""
    parts = []
    if report["cleaning"] is not None:
        from gptjax.data.preparing import cleaning

        parts.append(cleaning.samples(report["cleaning"]))
    if report["duplicates"] is not None:
        parts.append("# Duplicates of earlier documents")
        parts += [
            f"`{sample['where']}`\n\n" + "\n".join("    " + line for line in sample["text"].splitlines())
            for sample in report["duplicates"]["samples"]
        ]
    return "\n\n".join(parts or ["No text was cleaned, and no duplicates were looked for (--clean, --dedup)."]) + "\n"


def performance(read: list[dict], records: list[dict], cleaning_seconds: list[float]) -> dict:
    """CPU seconds of all workers, and the most memory that one of them had."""
    passes = [records] if read is records else [read, records]
    each = list(itertools.chain.from_iterable(passes))
    cpu = sum(record["seconds"]["cpu"] for record in each)
    return {
        "cpu_seconds": round(cpu, 3),
        "tokenising_seconds": round(sum(record["seconds"]["tokenising"] for record in each), 3),
        "cleaning_seconds": [round(s, 3) for s in cleaning_seconds],
        "mb_per_core_second": sum(record["counts"]["bytes"] for record in read) / 1e6 / max(cpu, 1e-9),
        "worker_peak_bytes": max(record["peak_bytes"] for record in each),
        "peak_bytes": shardmaker.peak_bytes(),
    }
