"""`gptjax prepare`: raw text to a folder of token shards. What it does is in data/preparation.py; here is what it says."""

import json
import math
import os
import sys
import time

from gptjax import terminal
from gptjax.errors import SaveFailed, UserError

VAL_FRACTION = 0.005
_SHOWN_FAILURES = 5


def add_flags(parser) -> None:
    parser.add_argument(
        "--source",
        required=True,
        metavar="SPEC",
        help="corpus, a path, KIND:PATH (text, jsonl, parquet, arrayrecord, warc), tfds:NAME[@SPLIT] or hf:NAME[@SPLIT]",
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        metavar="SPEC",
        help="bytes, gpt2[:PATH], hf:PATH, sentencepiece:PATH, or a folder of gptjax tokenizer train",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the folder to fill, local or gs://")
    parser.add_argument(
        "--num_shards",
        type=int,
        metavar="N",
        help="number of shards of each split (default: by the size of the source)",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="number of processes (default: one for each CPU)")
    parser.add_argument(
        "--val_fraction",
        type=float,
        default=VAL_FRACTION,
        metavar="F",
        help="share of the documents to hold out, chosen by a hash of their text (default: %(default)s)",
    )
    parser.add_argument(
        "--clean",
        metavar="STEPS",
        help="such as unicode,language=en:0.5,gopher_quality; there are: html, unicode, language, length, gopher_quality,"
        " gopher_repetition, c4, pii, decontaminate=EVALUATION_TEXTS",
    )
    parser.add_argument(
        "--dedup", metavar="HOW", help="exact, or minhash[:SIMILARITY]: of equal documents keep only the first"
    )
    parser.add_argument(
        "--text_field", default="text", metavar="NAME", help="the field of jsonl, Parquet or TFDS that holds the text"
    )
    parser.add_argument("--separator", metavar="LINE", help="the line that separates the documents of a text file")
    parser.add_argument(
        "--format",
        choices=("text", "chat"),
        default="text",
        help="what a record is: text, or chat: a conversation, whose tokens get weights as targets (default: %(default)s)",
    )
    parser.add_argument(
        "--template",
        metavar="NAME",
        help="how conversations are written, with --format=chat: gptjax (default), chatml, llama3, smollm2 or template:FILE",
    )
    parser.add_argument("--tfds_dir", metavar="DIR", help="the folder where TFDS keeps its datasets")
    parser.add_argument("--strict", action="store_true", help="stop at the first document that cannot be read")
    parser.add_argument(
        "--dry_run", action="store_true", help="write nothing; print the plan, and what becomes of the first 10 MB"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args) -> None:
    from gptjax.data.preparing import preparation

    try:
        order = _order(args)
        if args.dry_run:
            _dry_run(order, args.json)
            return
        progress = Progress(order)
        report = preparation.prepare(order, progress)
    except SaveFailed as error:
        raise SaveFailed(preparation.in_flags(str(error))) from error
    except UserError as error:
        raise UserError(preparation.in_flags(str(error))) from error
    except KeyboardInterrupt:
        print("\nstopped; finished shards are kept. Run the same command again to continue", file=sys.stderr)
        raise
    print(json.dumps(report, indent=2, ensure_ascii=False) if args.json else _summary(order, report))


def _order(args):
    """The command's Order. Raises UserError: a value that cannot be."""
    from gptjax.config.fields import DataConfig
    from gptjax.data import sources
    from gptjax.data.preparing import preparation, shardmaker

    _check_numbers(args)
    base = DataConfig(
        text_field=args.text_field, separator=args.separator, tfds_dir=args.tfds_dir, chat=_chat_format(args)
    )
    config = sources.from_spec(args.source, base)
    if config.source == "prepared":
        raise UserError(f"--source={args.source} was made by gptjax prepare; give the text that it was made from.")
    shardmaker.make_cleaner(args.clean)  # its steps are known and ready, before anything is read
    if args.dedup is not None:
        from gptjax.data.preparing import dedup

        dedup.Fingerprinter(dedup.parse(args.dedup))
    return preparation.Order(
        spec=args.source,
        config=config,
        tokenizer=_tokenizer(args, config),
        out=os.path.expanduser(args.out),
        num_shards=args.num_shards,
        n_workers=args.workers or _cpus(),
        val_fraction=args.val_fraction,
        clean=args.clean,
        dedup=args.dedup,
        strict=args.strict,
    )


_OF_TEXT = ("clean", "dedup", "separator", "text_field")  # flags that have no meaning for conversations


def _chat_format(args) -> str | None:
    """The data.chat of --format and --template. Raises UserError: flags that are not for one another."""
    if args.format == "text":
        if args.template is not None:
            raise UserError(f"--template={args.template} is of conversations; add --format=chat, or leave it out.")
        return None
    for name in _OF_TEXT:
        value = getattr(args, name)
        if value is not None and (name, value) != ("text_field", "text"):
            raise UserError(f"--{name}={value} is of text, and --format=chat reads conversations; leave it out.")
    return args.template or "gptjax"


def _tokenizer(args, config):
    """With the control tokens of the format of conversations."""
    from gptjax.data import tokenizers

    tokenizer = tokenizers.from_spec(args.tokenizer)
    if config.chat is None:
        return tokenizer
    from gptjax.data.tokens.rendering import Renderer

    return Renderer(config, tokenizer).tokenizer


def _check_numbers(args) -> None:
    for name in ("num_shards", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}={value} is too small; use at least 1.")
    if not 0 <= args.val_fraction < 1:
        raise UserError(
            f"--val_fraction={args.val_fraction:g} is not a share; use 0 (hold out nothing) or a number below 1."
        )


def _cpus() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---- live


class Progress:
    """The live line, and what it is made of: counts of shards that are done, and of those that workers report."""

    def __init__(self, order):
        self._order, self._line = order, terminal.Progress()
        self._began = time.monotonic()
        self._failures, self._new_bytes = 0, 0

    def begin(self, kind: str, tasks: list, done: dict) -> None:
        """A pass over tasks begins, of which those in done were done before."""
        self._doing = {"cleaned": "cleaning", "shard": "tokenising"}[kind]
        self._shards, self._done = len(tasks), len(done)
        self._units = self._units_left = sum(len(task.units) for task in tasks if task.number not in done)
        self._counts = {"documents": 0, "bytes": 0, "tokens": 0}
        self._pass_began, self._pass_bytes = time.monotonic(), 0
        for record in done.values():
            for name in self._counts:
                self._counts[name] += record["counts"][name]
        if done:
            self.message(f"{self._doing}: {len(done)} of {len(tasks)} shards are done already")
        if (n := min(self._order.n_workers, len(tasks) - len(done))) > 0:
            self.message(f"{self._doing}: {len(tasks) - len(done)} shards, {n} worker{'s' * (n > 1)}")

    def report(self, value: dict) -> None:
        """What a worker has done since it last reported, or could not read."""
        if "failure" in value:
            self._failures += 1
            if self._failures <= _SHOWN_FAILURES:
                self.message(f"left out: {value['failure']}")
            if self._failures == _SHOWN_FAILURES:
                self.message("left out: more documents; report.json counts and names them")
            return
        for name in self._counts:
            self._counts[name] += value[name]
        self._new_bytes += value["bytes"]
        self._pass_bytes += value["bytes"]
        self._units_left -= value["units"]
        self._line.update(self._text())

    def done(self, record: dict) -> None:
        """A shard."""
        self._done += 1

    def end(self) -> None:
        self._line.close()

    def message(self, line: str) -> None:
        self._line.message(line)

    def performance(self) -> dict:
        seconds = time.monotonic() - self._began
        return {
            "seconds": round(seconds, 3),
            "mb_per_second": self._new_bytes / 1e6 / max(seconds, 1e-9),
            "workers": self._order.n_workers,
        }

    def _text(self) -> str:
        seconds = time.monotonic() - self._pass_began
        parts = [f"{self._doing} {self._done} of {self._shards} shards", f"{self._counts['documents']:,} documents"]
        parts.append(f"{terminal.si(self._counts['bytes'])}B")
        if self._counts["tokens"]:
            parts.append(f"{terminal.si(self._counts['tokens'])} tokens")
        parts.append(f"{self._pass_bytes / 1e6 / max(seconds, 1e-9):.1f} MB/s")
        units_done = self._units - self._units_left
        left = seconds * self._units_left / units_done if units_done else math.inf
        parts.append(f"{terminal.duration(left)} left" if math.isfinite(left) else "")
        failures = f"{self._failures:,} left out" if self._failures else ""
        return "  ".join(filter(None, [*parts, failures]))


# ---- at the end


def _summary(order, report: dict) -> str:
    parts = [_splits(report["splits"])]
    if report["cleaning"] is not None:
        parts.append(_cleaning(report))
    if (duplicates := report["duplicates"]) is not None:
        parts.append(
            f"duplicates: {duplicates['removed']:,} of {duplicates['documents']:,} documents removed"
            f" ({duplicates['equal']:,} equal, {duplicates['near']:,} near), {terminal.si(duplicates['bytes'])}B"
        )
    parts += _failures(report["failures"])
    if report.get("made_before"):
        parts.append(f"{order.out} is already complete, made by this same command; nothing to do")
    else:
        parts.append(_performance(report["performance"]))
    holds = f"{order.out} holds report.json, samples.md and performance.json."
    if not report["splits"]["val"]["documents"]:
        parts.append(
            f"{holds} No document is held out, and training needs some to evaluate on: use a larger --val_fraction than"
            f" {order.val_fraction:g}, in another folder (a text file is one document, unless --separator parts it)"
        )
        return "\n\n".join(parts)
    parts.append(f"{holds} To train on it:\n  {_training(order)}")
    return "\n\n".join(parts)


def _training(order) -> str:
    """The command that trains on the folder."""
    reading = f"--config.data.source=prepared:{order.out} --config.data.tokenizer=None"
    if order.config.chat is None:
        return f"gptjax train --config=configs/gpt2_small.py --workdir=RUN {reading}"
    return (
        f"gptjax train --config=configs/sft_quickstart.py --workdir=RUN {reading}"
        f" --config.data.chat={order.config.chat} --config.train.start_from=BASE"
    )


def _splits(splits: dict) -> str:
    of_chat = tuple(name for name in ("targets", "turns") if name in splits["train"])
    rows = [("split", "documents", "tokens", "bytes", "bytes/token", *of_chat)]
    for split, n in splits.items():
        ratio = f"{n['bytes'] / n['tokens']:.3f}" if n["tokens"] else ""
        counts = (f"{n[name]:,}" for name in ("documents", "tokens", "bytes"))
        rows.append((split, *counts, ratio, *(f"{n[name]:,}" for name in of_chat)))
    return "\n".join(terminal.columns(rows, left=1))


def _cleaning(report: dict) -> str:
    from gptjax.data.preparing import cleaning

    seconds = report.get("performance", {}).get("cleaning_seconds") or [0] * len(report["cleaning"]["steps"])
    steps = [step | {"seconds": s} for step, s in zip(report["cleaning"]["steps"], seconds)]
    return cleaning.table(report["cleaning"] | {"steps": steps})


def _failures(failures: dict) -> list[str]:
    if not failures["count"]:
        return []
    shown = failures["messages"][:_SHOWN_FAILURES]
    more = failures["count"] - len(shown)
    lines = [f"{failures['count']:,} could not be read and were left out:", *shown]
    return ["\n  ".join(lines + ([f"and {more:,} more, see report.json"] if more else []))]


def _performance(n: dict) -> str:
    return (
        f"{terminal.duration(n['seconds'])}, {n['mb_per_second']:.1f} MB/s; {n['mb_per_core_second']:.2f} MB per CPU second"
        f" ({n['tokenising_seconds']:.1f} of {n['cpu_seconds']:.1f} s tokenising); memory: {terminal.si(n['peak_bytes'])}B,"
        f" and at most {terminal.si(n['worker_peak_bytes'])}B a worker"
    )


# ---- beforehand


def _dry_run(order, as_json: bool) -> None:
    from gptjax.data.preparing import preparation, unfinished

    unfinished.check_free(order.out)
    made = preparation.plan(order)
    found = preparation.trial(order, made)
    counts, cpu = found["counts"], max(found["seconds"]["cpu"], 1e-9)
    facts = {
        "units": sum(len(task.units) for task in made.tasks),
        "num_shards": len(made.tasks),
        "workers": min(order.n_workers, len(made.tasks)),
        "tokenizer": {"kind": order.tokenizer.kind, "vocab_size": order.tokenizer.vocab_size},
        "trial": counts | {"mb_per_core_second": counts["bytes"] / 1e6 / cpu},
        "failures": found["failures"],
        "cleaning": found["cleaning"],
    }
    print(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else _dry_table(order, facts))


def _dry_table(order, facts: dict) -> str:
    n = facts["trial"]
    ratio = f", {n['kept_bytes'] / n['tokens']:.3f} bytes a token" if n["tokens"] else ""
    parts = [
        f"{order.spec}: {facts['units']} parts in {facts['num_shards']} shards by {facts['workers']} workers; tokenizer"
        f" {facts['tokenizer']['kind']} of {facts['tokenizer']['vocab_size']:,} tokens",
        f"the first {terminal.si(n['bytes'])}B: {n['kept_documents']:,} documents of {n['documents']:,},"
        f" {n['tokens']:,} tokens{ratio}, {n['mb_per_core_second']:.2f} MB per CPU second",
    ]
    if facts["cleaning"] is not None:
        from gptjax.data.preparing import cleaning

        parts.append(cleaning.table(facts["cleaning"]))
    parts += _failures(facts["failures"])
    return "\n\n".join([*parts, f"nothing was written to {order.out} (--dry_run)"])
