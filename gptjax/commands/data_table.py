"""What `gptjax data` prints: rows of a step as text with marks, and the numbers of a run as tables."""

import os
import typing

from gptjax.terminal import si

_BAR = 30  # characters of the longest
_EIGHTHS = " ▏▎▍▌▋▊▉"


class Style(typing.NamedTuple):
    """What stands before and after text that is marked: colours on a terminal, brackets elsewhere."""

    special: tuple[str, str]
    unpredicted: tuple[str, str]
    prefix: tuple[str, str]
    target: tuple[str, str]
    answer: tuple[str, str]
    rule: tuple[str, str]


PLAIN = Style(("⟦", "⟧"), ("⟨", "⟩"), ("«", "»"), ("→⟪", "⟫"), ("⟪", "⟫"), ("", ""))
COLOR = Style(
    ("\033[1;36m", "\033[0m"),
    ("\033[2;3m", "\033[0m"),
    ("\033[34m", "\033[0m"),
    ("\033[1;32m→", "\033[0m"),
    ("\033[1;30;42m", "\033[0m"),
    ("\033[2m", "\033[0m"),
)
_MEANING = {
    "unpredicted": "read, but not predicted (no loss)",
    "special": "special token",
    "prefix": "prefix: every token of it sees all of it",
    "target": "predicted at this place",
    "answer": "target: there is a loss at predicting it",
}


def style(stream) -> Style:
    """COLOR on a terminal, unless NO_COLOR is set (no-color.org)."""
    return COLOR if stream.isatty() and not os.environ.get("NO_COLOR") else PLAIN


# ---- rows


def step(facts: dict, n_rows: int, marks: Style, show=None) -> str:
    """The first n_rows of a step's rows as text. show: in the place of `_row`, of rows that are no running text."""
    shown, last = facts["rows"][:n_rows], facts["first_row"] + facts["batch_size"] - 1
    lines = [
        f"step {facts['step']:,} of {facts['steps']:,}: rows {facts['first_row']:,} to {last:,} of the run"
        + (f", after rollbacks that left out {facts['rows_left_out']:,}" if facts["rows_left_out"] else ""),
        f"batch hash {facts['batch_hash_before']} before it, {facts['batch_hash']} after it (as in metrics.jsonl)",
        _legend(shown, marks) if show is None else "marks: " + _marked("answer", "…", marks) + " " + _MEANING["answer"],
        *((show or _row)(row, marks) for row in shown),
    ]
    if left := len(facts["rows"]) - len(shown):
        lines.append(f"\n{left:,} more rows in this step: --row={len(shown)} to --row={facts['batch_size'] - 1}")
    return "\n".join(line for line in lines if line)


def _legend(rows: list[dict], marks: Style) -> str:
    used = {_mark(part, row) for row in rows for part in row["parts"]} - {None}
    used |= {"target"} if any("target" in part for row in rows for part in row["parts"]) else set()
    said = [f"{_marked(name, '…', marks)} {_MEANING[name]}" for name in _MEANING if name in used]
    return "marks: " + ", ".join(said) if said else ""


def _mark(part: dict, row: dict) -> str | None:
    """The field of Style that a part is in. Where tokens are predicted in place all of a row is seen whole, and most of
    it is not predicted: there the targets alone are marked, and in conversations, with the special tokens among them."""
    if row["conversations"] and part["kind"] in ("text", "special"):
        return "answer" if part["predicted"] else "special" if part["kind"] == "special" else None
    if part["kind"] == "special":
        return "special"
    if part["kind"] != "text" or part["predicted"] or row["predicts_in_place"]:
        return None
    return "prefix" if part["prefix"] else "unpredicted"


def _marked(name: str | None, text: str, marks: Style) -> str:
    if name is None or not text:
        return text
    before, after = getattr(marks, name)
    return before + text + after


def _row(row: dict, marks: Style) -> str:
    many = "1 document" if row["documents"] == 1 else f"{row['documents']:,} documents"
    padding = f", {row['padding']:,} padding" if row["padding"] else ""
    head = (
        f"\nrow {row['row']} ({row['run_row']:,} of the run): {row['source']}, epoch {row['epoch']}, {many}, from token"
        f" {row['offset']:,} of document {row['document']:,} on"
        f"\n{row['predicted']:,} of {row['targets']:,} targets have a loss, {row['weight_0']:,} have none{padding};"
        f" batch hash {row['batch_hash']}"
    )
    return head + "\n" + _barred("".join(_part(part, row, marks) for part in row["parts"]))


