"""`gptjax tokenizer train | info | encode`: makes a tokenizer from a source, and shows what one is and does."""

import contextlib
import itertools
import json
import sys
import threading
import time

from gptjax.config.fields import DataConfig
from gptjax.errors import UserError
from gptjax.storage import outputs

SPEC_HELP = "bytes, gpt2[:PATH], hf:PATH, sentencepiece:PATH, or a folder that a tokenizer was saved in"
SAMPLE_BYTES = 10_000_000  # of text, on which bytes per token are measured


def add_flags(parser) -> None:
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, run, help: str):
        sub = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        sub.set_defaults(act=run, command=f"tokenizer {name}")
        return sub

    train = action("train", _train, "train a SentencePiece model (byte-pair encoding with byte fallback) on a source")
    _add_source_flags(train, required=True)
    train.add_argument(
        "--vocab_size", type=int, required=True, metavar="N", help="size of the vocabulary, special tokens included"
    )
    train.add_argument("--out", required=True, metavar="DIR", help="the folder to create, local or gs://")
    train.add_argument(
        "--train_bytes",
        type=float,
        default=DataConfig.TRAIN_BYTES,
        metavar="N",
        help="bytes of text to train on, at most (default: %(default)g)",
    )
    train.add_argument(
        "--val_fraction",
        type=float,
        default=0.005,
        metavar="F",
        help="leave out the documents that gptjax prepare holds out with this --val_fraction (default: 0.005)",
    )
    train.add_argument(
        "--digits", choices=("keep", "split"), default="keep", help="split: at most one digit in a token"
    )
    train.add_argument(
        "--special",
        default="",
        metavar="NAMES",
        help="comma-separated special symbols, which no text can spell: chat, fim, <|NAME|>",
    )
    train.add_argument(
        "--character_coverage",
        type=float,
        metavar="F",
        help="share of the text's characters that get a token; the others become bytes (default: .9995, less for many characters)",
    )
    info = action(
        "info", _info, "kind, vocabulary, special symbols and hash of a tokenizer; bytes per token of a source"
    )
    info.add_argument("tokenizer", metavar="SPEC", help=SPEC_HELP)
    _add_source_flags(info, required=False)
    info.add_argument("--json", action="store_true", help="print JSON")

    encode = action("encode", _encode, "the tokens of a text")
    encode.add_argument("--tokenizer", required=True, metavar="SPEC", help=SPEC_HELP)
    encode.add_argument("text", metavar="TEXT", help="the text to encode")
    encode.add_argument("--json", action="store_true", help="print JSON")


def _add_source_flags(parser, required: bool) -> None:
    parser.add_argument(
        "--source",
        required=required,
        action="append",
        metavar="SPEC",
        help="corpus, a path, KIND:PATH, tfds:NAME@SPLIT; may be repeated: each source gives an equal part",
    )
    parser.add_argument(
        "--text_field", default="text", metavar="NAME", help="the field of jsonl, Parquet or TFDS that holds the text"
    )
    parser.add_argument("--separator", metavar="LINE", help="the line that separates the documents of a text file")
    parser.add_argument("--tfds_dir", metavar="DIR", help="the folder where TFDS keeps its datasets")


def run(args) -> int | None:
    return args.act(args)


def _documents(args) -> list:
    """For each --source its documents, the first ones from all over it."""
    from gptjax.config.fields import DataConfig
    from gptjax.data import sources

    base = DataConfig(text_field=args.text_field, separator=args.separator, tfds_dir=args.tfds_dir)
    return [sources.spread_documents(sources.from_spec(spec, base)) for spec in args.source]


# ---- train


