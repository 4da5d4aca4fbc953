"""The tokenizer of a GGUF file as one of ours, and ours as metadata of a file.

A file has the tokens as texts, the type of each, and what its kind needs beside them (llama.cpp, llama-vocab.cpp): "gpt2",
byte-level BPE, its merges and the name of how a text is split first; "llama", SentencePiece's BPE, a score for each.
"""

import dataclasses
import json

import numpy as np

from gptjax.data.tokenizers import library_json
from gptjax.data.tokenizers import sentencepiece_model as spm
from gptjax.data.tokenizers.base import Tokenizer
from gptjax.data.tokenizers.huggingface import LLAMA_SPLIT, QWEN_SPLIT, HuggingFaceTokenizer
from gptjax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from gptjax.errors import UserError, did_you_mean, shorten
from gptjax.gguf.container import F32, I32, U32, Value
from gptjax.huggingface import vocabulary

PREFIX, CHAT_TEMPLATE = "tokenizer.ggml.", "tokenizer.chat_template"
ENDS = (("the metadata", f"{PREFIX}eos_token_id", f"{PREFIX}bos_token_id"),)  # as sources of ends.find
_NONE = "none"  # tokenizer.ggml.model of a file without tokenizer
_BYTE_LEVEL_ONLY = library_json.BYTE_LEVEL | {"use_regex": False}


@dataclasses.dataclass(frozen=True)
class Split:
    """How a text is parted before merges, by the name that llama.cpp has for it. steps: as a pre_tokenizer of
    tokenizer.json. whole_tokens: whether a part that is a token is not merged from its bytes. begins: whether a text
    begins with the beginning-of-text token where a file does not say."""

    steps: dict
    whole_tokens: bool = False
    begins: bool = False


def _by_pattern(pattern: str) -> dict:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL_ONLY]}


_GPT2 = Split(library_json.BYTE_LEVEL)
_DIGITS = Split(
    {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, library_json.BYTE_LEVEL],
    }
)
_LLAMA3, _QWEN2 = Split(_by_pattern(LLAMA_SPLIT), whole_tokens=True, begins=True), Split(_by_pattern(QWEN_SPLIT))
SPLITS = {  # the first name of equal ones is written
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}


# ---- reading


def read(metadata: dict, where) -> tuple[Tokenizer | None, list[str]]:
    """(the tokenizer of a file, notes); None: it has none. Raises UserError: gptjax has no such tokenizer."""
    kind = metadata.get(f"{PREFIX}model", _NONE)
    if kind in (_NONE, "no_vocab"):
        return None, []
    if not isinstance(kind, str) or kind not in _READERS:
        raise UserError(
            f"{where} has a tokenizer of kind {shorten(repr(kind), 80)}; gptjax reads {', '.join(_READERS)}."
        )
    tokens, types = _tokens(metadata, where)
    return _READERS[kind](tokens, types, metadata, where)


def _tokens(metadata: dict, where) -> tuple[list[str], list[int]]:
    tokens = _entry(metadata, "tokens", list, "a list of texts", where)
    if not all(isinstance(token, str) for token in tokens) or len(set(tokens)) != len(tokens):
        raise UserError(f"{where}: {PREFIX}tokens names a token twice, or one that is no text; convert the model anew.")
    types = metadata.get(f"{PREFIX}token_type", np.full(len(tokens), spm.NORMAL))
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise UserError(f"{where}: {PREFIX}token_type has no type for each token; convert the model anew.")
    return tokens, types.tolist()


def _entry(metadata: dict, name: str, kind: type, expected: str, where):
    value = metadata.get(PREFIX + name)
    if not isinstance(value, kind):
        raise UserError(f"{where} has no {PREFIX}{name}; expected {expected}: convert the model anew.")
    return value


def _byte_level(tokens: list[str], types: list[int], metadata: dict, where) -> tuple[Tokenizer, list[str]]:
    name = _entry(metadata, "pre", str, "the name of how a text is split", where)
    if name not in SPLITS:
        raise UserError(
            f"{where} splits texts as {shorten(repr(name), 80)} does{did_you_mean(name, SPLITS)}; gptjax knows"
            f" {', '.join(SPLITS)}."
        )
    split, vocab = SPLITS[name], {token: i for i, token in enumerate(tokens)}
    merges = _merges(_entry(metadata, "merges", list, "a list of merges", where), where)
    special = {token: i for token, i in vocab.items() if types[i] in (spm.CONTROL, spm.UNKNOWN)}
    plain = {token: i for token, i in vocab.items() if types[i] == spm.USER_DEFINED}
    model = library_json.bpe(vocab, merges) | {"ignore_merges": split.whole_tokens}
    definition = library_json.tokenizer_json(special, model, split.steps, plain=plain)
    return HuggingFaceTokenizer.checked(definition, f"{where} ({PREFIX}model)"), []


def _merges(lines: list[str], where) -> list[list[str]]:
    merges = [str(line).split(" ") for line in lines]
    if wrong := next((pair for pair in merges if len(pair) != 2), None):
        line = shorten(repr(" ".join(wrong)), 80)
        raise UserError(f"{where}: {PREFIX}merges has {line}; expected two tokens and a space between them.")
    return merges