def text(parts: list[dict], marks: Style) -> str:
    """Of a conversation, its targets marked."""
    of_conversation = {"conversations": True, "predicts_in_place": False}
    return _barred("".join(_part(part, of_conversation, marks) for part in parts))


def _barred(text: str) -> str:
    return "\n".join(f"  │ {line}" for line in text.split("\n"))


def _part(part: dict, row: dict, marks: Style) -> str:
    """On a terminal a colour ends with its line, so that the bar before the next has none."""
    if part["kind"] == "boundary":
        return "\n" + _marked("rule", "──── another document", marks) + "\n"
    if part["kind"] == "padding":
        return "\n" + _marked("rule", f"──── {part['tokens']:,} tokens of padding", marks)
    name, text = _mark(part, row), _visible(part["text"])
    pieces = text.split("\n") if marks is COLOR else [text]
    shown = "\n".join(_marked(name, piece, marks) for piece in pieces)
    return shown + (_marked("target", _visible(part["target"]), marks) if "target" in part else "")


def _visible(text: str) -> str:
    """Control characters, which could command the terminal, as their pictures."""
    return "".join(
        chr(0x2400 + ord(c))
        if c < " " and c not in "\n\t"
        else "␡"
        if c == "\x7f"
        else "�"
        if "\x80" <= c < "\xa0"
        else c
        for c in text
    )


# ---- statistics


def statistics(facts: dict) -> str:
    """All of `gptjax.data.looking.statistics` for a person."""
    run, sources = facts["run"], facts["sources"]
    apart = "see only themselves" if run["documents_apart"] else "see each other"
    blocks = [
        f"{run['steps']:,} steps: {run['rows']:,} rows of {run['context_length']:,} tokens, {si(run['tokens'])} tokens;"
        f" packing {run['packing']}, documents in a row {apart}; objective {run['objective']}",
        _title("text") + _columns(_TEXT_HEADER, [_text_row(name, one) for name, one in sources.items()]),
        *_conversations(sources),
        _title("read by this run") + _columns(_READ_HEADER, [_read_row(name, one) for name, one in sources.items()]),
        _title("read how often")
        + _columns(_TIMES_HEADER, [r for name, one in sources.items() for r in _times(name, one)]),
        _title("mixture over training") + _columns(_STAGE_HEADER, list(_stage_rows(facts["stages"]))),
        _title("packing, an epoch") + _columns(_PACK_HEADER, [_pack_row(name, one) for name, one in sources.items()]),
        _objective(facts["objective"]),
        *(
            _title(f"lengths of documents in tokens: {name}") + _lengths(one["lengths"])
            for name, one in sources.items()
        ),
    ]
    return "\n\n".join(block for block in blocks if block)


def _conversations(sources: dict) -> list[str]:
    rows = [_target_row(name, one) for name, one in sources.items() if one["conversations"] is not None]
    return [_title("conversations") + _columns(_TARGETS_HEADER, rows)] if rows else []


def _title(text: str) -> str:
    return f"{text}\n"


