"""SentencePiece: byte-pair encoding with byte fallback and no normalisation, trained here or elsewhere."""

import collections
import io
import itertools
import re

import numpy as np

from gptjax.config.fields import DataConfig
from gptjax.data.tokenizers import sentencepiece_json
from gptjax.data.tokenizers.base import END_OF_TEXT, Tokenizer, changed_probe, read_file, utf8
from gptjax.errors import UserError

# SentencePiece needs memory in proportion to a call's text. Pieces begin with a space or have none, so that cutting
# where a word ends gives the tokens of the uncut text.
_CHUNK = re.compile(r"(?s).{1,65536}(?:(?<! )(?= )|\Z)|.{1,65536}")
# The character SentencePiece writes for a space; a real one in the text is spelled in bytes.
_SPACE_MARK = "\u2581"
# SentencePiece drops, without a word, training lines with this character, and those over 4192 bytes.
_DROPS_A_LINE = "\u2585"
_TRAINING_LINE = 1000  # characters, 4000 bytes at most


class SentencePieceTokenizer(Tokenizer):
    """Byte-pair encoding with byte fallback and no normalisation. The definition is SentencePiece's model file."""

    kind = "sentencepiece"
    made_from_text = True
    file = "a .model file or tokenizer.json"

    def __init__(self, model: bytes):
        import sentencepiece

        self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        special = {self._model.id_to_piece(i): i for i in range(len(self._model)) if self._model.is_control(i)}
        if END_OF_TEXT not in special and self._model.eos_id() >= 0:  # a model made elsewhere
            special[END_OF_TEXT] = self._model.eos_id()
        super().__init__([_spelling(self._model, i) for i in range(len(self._model))], special, model)
        self._space_mark_ids = np.array(
            [self._model.piece_to_id(f"<0x{b:02X}>") for b in _SPACE_MARK.encode()], np.int32
        )

    @classmethod
    def train(cls, config: DataConfig, documents) -> "SentencePieceTokenizer":
        """A model of the first config.TRAIN_BYTES of documents. The same text gives the same, byte for byte."""
        lines = list(training_lines(documents, config.TRAIN_BYTES))
        return cls(train_model(lines, config.tokenizer_vocab_size))

    @classmethod
    def settings(cls, config: DataConfig) -> dict:
        return {"vocab_size": config.tokenizer_vocab_size, "train_bytes": config.TRAIN_BYTES}

    @classmethod
    def read(cls, path: str | None) -> "SentencePieceTokenizer":
        if path is None:
            raise UserError(
                "the tokenizer 'sentencepiece' is trained or read; give the PATH of a .model file, or of a folder that"
                " gptjax tokenizer train wrote."
            )
        content = read_file(path, "a SentencePiece .model file, or a folder that a tokenizer was saved in")
        if content[:1] == b"{":  # a tokenizer.json: a model file begins with the number of its first field
            content = sentencepiece_json.as_model(content, path)
        return cls.checked(content, path)

    @classmethod
    def checked(cls, model: bytes, file: str) -> "SentencePieceTokenizer":
        """The tokenizer of a file's content. Raises UserError: it is of another kind, or changes texts."""
        try:
            tokenizer = cls(model)
        except RuntimeError as error:
            raise UserError(f"{file} is not a SentencePiece model; expected the .model file of one.") from error
        if changed_probe(tokenizer) is not None:
            raise UserError(
                f"{file} changes the text it encodes; expected a model trained with byte_fallback=true,"
                " normalization_rule_name=identity, add_dummy_prefix=false and remove_extra_whitespaces=false."
            )
        return tokenizer

    @classmethod
    def from_definition(cls, definition: bytes) -> "SentencePieceTokenizer":
        return cls(definition)

    def encode(self, text: str) -> np.ndarray:
        utf8(text)
        parts = [np.zeros(0, np.int32)]
        for i, span in enumerate(text.split(_SPACE_MARK)):
            parts += [self._space_mark_ids] if i else []
            # arrays, as Python's numbers take ten times their memory
            parts += [np.array(self._model.encode(match[0]), np.int32) for match in _CHUNK.finditer(span)]
        return np.concatenate(parts)


def _spelling(model, i: int) -> bytes:
    if model.is_control(i) or model.is_unknown(i) or model.is_unused(i):
        return b""
    piece = model.id_to_piece(i)
    return bytes([int(piece[3:5], 16)]) if model.is_byte(i) else piece.replace(_SPACE_MARK, " ").encode()


def training_lines(documents, max_bytes: int):
    """The first max_bytes of documents, to the nearest line, in pieces short enough for SentencePiece."""
    size = 0
    for text in documents:
        text = text.replace(_DROPS_A_LINE, " ")
        for start in range(0, len(text), _TRAINING_LINE):
            line = text[start : start + _TRAINING_LINE]
            size += len(line.encode())
            if size > max_bytes:
                return
            yield line


def train_model(
    lines: list[str],
    vocab_size: int,
    symbols: tuple[str, ...] = (),
    split_digits: bool = False,
    character_coverage: float | None = None,
    key: str = "data.tokenizer_vocab_size",
) -> bytes:
    """A model file. symbols: special ones beside end-of-text. split_digits: no token has more than one digit.

    character_coverage: the part of the text whose characters get an entry; None: see _character_coverage. key: of
    vocab_size, in errors.
    Raises UserError: a vocabulary too large or too small for the text.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage or _character_coverage(lines, vocab_size),
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            control_symbols=[END_OF_TEXT, *symbols],  # user_defined_symbols could be spelled by a text
            unk_id=0,  # SentencePiece wants one; with byte fallback it never occurs
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
            **({"split_digits": True} if split_digits else {}),  # a model file keeps what was said, even a default
        )
    except RuntimeError as error:
        raise _training_error(str(error), f"{key}={vocab_size}") from error
    return model.getvalue()


def _character_coverage(lines: list[str], vocab_size: int) -> float:
    """The part of the text whose characters get an entry: .9995, or what half of the entries can hold.

    Chinese has more characters than a small vocabulary has room for; the rare ones are spelled in bytes.
    SentencePiece takes nothing under .98.
    """
    count = collections.Counter(itertools.chain.from_iterable(lines))
    kept = [n for _, n in count.most_common(max(0, vocab_size - 258) // 2)]
    return min(0.9995, max(0.98, sum(kept) / max(1, count.total())))


def _training_error(message: str, key: str) -> UserError:
    if high := re.search(r"value <= (\d+)", message):
        return UserError(f"{key} is too large for this text; use {high[1]} at most, or data.tokenizer='bytes'.")
    if low := re.search(r"(\d+) vs (\d+)", message):
        return UserError(f"{key} is too small for the characters of this text; use at least {low[2]}.")
    if "sentences_.empty()" in message:
        return UserError(f"there is no text to train a tokenizer of {key} on; use data.tokenizer='bytes'.")
    return UserError(f"SentencePiece could not train a tokenizer of {key}: {message}")
