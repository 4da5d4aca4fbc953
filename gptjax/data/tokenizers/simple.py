"""Bytes, characters, and bare token ids: nothing to learn but which characters there are."""

import json

import numpy as np

from gptjax.config import bounds
from gptjax.config.fields import DataConfig
from gptjax.data.tokenizers.base import END_OF_TEXT, Tokenizer, utf8
from gptjax.errors import UserError, shorten


class ByteTokenizer(Tokenizer):
    """256 bytes and end-of-text. Nothing to train."""

    kind = "bytes"

    def __init__(self):
        super().__init__([bytes([b]) for b in range(256)] + [b""], {END_OF_TEXT: 256}, definition=b"")

    @classmethod
    def train(cls, config: DataConfig, documents) -> "ByteTokenizer":
        return cls()

    @classmethod
    def read(cls, path: str | None) -> "ByteTokenizer":
        if path is not None:
            raise UserError(
                f"the tokenizer 'bytes' is the same everywhere and is not read from {path}; set data.tokenizer="
                "'sentencepiece', 'gpt2' or 'hf' for a file of one, or data.tokenizer_path to None."
            )
        return cls()

    @classmethod
    def from_definition(cls, definition: bytes) -> "ByteTokenizer":
        return cls()

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(utf8(text), np.uint8).astype(np.int32)


class CharTokenizer(Tokenizer):
    """The characters of the whole text in code-point order, as in nanoGPT, and end-of-text if documents need parting.

    So tinyshakespeare, one document, has 65 entries. Characters it has not seen have no token.
    """

    kind = "chars"
    sees_held_out_text = True
    made_from_text = True

    def __init__(self, characters: str, has_eot: bool):
        definition = json.dumps({"characters": characters, "end_of_text": has_eot}).encode()
        spelling = [c.encode() for c in characters] + [b""] * has_eot
        super().__init__(spelling, {END_OF_TEXT: len(characters)} if has_eot else {}, definition)
        self._code_point = np.array([ord(c) for c in characters], np.uint32)

    @classmethod
    def train(cls, config: DataConfig, documents) -> "CharTokenizer":
        characters, count = set(), 0
        for text in documents:
            characters.update(text)
            count += 1
        return cls("".join(sorted(characters)), has_eot=count > 1)

    @classmethod
    def read(cls, path: str | None) -> "CharTokenizer":
        raise UserError(
            f"the tokenizer 'chars' is made from a text, not read{f' from {path}' if path else ''}; give the folder of a"
            " saved one, set data.tokenizer='sentencepiece', 'gpt2' or 'hf' for a file of one, or data.tokenizer_path"
            " to None."
        )

    @classmethod
    def from_definition(cls, definition: bytes) -> "CharTokenizer":
        fields = json.loads(definition)
        return cls(fields["characters"], fields["end_of_text"])

    def encode(self, text: str) -> np.ndarray:
        """int32 [n]. Raises UserError: a character that was not in the training text."""
        code_point = np.frombuffer(utf8(text, "utf-32-le"), np.uint32)
        token = np.searchsorted(self._code_point, code_point)
        beyond_unicode = np.uint32(0xFFFFFFFF)
        unknown = np.append(self._code_point, beyond_unicode)[token] != code_point
        if unknown.any():
            c = text[int(unknown.argmax())]
            raise UserError(
                f"the text has {c!r} (U+{ord(c):04X}), which is none of the {len(self._code_point)} characters that"
                " the tokenizer 'chars' was made from; leave it out, or train with data.tokenizer='bytes'."
            )
        return token.astype(np.int32)


class IdTokenizer(Tokenizer):
    """Token ids written out, as in " 464 3290": for models that came without their tokenizer. No text has tokens here."""

    kind = "ids"

    def __init__(self, vocab_size: int):
        definition = json.dumps({"vocab_size": vocab_size}).encode()
        super().__init__([f" {i}".encode() for i in range(vocab_size)], {}, definition)

    @classmethod
    def train(cls, config: DataConfig, documents) -> "IdTokenizer":
        return cls.read(None)

    @classmethod
    def read(cls, path: str | None) -> "IdTokenizer":
        raise UserError("the tokenizer 'ids' is of imported models that came without one; texts need one of their own.")

    @classmethod
    def from_definition(cls, definition: bytes) -> "IdTokenizer":
        return cls(json.loads(definition)["vocab_size"])

    def with_ends(self, eot_id: int | None, bos_id: int | None) -> "IdTokenizer":
        """bos_id is left out: a text is the ids that stand in it, no more and no fewer."""
        other = super().with_ends(eot_id, None)
        other.spelling = self.spelling
        return other

    def encode(self, text: str) -> np.ndarray:
        """int32 [n]. Raises UserError: a word that is no id."""
        words = text.split()
        ids = [bounds.whole_number(word) for word in words]
        wrong = next((word for word, i in zip(words, ids) if i is None or i >= self.vocab_size), None)
        if wrong is not None:
            raise UserError(
                f"{shorten(repr(wrong), 80)} is no token id: this model came without its tokenizer, so a text is ids from 0 to"
                f" {self.vocab_size - 1}, as in '464 3290'."
            )
        return np.array(ids, np.int32)