def _columns(header: tuple, rows: list[tuple]) -> str:
    """A table; the first column to the left, the others to the right."""
    table = [tuple(map(str, row)) for row in (header, *rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    return "\n".join(
        "  " + "  ".join(f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(row)).rstrip()
        for row in table
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}%"


_TARGETS_HEADER = ("source", "conversations", "targets", "of all tokens", "too long for a row", "which are", "left out")


def _target_row(name: str, source: dict) -> tuple:
    one, train = source["conversations"], source["train"]
    return (
        name,
        f"{train['documents']:,}",
        f"{one['targets']:,}",
        _percent(one["target_share"]),
        f"{one['too_long']:,}",
        {"drop": "dropped", "cut": "cut", "refuse": "refused"}[one["overflow"]],
        f"{one['left_out']:,}",
    )


_TEXT_HEADER = (
    "source",
    "documents",
    "tokens",
    "bytes",
    "bytes/token",
    "held out: documents",
    "tokens",
    "bytes",
    "share",
)


def _text_row(name: str, source: dict) -> tuple:
    train, held_out = source["train"], source["held_out"]
    return (
        name,
        f"{train['documents']:,}",
        f"{train['tokens']:,}",
        f"{train['bytes']:,}",
        "-" if train["bytes_per_token"] is None else f"{train['bytes_per_token']:.3f}",
        f"{held_out['documents']:,}",
        f"{held_out['tokens']:,}",
        f"{held_out['bytes']:,}",
        _percent(held_out["share_of_bytes"]),
    )


_READ_HEADER = ("source", "share of rows", "rows", "rows/epoch", "epochs", "rows read again", "tokens read")


def _read_row(name: str, source: dict) -> tuple:
    read = source["reading"]
    return (
        name,
        _percent(read["share_of_rows"]),
        f"{read['rows']:,}",
        f"{source['packing']['rows_per_epoch']:,}",
        f"{read['epochs']:.3f}",
        f"{read['rows_read_again']:,}",
        f"{read['tokens_read']:,}",
    )


_TIMES_HEADER = ("source", "times", "rows", "tokens", "share")


def _times(name: str, source: dict):
    for one in source["reading"]["times_read"]:
        share = one["rows"] / source["packing"]["rows_per_epoch"]
        yield name, one["times"], f"{one['rows']:,}", f"{one['tokens']:,}", _percent(share)


_STAGE_HEADER = ("from token", "from row", "source", "wanted", "got", "rows")


def _stage_rows(stages: list[dict]):
    for stage in stages:
        start = (f"{stage['from_tokens']:,}", f"{stage['first_row']:,}")
        for name, one in stage["sources"].items():
            got = _percent(one["got"]) if stage["rows"] else "never"
            yield *start, name, _percent(one["wanted"]), got, f"{one['rows']:,}"
            start = ("", "")


_PACK_HEADER = (
    "source",
    "efficiency",
    "document starts",
    "padding",
    "documents cut",
    "documents left out",
    "tokens left out",
)


def _pack_row(name: str, source: dict) -> tuple:
    packing, n = source["packing"], source["train"]["documents"]
    return (
        name,
        _percent(packing["efficiency"]),
        f"{packing['document_starts']:,}",
        f"{packing['padding']:,}",
        f"{packing['documents_cut']:,} of {n:,}",
        f"{packing['documents_left_out']:,}",
        f"{packing['tokens_left_out']:,}",
    )


def _objective(sample: dict) -> str:
    return (
        "  Efficiency is the share of target positions that have a loss. The first token of a document that follows another\n"
        "  has none, nor has padding. A document is cut where no row holds it whole; tokens left out are in no row of an epoch.\n"
        f"  With the objective ({sample['name']}), efficiency is {_percent(sample['predicted_share'])}, measured on"
        f" {sample['sampled_rows']} rows spread over the run."
    )


def _lengths(lengths: dict) -> str:
    if not lengths["histogram"]:
        return "  no documents"
    short, long = lengths["shortest"], lengths["longest"]
    said = (
        f"  median {lengths['median']:,.1f}, mean {lengths['mean']:,.1f}; shortest {short['tokens']:,}"
        f" (document {short['document']:,}), longest {long['tokens']:,} (document {long['document']:,})"
    )
    most = max(one["documents"] for one in lengths["histogram"])
    total = sum(one["tokens"] for one in lengths["histogram"])
    rows = [
        (
            f"{one['from']:,}" if one["from"] >= one["to"] else f"{one['from']:,} to {one['to']:,}",
            f"{one['documents']:,}",
            _percent(one["tokens"] / total if total else None),
            "│" + _bar(one["documents"] / most),
        )
        for one in lengths["histogram"]
    ]
    table = [("tokens", "documents", "of all tokens", "documents"), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    lines = (f"  {a:>{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d}" for a, b, c, d in table)
    return said + "\n" + "\n".join(lines)


def _bar(share: float) -> str:
    """Of eighths of a character; something for the smallest share that is not 0."""
    eighths = max(round(share * _BAR * 8), 1) if share else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
