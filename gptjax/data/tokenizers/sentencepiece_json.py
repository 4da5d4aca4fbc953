"""SentencePiece models as tokenizer.json of Hugging Face, and back, with the same ids.

BPE: SentencePiece merges the neighbours whose joined piece scores best, the library the pair that stands first in a list.
So the list has every parting of a piece into two, by the piece's score.

Unigram: both take the likeliest pieces. The library would also match the names of control and byte pieces in a text. Their
scores are so low that the characters of a name are always likelier; where one of these has no piece, texts are parted at
it, which parts no piece.

A model that gives back every text has spaces in its tokenizer.json, and not U+2581 for them, so that a U+2581 in a text is
spelled in bytes, as `SentencePieceTokenizer` does. Any other has the ids of SentencePiece itself.
"""

import base64
import json
import re

from gptjax.data.tokenizers import library_json
from gptjax.data.tokenizers import sentencepiece_model as spm
from gptjax.errors import UserError, shorten

_MARK = "\u2581"
_RESERVED = (spm.CONTROL, spm.BYTE, spm.UNKNOWN)  # which no text spells
_BYTE_NAME = re.compile(r"<0x[0-9A-F]{2}>")
# What remove_extra_whitespaces takes away: before spaces become marks, and after it, marks that a text ends with, too.
_LEADING = {"type": "Replace", "pattern": {"Regex": r"\A +"}, "content": ""}
_REPEATED = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
_TRAILING = {"type": "Replace", "pattern": {"Regex": rf"{_MARK}+\z"}, "content": ""}
_TO_MARKS = {"type": "Replace", "pattern": {"String": " "}, "content": _MARK}
_PREPEND = {"type": "Prepend", "prepend": _MARK}


# ---- to tokenizer.json


def as_tokenizer_json(definition: bytes, added: dict[str, int]) -> bytes:
    """The file. definition: of a model. added: special symbols behind its vocabulary.

    Raises UserError: what a tokenizer.json cannot say."""
    model = spm.parsed(definition)
    pieces, normalizer = spm.pieces(model), model.normalizer_spec
    _refuse(model, pieces)
    gives_back = _gives_back(normalizer)
    if gives_back:
        pieces = [piece._replace(text=piece.text.replace(_MARK, " ")) for piece in pieces]
    special = {piece.text: i for i, piece in enumerate(pieces) if piece.type == spm.CONTROL} | added
    of_kind = {spm.BPE: _bpe, spm.UNIGRAM: _unigram}[model.trainer_spec.model_type]
    library_model, split = of_kind(pieces)
    return library_json.tokenizer_json(
        special,
        library_model,
        split,
        decoder=_decoder(gives_back, normalizer.add_dummy_prefix),
        plain=_symbols(pieces, model.trainer_spec.model_type),
        normalizer=None if gives_back else _normalizer(normalizer),
    )


def _gives_back(normalizer) -> bool:
    changes = (normalizer.precompiled_charsmap, normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces)
    return normalizer.escape_whitespaces and not any(changes)


def _refuse(model, pieces: list[spm.Piece]) -> None:
    """Raises UserError: all that a tokenizer.json cannot say of a model."""
    normalizer, kind = model.normalizer_spec, model.trainer_spec.model_type
    changes_texts = not _gives_back(normalizer)
    symbols = [piece.text for piece in pieces if piece.type == spm.USER_DEFINED]
    merged = [piece.score for piece in pieces if piece.type == spm.NORMAL and len(piece.text) > 1]
    unused = [piece.text for piece in pieces if piece.type == spm.UNUSED]
    byte_count = sum(piece.type == spm.BYTE for piece in pieces)
    obstacles = [
        (kind not in (spm.BPE, spm.UNIGRAM), "it is a model of words or of characters"),
        (byte_count not in (0, 256), f"it has pieces for {byte_count} of 256 bytes"),
        (bool(unused), f"it has pieces that are not used ({unused[:1]})"),
        (not normalizer.escape_whitespaces, "it leaves spaces as they are (escape_whitespaces=false)"),
        (model.trainer_spec.treat_whitespace_as_suffix, "it writes spaces behind words (treat_whitespace_as_suffix)"),
        (bool(symbols) and changes_texts, f"it has user-defined symbols ({symbols[:1]}) and changes texts before them"),
        (kind == spm.BPE and len(set(merged)) < len(merged), "two of its pieces have the same score"),
        (kind == spm.UNIGRAM and not changes_texts and byte_count == 0, "it has no pieces for bytes"),
    ]
    if kind == spm.UNIGRAM:
        obstacles += [(bool(lacking := _without_characters(pieces)), f"{lacking[:1]} has a character without a piece")]
    if standing := [words for stands, words in obstacles if stands]:
        raise UserError(f"this SentencePiece model cannot be written as a tokenizer.json: {'; '.join(standing)}.")