def _train(args) -> None:
    from gptjax.data import tokenizers
    from gptjax.data.rows.hashing import is_held_out
    from gptjax.data.tokenizers import sentencepiece
    from gptjax.terminal import Progress

    symbols = tokenizers.parse_symbols(args.special)
    _check_flags(args, symbols)
    progress, train_bytes = Progress(), int(args.train_bytes)
    with contextlib.closing(progress):
        kept = ((text for text in texts if not is_held_out(text, args.val_fraction)) for texts in _documents(args))
        parts = [sentencepiece.training_lines(texts, train_bytes // len(args.source)) for texts in kept]
        lines = list(_watched(itertools.chain(*parts), train_bytes, progress))
        split, coverage = args.digits == "split", args.character_coverage
        with _clock(progress, f"training {args.vocab_size:,} tokens on {_size(lines) / 1e6:,.1f} MB"):
            model = sentencepiece.train_model(lines, args.vocab_size, symbols, split, coverage, "--vocab_size")
    tokenizer = sentencepiece.SentencePieceTokenizer(model)
    sample = _sample(lines)
    tokenizers.save_tokenizer(tokenizer, args.out)
    print(
        f"{args.out}: {tokenizer.kind}, {tokenizer.vocab_size:,} tokens ({len(tokenizer.special)} special),"
        f" {_bytes_per_token(tokenizer, sample):.3f} bytes per token of its training text, hash {tokenizer.hash[:12]};"
        " wrote tokenizer.json, tokenizer.model"
    )


def _check_flags(args, symbols: tuple[str, ...]) -> None:
    from etils import epath

    from gptjax.storage import folder_kinds

    least = 258 + len(symbols)  # bytes, end-of-text, SentencePiece's unknown
    if args.vocab_size <= least:
        raise UserError(
            f"--vocab_size={args.vocab_size} is too small: bytes and special symbols alone take {least}; use more."
        )
    if not 0 <= args.val_fraction < 1:
        raise UserError(f"--val_fraction={args.val_fraction:g} is not a share; use a number from 0 to 1 such as 0.005.")
    if not args.train_bytes >= 1:
        raise UserError(f"--train_bytes={args.train_bytes:g} is too small; use at least 1, such as 100e6.")
    if args.character_coverage is not None and not 0.98 <= args.character_coverage <= 1:
        raise UserError(
            f"--character_coverage={args.character_coverage} is out of range; SentencePiece takes .98 to 1."
        )
    out = epath.Path(args.out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"--out={args.out} exists and is not an empty folder: it is {folder_kinds.said(out)}; name another."
        )
    outputs.check_folder("--out", args.out)


def _watched(lines, train_bytes: int, progress):
    """lines, with a live line on how much is read."""
    size, shown = 0, time.monotonic()
    for line in lines:
        yield line
        size += len(line.encode())
        if (now := time.monotonic()) - shown > 0.2:
            progress.update(f"reading: {size / 1e6:,.1f} of at most {train_bytes / 1e6:,.1f} MB")
            shown = now


@contextlib.contextmanager
def _clock(progress, doing: str):
    """A live line with the time since. SentencePiece says nothing of how far it is, but leaves Python's lock."""
    from gptjax.terminal import duration

    done, began = threading.Event(), time.monotonic()

    def tick() -> None:
        while True:
            progress.update(f"{doing}, {duration(time.monotonic() - began)}")
            if done.wait(1):
                return

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


# ---- info and encode


def _info(args) -> None:
    from gptjax.data import tokenizers

    tokenizer = tokenizers.from_spec(args.tokenizer)
    facts = {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "special": tokenizer.special,
        "longest_token_bytes": int(tokenizer.token_bytes.max()),
        "definition_bytes": len(tokenizer.definition),
        "hash": tokenizer.hash,
        "base_hash": tokenizer.base_hash,
    }
    if args.source is not None:
        sample = _sample(itertools.chain(*_documents(args)))
        facts |= {"sample_bytes": _size(sample), "bytes_per_token": round(_bytes_per_token(tokenizer, sample), 4)}
    if args.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    facts["special"] = ", ".join(f"{name} {i}" for name, i in tokenizer.special.items()) or "none"
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):20}{f'{value:,}' if isinstance(value, int) else value}")


def _encode(args) -> None:
    from gptjax.data import tokenizers

    tokenizer = tokenizers.from_spec(args.tokenizer)
    ids = tokenizer.encode(args.text).tolist()
    pieces = [_shown(tokenizer.spelling[i]) for i in ids]
    if args.json:
        print(json.dumps({"ids": ids, "pieces": pieces}, ensure_ascii=False))
        return
    print(" ".join(map(str, ids)))
    print(" ".join(json.dumps(piece, ensure_ascii=False) for piece in pieces))
    print(f"{len(ids)} tokens, {len(args.text.encode())} bytes", file=sys.stderr)


def _shown(spelling: bytes) -> str:
    """A token's text; of one that is part of a character, its bytes as <0xE4><0xB8>."""
    try:
        return spelling.decode()
    except UnicodeDecodeError:
        return "".join(f"<0x{b:02X}>" for b in spelling)


# ---- samples


def _sample(texts) -> list[str]:
    """The first of texts, SAMPLE_BYTES or little more."""
    sample, size = [], 0
    for text in texts:
        sample.append(text)
        size += len(text.encode())
        if size >= SAMPLE_BYTES:
            break
    return sample


def _size(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _bytes_per_token(tokenizer, texts: list[str]) -> float:
    """Raises UserError: there is no text."""
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    if not tokens:
        raise UserError("the source has no text; name another --source.")
    return _size(texts) / tokens
