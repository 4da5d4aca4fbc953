"""Tokenizer files: those of a folder of transformers as a tokenizer of ours, and ours as files that transformers reads."""

import json

from gptjax.data import tokenizers
from gptjax.data.tokenizers.base import END_OF_TEXT, Tokenizer
from gptjax.data.tokenizers.byte_level import byte_of_character
from gptjax.errors import UserError

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def read(folder) -> Tokenizer | None:
    """The tokenizer of a folder of transformers; None: it has none. Raises UserError: gptjax cannot read it."""
    if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        return tokenizers.from_spec(f"gpt2:{folder}")
    if (folder / "tokenizer.json").exists():
        return tokenizers.from_spec(f"hf:{folder / 'tokenizer.json'}")
    return None


def files(tokenizer: Tokenizer, context_length: int) -> dict[str, bytes] | None:
    """{name: content} of what AutoTokenizer loads with the same ids; None: transformers has no such tokenizer."""
    if tokenizer.kind not in _WRITERS:
        return None
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context_length}
    if tokenizer.eot_id is not None:
        name = next(name for name, i in tokenizer.special.items() if i == tokenizer.eot_id)
        settings |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), name)
    settings |= {"clean_up_tokenization_spaces": False}
    written = _WRITERS[tokenizer.kind](tokenizer)
    if "vocab.json" in written:
        settings["tokenizer_class"] = "GPT2Tokenizer"
    return written | {"tokenizer_config.json": _json(settings)}


def _gpt2(tokenizer: Tokenizer) -> dict[str, bytes]:
    """GPT-2's own two files, and the same as tokenizer.json."""
    rank = {spelled: i for i, spelled in enumerate(tokenizer.spelling) if spelled}
    merges = [pair for spelled in sorted(rank, key=rank.get) if (pair := _merged_from(spelled, rank))]
    merges = [tuple(_written(part) for part in pair) for pair in merges]
    vocab = {_written(spelled): i for spelled, i in rank.items()} | {END_OF_TEXT: tokenizer.special[END_OF_TEXT]}
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    return {
        "vocab.json": _json(vocab),
        "merges.txt": ("\n".join(lines) + "\n").encode(),
        "tokenizer.json": _tokenizer_json(tokenizer, _bpe(vocab, merges), _BYTE_LEVEL),
    }


def _merged_from(spelled: bytes, rank: dict[bytes, int]) -> tuple[bytes, bytes] | None:
    """The two tokens that a token was merged from: those left when all merges before its own are done."""
    parts = [spelled[i : i + 1] for i in range(len(spelled))]
    own = rank[spelled]
    while len(parts) > 2:
        ranks = [rank.get(a + b, own) for a, b in zip(parts, parts[1:])]
        best = min(range(len(ranks)), key=ranks.__getitem__)
        if ranks[best] >= own:
            raise UserError(f"the token {spelled!r} of this vocabulary is no merge of two others; export it by hand.")
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return tuple(parts) if len(parts) == 2 else None


def _hf(tokenizer: Tokenizer) -> dict[str, bytes]:
    return {"tokenizer.json": tokenizer.definition}


def _bytes(tokenizer: Tokenizer) -> dict[str, bytes]:
    vocab = {_written(bytes([b])): b for b in range(256)}
    split = _BYTE_LEVEL | {"use_regex": False}
    return {"tokenizer.json": _tokenizer_json(tokenizer, _bpe(vocab, []), split)}


def _chars(tokenizer: Tokenizer) -> dict[str, bytes]:
    vocab = {spelled.decode(): i for i, spelled in enumerate(tokenizer.spelling) if spelled}
    unknown = END_OF_TEXT if tokenizer.eot_id is not None else next(iter(vocab))
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": unknown}
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    return {"tokenizer.json": _tokenizer_json(tokenizer, model, split, decoder={"type": "Fuse"})}


_WRITERS = {"gpt2": _gpt2, "hf": _hf, "bytes": _bytes, "chars": _chars}


def _bpe(vocab: dict, merges: list) -> dict:
    settings = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    settings |= {"fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {"type": "BPE", **settings, "vocab": vocab, "merges": [list(pair) for pair in merges]}


def _tokenizer_json(tokenizer: Tokenizer, model: dict, split: dict, decoder: dict = _BYTE_LEVEL) -> bytes:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": i, "content": name, **flags} for name, i in sorted(tokenizer.special.items(), key=lambda s: s[1])]
    return _json(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": split,
            "post_processor": None,
            "decoder": decoder,
            "model": model,
        }
    )


def _written(spelled: bytes) -> str:
    """Bytes in the characters that stand for them in vocabulary files."""
    character = {b: c for c, b in byte_of_character().items()}
    return "".join(character[b] for b in spelled)


def _json(value) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()
