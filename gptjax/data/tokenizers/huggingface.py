"""Byte-level BPE from a Hugging Face tokenizer.json, by `tokenizers`. The definition is that file.

Only what gives back the text it was given is taken (lossless.py). Fields that the format lets be absent have the
library's defaults. Of the file's added tokens the special ones are never matched in a text; templates, truncation and
padding are left out. A folder may have vocab.json and merges.txt instead (merges.py).
"""

import contextlib
import itertools
import json
import re

import numpy as np

from gptjax.config.extras import library
from gptjax.config.fields import DataConfig
from gptjax.data.tokenizers import lossless, merges
from gptjax.data.tokenizers.base import END_OF_TEXT, Tokenizer, read_file, utf8
from gptjax.data.tokenizers.byte_level import GPT2_CUT, LLAMA_CUT, chunks, to_bytes
from gptjax.errors import UserError, first_line

_END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>")
# The splits of text into pieces of Llama 3 and Qwen 2, which differ in how many digits stay together.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_SPLIT, QWEN_SPLIT = _WORDS % "{1,3}", _WORDS % ""
_WHOLE = (("Isolated", False), ("Removed", True))  # behavior, invert: alike for these, which match every character


class HuggingFaceTokenizer(Tokenizer):
    """The byte-level byte-pair encoding that a tokenizer.json of Hugging Face holds."""

    kind = "hf"
    file = "a tokenizer.json"
    needs_file = True

    def __init__(self, definition: bytes):
        fields = json.loads(definition)
        self._library = _loaded(definition)
        self._library.post_processor = None
        self._library.no_truncation()
        self._library.no_padding()
        self._library.encode_special_tokens = True  # as the text they are
        added = self._library.get_added_tokens_decoder()  # with the ids that count, which the file's may not be
        special = {token.content: i for i, token in added.items() if token.special}
        plain = {token.content: i for i, token in added.items() if not token.special}
        spelling = _spellings(fields["model"]["vocab"], special, plain)
        self.invented_eot = not any(name in special for name in _END_OF_TEXT_NAMES)
        if self.invented_eot:
            special[END_OF_TEXT] = len(spelling)
            spelling.append(b"")
        special.setdefault(END_OF_TEXT, next(special[name] for name in _END_OF_TEXT_NAMES if name in special))
        super().__init__(spelling, special, definition)
        stripping = [token for token in added.values() if token.special and (token.lstrip or token.rstrip)]
        self.strips = {token.content: (token.lstrip, token.rstrip) for token in stripping}
        steps = _with_defaults(fields)
        self.normalizer = steps["normalizer"]  # as the library writes it
        self._cut = None if plain or lossless.acting(self.normalizer) else _cut(steps["pre_tokenizer"])

    @classmethod
    def train(cls, config: DataConfig, documents) -> "HuggingFaceTokenizer":
        return cls.read(None)

    @classmethod
    def read(cls, path: str | None) -> "HuggingFaceTokenizer":
        if path is None:
            raise UserError("the tokenizer 'hf' is read from a file; give the path of a tokenizer.json.")
        from etils import epath

        where = epath.Path(path).expanduser()
        file = where / "tokenizer.json" if where.is_dir() else where
        if where.is_dir() and not file.exists() and (names := merges.names_in(where)):
            file, definition = where / names[0], merges.as_tokenizer_json(where)
        else:
            definition = read_file(str(file), "a Hugging Face tokenizer.json")
        return cls.checked(definition, str(file))

    @classmethod
    def checked(cls, definition: bytes, file: str) -> "HuggingFaceTokenizer":
        """The tokenizer of a file's content. Raises UserError: it is of another kind, or changes texts."""
        _check(definition, file)
        try:
            tokenizer = cls(definition)
            lacking = lossless.lacking_bytes(json.loads(definition)["model"]["vocab"])
            changed = lossless.changed_text(tokenizer, tokenizer._gives_back, lacking)
        except UserError as error:
            raise UserError(f"{file}: {error}") from error
        if changed is not None:
            back = tokenizer.decode(tokenizer._ids(changed))
            or_so = ', or this one with "normalizer": null for text that is normalised already'
            raise UserError(
                f"{file} changes a text it encodes{_by_what(tokenizer)}: {changed!a} comes back as {back!a}; expected a"
                f" tokenizer that gives back every text{or_so if lossless.acting(tokenizer.normalizer) else ''}"
                f"{_hint(json.loads(definition)['model'])}."
            )
        return tokenizer

    @classmethod
    def from_definition(cls, definition: bytes) -> "HuggingFaceTokenizer":
        return cls(definition)

    def encode(self, text: str) -> np.ndarray:
        """int32 [n]. Raises UserError: the tokens do not spell the text."""
        before = utf8(text)
        parts = [text] if self._cut is None else chunks(text, self._cut)
        ids = [self._ids(part) for part in parts]
        after = self._spelled(itertools.chain.from_iterable(ids))
        if after != before:
            before, after = lossless.difference(before, after)
            raise UserError(
                f"the tokenizer 'hf' changes this text{_by_what(self)}: of {before!a} it makes {after!a}; use a tokenizer"
                " that gives back every text, such as data.tokenizer='gpt2'."
            )
        return np.concatenate([np.array(of_part, np.int32) for of_part in ids])

    def _ids(self, text: str) -> list[int]:
        with _panics(f"a text of {len(text)} characters"):
            return self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def _spelled(self, ids) -> bytes:
        return b"".join(map(self.spelling.__getitem__, ids))

    def _gives_back(self, text: str) -> bool:
        return self._spelled(self._ids(text)) == text.encode()