def _without_characters(pieces: list[spm.Piece]) -> list[str]:
    """Pieces of texts with a character that is no piece of its own."""
    texts = [piece.text for piece in pieces if piece.type == spm.NORMAL]
    characters = {text for text in texts if len(text) == 1}
    return [text for text in texts if set(text) - characters]


def _symbols(pieces: list[spm.Piece], kind: int) -> dict[str, int]:
    """Added tokens that texts may spell: bpe takes them out of a text first. For unigram they are pieces of a high score."""
    return {piece.text: i for i, piece in enumerate(pieces) if piece.type == spm.USER_DEFINED and kind == spm.BPE}


def _bpe(pieces: list[spm.Piece]) -> tuple[dict, None]:
    """(the library's model, how texts are split first)."""
    parts = {piece.text for piece in pieces if piece.type == spm.NORMAL}
    by_score = sorted((piece for piece in pieces if piece.type == spm.NORMAL), key=lambda piece: -piece.score)
    merges = [pair for piece in by_score for pair in _partings(piece.text, parts)]
    vocab = {piece.text: i for i, piece in enumerate(pieces)}
    unknown = next(piece.text for piece in pieces if piece.type == spm.UNKNOWN)
    falls_back = any(piece.type == spm.BYTE for piece in pieces)
    model = library_json.bpe(vocab, merges) | {"unk_token": unknown, "fuse_unk": True, "byte_fallback": falls_back}
    return model, None


def _partings(text: str, parts: set[str]) -> list[tuple[str, str]]:
    pairs = ((text[:i], text[i:]) for i in range(1, len(text)))
    return [pair for pair in pairs if pair[0] in parts and pair[1] in parts]


def _unigram(pieces: list[spm.Piece]) -> tuple[dict, dict | None]:
    """(the library's model, how texts are split first)."""
    scores = [piece.score for piece in pieces if piece.type == spm.NORMAL]
    least, highest = min(scores), max(scores)
    longest = max(len(piece.text) for piece in pieces if piece.type in _RESERVED)
    unspelled = 2 * longest * min(least, -1) - 100
    vocab = []
    for piece in pieces:
        score = unspelled if piece.type in _RESERVED else piece.score
        if piece.type == spm.USER_DEFINED:  # unigram_model.cc: EncodeOptimized
            score = len(piece.text.replace(" ", _MARK).encode()) * highest - 0.1
        vocab.append([piece.text, score])
    unknown = next(i for i, piece in enumerate(pieces) if piece.type == spm.UNKNOWN)
    falls_back = any(piece.type == spm.BYTE for piece in pieces)
    return {"type": "Unigram", "unk_id": unknown, "vocab": vocab, "byte_fallback": falls_back}, _split(pieces)