def _by_scores(tokens: list[str], types: list[int], metadata: dict, where) -> tuple[Tokenizer, list[str]]:
    scores = _entry(metadata, "scores", np.ndarray, "a score for each token", where)
    if len(scores) != len(tokens) or types.count(spm.UNKNOWN) != 1:
        raise UserError(f"{where}: {PREFIX}scores and token_type are of another vocabulary; convert the model anew.")
    notes = []
    if metadata.get(f"{PREFIX}add_space_prefix", True):
        notes.append(f"{PREFIX}add_space_prefix not read: a text has the tokens of its own, no more")
    pieces = [spm.Piece(*each) for each in zip(tokens, scores.astype(float).tolist(), types)]
    return SentencePieceTokenizer.checked(spm.written(pieces, spm.BPE), f"{where} ({PREFIX}model)"), notes


_READERS = {"gpt2": _byte_level, "llama": _by_scores}


def begins(metadata: dict) -> bool:
    """Whether a text begins with the beginning-of-text token, as llama.cpp sees it."""
    split = SPLITS.get(str(metadata.get(f"{PREFIX}pre")), _GPT2)
    return bool(metadata.get(f"{PREFIX}add_bos_token", metadata.get(f"{PREFIX}model") == "llama" or split.begins))


# ---- writing


def metadata_out(tokenizer: Tokenizer, vocab_size: int) -> tuple[dict, list[str]]:
    """(metadata of a file that has this tokenizer, filled up to vocab_size, notes). Where llama.cpp has no such tokenizer
    the file has none, and a note says why."""
    try:
        written = _WRITERS[tokenizer.kind](tokenizer) if tokenizer.kind in _WRITERS else _kind_is_missing(tokenizer)
    except _Missing as reason:
        return {f"{PREFIX}model": _NONE}, [f"no tokenizer was written: {reason}; encode texts with gptjax"]
    named, tokens, types = written
    for i in range(len(tokens), vocab_size):
        tokens.append(f"[PAD{i}]")
        types.append(spm.UNUSED)
    named |= {"tokens": tokens, "token_type": Value(np.array(types, np.int32), I32)}
    if "scores" in named:
        named["scores"] = Value(np.pad(named["scores"], (0, len(tokens) - len(named["scores"]))), F32)
    ends = {"eos_token_id": tokenizer.eot_id, "bos_token_id": tokenizer.bos_id}
    named |= {name: Value(i, U32) for name, i in ends.items() if i is not None}
    named |= {"add_bos_token": tokenizer.bos_id is not None, "add_eos_token": False}
    return {PREFIX + name: value for name, value in named.items()}, []


class _Missing(Exception):
    """What llama.cpp lacks that a tokenizer needs."""


def _kind_is_missing(tokenizer: Tokenizer):
    raise _Missing(f"llama.cpp has none like {tokenizer.kind!r}")


def _library_out(tokenizer: Tokenizer) -> tuple[dict, list[str], list[int]]:
    """Of all that is a byte-level tokenizer.json, or can be written as one."""
    fields = json.loads(vocabulary.files(tokenizer, context_length=1)["tokenizer.json"])
    name, vocab = _name_of_split(fields, tokenizer), dict(fields["model"]["vocab"])
    types = dict.fromkeys(vocab.values(), spm.NORMAL)
    for token in fields["added_tokens"]:
        i = vocab.setdefault(token["content"], token["id"])
        types[i] = spm.CONTROL if token["special"] else spm.USER_DEFINED
    text_of = {i: token for token, i in vocab.items()}
    ids = range(max(text_of) + 1)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in fields["model"]["merges"]]
    named = {"model": "gpt2", "pre": name, "merges": merges}
    return named, [text_of.get(i, f"[PAD{i}]") for i in ids], [types.get(i, spm.UNUSED) for i in ids]


def _name_of_split(fields: dict, tokenizer: Tokenizer) -> str:
    """Raises _Missing: llama.cpp has no such split."""
    if tokenizer.kind == "bytes":
        return "gpt-2"  # of tokens of one byte any split gives the same
    whole_tokens = bool(fields["model"].get("ignore_merges"))
    steps = _without_defaults(fields["pre_tokenizer"])
    for name, split in SPLITS.items():
        if _without_defaults(split.steps) == steps and split.whole_tokens == whole_tokens and not fields["normalizer"]:
            return name
    raise _Missing(f"it splits or changes texts as none of those does that gptjax knows by name: {', '.join(SPLITS)}")


def _without_defaults(steps: dict | None):
    """A pre_tokenizer without what changes no token: where a token lies in its text, and a split's equal words."""
    if steps is None:
        return None
    inner = [_without_defaults(each) for each in steps.get("pretokenizers", [])]
    kept = {name: value for name, value in steps.items() if name not in ("trim_offsets", "pretokenizers")}
    if kept["type"] == "Split" and (kept["behavior"], kept["invert"]) == ("Removed", True):
        kept |= {"behavior": "Isolated", "invert": False}
    return kept | ({"pretokenizers": inner} if inner else {})


def _sentencepiece_out(tokenizer: Tokenizer) -> tuple[dict, list[str], list[int]]:
    model = spm.parsed(tokenizer.definition)
    if model.trainer_spec.model_type != spm.BPE:
        raise _Missing("it is SentencePiece's unigram model, and a file's 'llama' merges by scores")
    pieces = spm.pieces(model)
    named = {"model": "llama", "add_space_prefix": False}
    named["scores"] = np.array([piece.score for piece in pieces], np.float32)
    tokens, types = [piece.text for piece in pieces], [piece.type for piece in pieces]
    for name in tokenizer.added:
        tokens.append(name)
        types.append(spm.CONTROL)
    return named, tokens, types


_WRITERS = {
    "gpt2": _library_out,
    "hf": _library_out,
    "bytes": _library_out,
    "sentencepiece": _sentencepiece_out,
}