def _loaded(definition: bytes):
    """The library's tokenizer. Raises UserError: it is not installed, or refuses the file."""
    tokenizers = library("tokenizers", "the tokenizer 'hf' (a tokenizer.json)")
    try:
        with _panics("the file"):
            return tokenizers.Tokenizer.from_buffer(definition)
    except UserError:
        raise
    except Exception as error:  # it raises plain Exceptions
        raise UserError(f"it could not be loaded as a Hugging Face tokenizer: {first_line(error)}.") from error


@contextlib.contextmanager
def _panics(over: str):
    """Turns a panic of the library, which is no Exception, into a UserError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UserError(
            f"the library tokenizers broke down over {over} ({first_line(error)}); use another tokenizer."
        ) from error


def _with_defaults(fields: dict) -> dict:
    """normalizer and pre_tokenizer with all of their fields, as the library writes them."""
    steps = {name: fields[name] for name in ("normalizer", "pre_tokenizer") if name in fields}
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    return json.loads(_loaded(json.dumps(steps | {"model": empty}).encode()).to_str())


def _spellings(vocab: dict[str, int], special: dict[str, int], plain: dict[str, int]) -> list[bytes]:
    """Of ids 0 to the largest; b"" where there is no token."""
    written = {i: name.encode() for name, i in plain.items()} | dict.fromkeys(special.values(), b"")
    table = {i: _spelled_by(token) for token, i in vocab.items() if i not in written} | written
    return [table.get(i, b"") for i in range(max(table) + 1)]


def _spelled_by(token: str) -> bytes:
    """The bytes that a token's characters write; one that writes none is what it says, as in the library's decoder."""
    try:
        return to_bytes(token)
    except KeyError:
        return token.encode()


def _by_what(tokenizer: HuggingFaceTokenizer) -> str:
    names = ", ".join(normalizer["type"] for normalizer in lossless.acting(tokenizer.normalizer))
    return f" (its normalizer is {names})" if names else ""


def _check(definition: bytes, file: str) -> None:
    """Raises UserError: what a tokenizer.json has or lacks that byte-level BPE, true to the text, has not."""
    try:
        fields = json.loads(definition)
        model = fields["model"]
        vocab, is_bpe = model["vocab"], model.get("type", "BPE") == "BPE" and "merges" in model
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is not a Hugging Face tokenizer.json ({type(error).__name__}: {error}).") from error
    if not is_bpe or not isinstance(vocab, dict):
        kind = f"of type {model['type']!r}" if model.get("type", "BPE") != "BPE" else "without merges"
        raise UserError(f"{file} is a model {kind}; expected byte-level BPE.")
    if model.get("dropout"):
        raise UserError(f"{file} drops merges at random (dropout={model['dropout']}); expected none.")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise UserError(
                f"{file} marks parts of words ({name}={model[name]!r}); expected byte-level BPE, which does not."
            )
    if lacking := [b for b in lossless.lacking_bytes(vocab) if b not in lossless.SELDOM]:
        raise UserError(
            f"{file} is not byte-level BPE: it has no token for byte 0x{lacking[0]:02X}"
            f"{f' and {len(lacking) - 1} more' if len(lacking) > 1 else ''}; expected one for each that UTF-8"
            f" has{_hint(model)}."
        )


def _hint(model: dict) -> str:
    """What to do with a vocabulary that is SentencePiece's."""
    marked = next((token for token in model["vocab"] if token.startswith("\u2581")), None)
    if not model.get("byte_fallback") and marked is None:
        return ""
    sign = "bytes written out" if marked is None else repr(marked)
    return f"; with {sign} it looks like a SentencePiece vocabulary: give its .model file to data.tokenizer='sentencepiece'"


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
        and step["pattern"].get("Regex") in (LLAMA_SPLIT, QWEN_SPLIT)
        and (step["behavior"], step["invert"]) in _WHOLE
    )
