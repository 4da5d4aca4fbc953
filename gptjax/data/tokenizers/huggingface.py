"""Byte-level BPE from a Hugging Face tokenizer.json, by `tokenizers`. The definition is that file.

Only what gives back the text it was given is taken: no normalizer, no prefixed space, every byte a token. Of the
file's added tokens the special ones are never matched in a text; templates, truncation and padding are left out.
"""

import json
import re

import numpy as np

from gptjax.config import DataConfig
from gptjax.data.tokenizers.base import END_OF_TEXT, Tokenizer, changed_probe, read_file, utf8
from gptjax.data.tokenizers.byte_level import GPT2_CUT, LLAMA_CUT, byte_of_character, chunks, to_bytes
from gptjax.errors import UserError, library

_END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")
# The splits of text into pieces of Llama 3 and Qwen 2, which differ in how many digits stay together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = (_WORDS % "{1,3}", _WORDS % "")


class HuggingFaceTokenizer(Tokenizer):
    kind = "hf"

    def __init__(self, definition: bytes):
        tokenizers = library("tokenizers", "the tokenizer 'hf' (a tokenizer.json)")
        fields = json.loads(definition)
        added = fields.get("added_tokens") or []
        special = {token["content"]: token["id"] for token in added if token["special"]}
        plain = [token for token in added if not token["special"]]
        spelling = _spellings(fields["model"]["vocab"], special, plain)
        if not any(name in special for name in _END_OF_TEXT_NAMES):
            special[END_OF_TEXT] = len(spelling)
            spelling.append(b"")
        special.setdefault(END_OF_TEXT, next(special[name] for name in _END_OF_TEXT_NAMES if name in special))
        super().__init__(spelling, special, definition)
        self._cut = None if plain else _cut(fields["pre_tokenizer"])
        left_out = {"post_processor": None, "truncation": None, "padding": None}
        self._library = tokenizers.Tokenizer.from_str(json.dumps(fields | left_out))
        self._library.encode_special_tokens = True  # as the text they are

    @classmethod
    def train(cls, config: DataConfig, documents) -> "HuggingFaceTokenizer":
        return cls.read(None)

    @classmethod
    def read(cls, path: str | None) -> "HuggingFaceTokenizer":
        if path is None:
            raise UserError("the tokenizer 'hf' is read from a file; give the path of a tokenizer.json.")
        from etils import epath

        where = epath.Path(path).expanduser()
        file = str(where / "tokenizer.json" if where.is_dir() else where)
        definition = read_file(file, "a Hugging Face tokenizer.json")
        _check(definition, file)
        try:
            tokenizer = cls(definition)
        except UserError:
            raise
        except Exception as error:  # `tokenizers` raises plain Exceptions
            raise UserError(f"{file} could not be loaded as a Hugging Face tokenizer: {error}") from error
        try:
            changed = changed_probe(tokenizer)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        if changed is not None:
            raise UserError(f"{file} changes a text it encodes, {changed!r}; expected a tokenizer that gives it back.")
        return tokenizer

    @classmethod
    def from_definition(cls, definition: bytes) -> "HuggingFaceTokenizer":
        return cls(definition)

    def encode(self, text: str) -> np.ndarray:
        """int32 [n]. Raises UserError: the tokens do not spell as many bytes as the text has."""
        size = len(utf8(text))
        parts = [text] if self._cut is None else chunks(text, self._cut)
        ids = np.concatenate([np.array(self._ids(part), np.int32) for part in parts])
        if (spelled := int(self.token_bytes[ids].sum())) != size:
            raise UserError(
                f"the tokenizer 'hf' changes this text of {size} bytes, of which its tokens spell {spelled};"
                " use a tokenizer that gives back every text, such as data.tokenizer='gpt2'."
            )
        return ids

    def _ids(self, text: str) -> list[int]:
        return self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids


def _spellings(vocab: dict[str, int], special: dict[str, int], plain: list[dict]) -> list[bytes]:
    """Of ids 0 to the largest; b"" where there is no token."""
    written = {token["id"]: token["content"].encode() for token in plain} | dict.fromkeys(special.values(), b"")
    table = {i: to_bytes(token) for token, i in vocab.items() if i not in written} | written
    return [table.get(i, b"") for i in range(max(table) + 1)]


def _check(definition: bytes, file: str) -> None:
    """Raises UserError: what a tokenizer.json has or lacks that byte-level BPE, true to the text, has not."""
    try:
        fields = json.loads(definition)
        model, added = fields["model"], fields.get("added_tokens") or []
        vocab, kind, normalizer = model["vocab"], model["type"], fields["normalizer"]
        _ = fields["pre_tokenizer"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a Hugging Face tokenizer.json ({type(error).__name__}: {error}).") from error
    if kind != "BPE":
        raise UserError(f"{file} is a model of type {kind!r}; expected byte-level BPE.")
    if normalizer is not None:
        raise UserError(
            f"{file} has a normalizer ({normalizer.get('type')}), which changes the text it encodes; expected none:"
            ' a file of another tokenizer, or this one with "normalizer": null where the text is normalised already.'
        )
    if model.get("dropout"):
        raise UserError(f"{file} drops merges at random (dropout={model['dropout']}); expected none.")
    ours = {token["content"] for token in added}
    foreign = next((t for t in vocab if t not in ours and not _writes_bytes(t)), None)
    if foreign is not None or not byte_of_character().keys() <= vocab.keys():
        what = f"{foreign!r} is no token of it" if foreign is not None else "tokens of single bytes are missing"
        raise UserError(
            f"{file} is not byte-level BPE: {what}; for a SentencePiece vocabulary give its .model file to"
            " data.tokenizer='sentencepiece'."
        )


def _writes_bytes(token: str) -> bool:
    try:
        to_bytes(token)
    except KeyError:
        return False
    return True


def _cut(pre_tokenizer: dict | None) -> re.Pattern | None:
    """Where `chunks` may cut; None: nowhere that is known, so that memory is in proportion to the text."""
    if pre_tokenizer is None:
        return None
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    like_gpt2 = any(step["type"] == "ByteLevel" and step["use_regex"] for step in steps)
    like_llama = any(_is_known_split(step) for step in steps)
    known = all(step["type"] in ("ByteLevel", "Digits") or _is_known_split(step) for step in steps)
    if not known or like_gpt2 == like_llama:
        return None
    return GPT2_CUT if like_gpt2 else LLAMA_CUT


def _is_known_split(step: dict) -> bool:
    return (
        step["type"] == "Split"
        and step["pattern"].get("Regex") in _SPLITS
        and step["behavior"] == "Isolated"
        and not step["invert"]
    )