def _split(pieces: list[spm.Piece]) -> dict | None:
    """At characters of reserved names that no piece has."""
    spelled = {c for piece in pieces if piece.type in (spm.NORMAL, spm.USER_DEFINED) for c in piece.text}
    lacking = {c for piece in pieces if piece.type in _RESERVED for c in piece.text} - spelled
    if not lacking:
        return None
    pattern = f"[{''.join(re.escape(c) for c in sorted(lacking))}]"
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _normalizer(normalizer) -> dict:
    charsmap = normalizer.precompiled_charsmap
    steps = [{"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}] if charsmap else []
    steps += [_LEADING, _REPEATED] if normalizer.remove_extra_whitespaces else []
    steps += [_PREPEND] if normalizer.add_dummy_prefix else []
    trailing = [_TRAILING] if normalizer.remove_extra_whitespaces else []
    return {"type": "Sequence", "normalizers": [*steps, _TO_MARKS, *trailing]}


def _decoder(gives_back: bool, has_prefix: bool) -> dict:
    to_spaces = [] if gives_back else [{"type": "Replace", "pattern": {"String": _MARK}, "content": " "}]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if has_prefix else []
    return {"type": "Sequence", "decoders": [*to_spaces, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]}


# ---- from tokenizer.json


def is_sentencepiece(fields) -> bool:
    """Whether a tokenizer.json holds such a model."""
    model = fields.get("model") if isinstance(fields, dict) else None
    return isinstance(model, dict) and (model.get("type") == "Unigram" or model.get("byte_fallback") is True)


def as_model(definition: bytes, file: str, with_prefix: bool = True) -> bytes:
    """The model file of a tokenizer.json. with_prefix: whether a space is put before texts if the file says so.

    Raises UserError: what a model file cannot say."""
    try:
        fields = json.loads(definition)
        rules = _rules(fields, file)
        pieces = _pieces(fields, rules["spaces"])
        kind = spm.UNIGRAM if fields["model"].get("type") == "Unigram" else spm.BPE
        merges = [_pair(pair) for pair in fields["model"]["merges"]] if kind == spm.BPE else []
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise UserError(
            f"{file} is not a tokenizer.json of a SentencePiece model ({type(error).__name__}: {shorten(str(error), 80)})."
        ) from error
    if kind == spm.BPE:
        pieces = _scored(pieces, merges, rules["spaces"], file)
    _check_split(fields.get("pre_tokenizer"), pieces, file)
    return spm.written(
        pieces,
        kind,
        rules["charsmap"],
        add_dummy_prefix=rules["prefix"] and with_prefix,
        remove_extra_whitespaces=rules["extra"],
    )


def puts_a_space_before(definition: bytes, file: str) -> bool:
    """Whether a tokenizer.json puts a space before each text."""
    return _rules(json.loads(definition), file)["prefix"]


def _rules(fields: dict, file: str) -> dict:
    """Of what is done to a text first: spaces, how they stand in pieces; charsmap; prefix; extra."""
    normalizer = fields.get("normalizer")
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    charsmaps = [step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"]
    of_ours = (_LEADING, _REPEATED, _TRAILING, _PREPEND, _TO_MARKS)
    others = [step for step in steps if step["type"] != "Precompiled" and step not in of_ours]
    metaspace = _metaspace(fields.get("pre_tokenizer"))
    if others:
        raise UserError(
            f"{file} changes texts by {shorten(str(others[0]), 120)}, which no SentencePiece model does; expected"
            " normalizers of SentencePiece."
        )
    return {
        "spaces": _MARK if _TO_MARKS in steps or metaspace is not None else " ",
        "charsmap": base64.b64decode(charsmaps[0]) if charsmaps else b"",
        "prefix": _PREPEND in steps or (metaspace or {}).get("prepend_scheme", "never") != "never",
        "extra": _LEADING in steps,
    }


def _metaspace(pre_tokenizer: dict | None) -> dict | None:
    return pre_tokenizer if (pre_tokenizer or {}).get("type") == "Metaspace" else None


def _pieces(fields: dict, spaces: str) -> list[spm.Piece]:
    model, vocab = fields["model"], fields["model"]["vocab"]
    if isinstance(vocab, dict):
        vocab = [(text, 0.0) for text, _ in sorted(vocab.items(), key=lambda item: item[1])]
        unknown = next(i for i, (text, _) in enumerate(vocab) if text == (model.get("unk_token") or vocab[0][0]))
    else:
        unknown = model["unk_id"]
    added = {token["content"]: bool(token["special"]) for token in fields.get("added_tokens", [])}
    pieces = []
    for i, (text, score) in enumerate(vocab):
        kind = _type_of(text, i == unknown, added)
        pieces.append(spm.Piece(text.replace(spaces, _MARK), 0.0 if kind in _RESERVED else float(score), kind))
    lacking = [text for text in added if text not in {text for text, _ in vocab}]
    pieces += [spm.Piece(text, 0.0, spm.CONTROL if added[text] else spm.USER_DEFINED) for text in lacking]
    return pieces


def _type_of(text: str, is_unknown: bool, added: dict[str, bool]) -> int:
    if is_unknown:
        return spm.UNKNOWN
    if text in added:
        return spm.CONTROL if added[text] else spm.USER_DEFINED
    return spm.BYTE if _BYTE_NAME.fullmatch(text) else spm.NORMAL


def _pair(pair) -> tuple[str, str]:
    left, right = pair.split(" ") if isinstance(pair, str) else pair
    return left, right


def _scored(pieces: list[spm.Piece], merges: list[tuple[str, str]], spaces: str, file: str) -> list[spm.Piece]:
    """Pieces with scores that merge in the order of merges. Raises UserError: no scores do."""
    merges = [tuple(part.replace(spaces, _MARK) for part in pair) for pair in merges]
    products = ["".join(pair) for pair in merges]
    order = list(dict.fromkeys(products))
    runs = 1 + sum(a != b for a, b in zip(products, products[1:])) if products else 0
    parts = {piece.text for piece in pieces if piece.type == spm.NORMAL}
    pairs = {pair for text in parts for pair in _partings(text, parts)}
    other = next(iter(sorted(pairs ^ set(merges))), None)
    if other is not None or runs != len(order):
        what = f"{''.join(other)!r} of {other}" if other else "pieces in an order that changes with their parts"
        raise UserError(
            f"{file} merges {what} otherwise than by a score for each piece, as SentencePiece does; expected a tokenizer.json"
            " made from a SentencePiece model."
        )
    rank = {text: i for i, text in enumerate(order)}
    return [p._replace(score=-float(rank.get(p.text, len(order)))) if p.type == spm.NORMAL else p for p in pieces]


def _check_split(pre_tokenizer: dict | None, pieces: list[spm.Piece], file: str) -> None:
    """Raises UserError: texts are split where a piece might stand."""
    if pre_tokenizer is None:
        return
    texts = [piece.text for piece in pieces if piece.type == spm.NORMAL]
    metaspace = _metaspace(pre_tokenizer)
    if metaspace is not None and (not metaspace.get("split", True) or not any(_MARK in text[1:] for text in texts)):
        return
    if pre_tokenizer == _split(pieces):
        return
    raise UserError(
        f"{file} splits texts by {pre_tokenizer['type']}, which SentencePiece does not; expected no splits."
    )
