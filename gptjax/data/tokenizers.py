"""Text to tokens and back: bytes, characters, or a SentencePiece model trained on the run's own text.

All of them are lossless on any text: `decode(encode(text)) == text`, and the tokens' byte counts add up to the
text's, which is what bits per byte needs. No text can spell a special token: only the data pipeline adds those.

A tokenizer is its `definition`, the bytes it is rebuilt from. `hash` is theirs, and goes wherever tokens go.
"""

import abc
import collections
import functools
import hashlib
import io
import itertools
import json
import re

import numpy as np

from gptjax.config import DataConfig
from gptjax.errors import UserError, choose

END_OF_TEXT = "<|endoftext|>"


class Tokenizer(abc.ABC):
    """What the kinds have in common. `spelling[i]` is the UTF-8 that token i stands for, empty if it is special."""

    kind: str
    sees_held_out_text = False  # while it is trained

    def __init__(self, spelling: list[bytes], eot_id: int | None, definition: bytes):
        self.spelling = spelling
        self.eot_id = eot_id
        self.definition = definition

    @classmethod
    @abc.abstractmethod
    def train(cls, config: DataConfig, documents) -> "Tokenizer":
        """Made from the texts of documents."""

    @classmethod
    @abc.abstractmethod
    def from_definition(cls, definition: bytes) -> "Tokenizer":
        """The tokenizer whose `definition` this is."""

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """int32 [n]. No special token among them, whatever the text. Raises UserError: text that has no UTF-8."""

    def decode(self, ids) -> str:
        """The text of ids; special tokens have none, bytes that are no UTF-8 become U+FFFD.

        Raises UserError: an id outside [0, vocab_size).
        """
        ids = np.asarray(ids, np.int64).reshape(-1)
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if outside.size:
            raise UserError(f"token id {outside[0]} is outside the vocabulary; expected 0 to {self.vocab_size - 1}.")
        return b"".join(self.spelling[i] for i in ids.tolist()).decode("utf-8", errors="replace")

    @property
    def vocab_size(self) -> int:
        return len(self.spelling)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [V]: UTF-8 bytes each token spells, 0 for special tokens."""
        return np.array([len(s) for s in self.spelling], np.int32)

    @functools.cached_property
    def hash(self) -> str:
        return _hash(self.kind, self.definition)


class ByteTokenizer(Tokenizer):
    """256 bytes and end-of-text. Nothing to train."""

    kind = "bytes"

    def __init__(self):
        super().__init__([bytes([b]) for b in range(256)] + [b""], eot_id=256, definition=b"")

    @classmethod
    def train(cls, config: DataConfig, documents) -> "ByteTokenizer":
        return cls()

    @classmethod
    def from_definition(cls, definition: bytes) -> "ByteTokenizer":
        return cls()

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(_utf8(text), np.uint8).astype(np.int32)


class CharTokenizer(Tokenizer):
    """The characters of the whole text in code-point order, as in nanoGPT, and end-of-text if documents need parting.

    So tinyshakespeare, one document, has 65 entries. Characters it has not seen have no token.
    """

    kind = "chars"
    sees_held_out_text = True

    def __init__(self, characters: str, has_eot: bool):
        definition = json.dumps({"characters": characters, "end_of_text": has_eot}).encode()
        spelling = [c.encode() for c in characters] + [b""] * has_eot
        super().__init__(spelling, len(characters) if has_eot else None, definition)
        self._code_point = np.array([ord(c) for c in characters], np.uint32)

    @classmethod
    def train(cls, config: DataConfig, documents) -> "CharTokenizer":
        characters, count = set(), 0
        for count, text in enumerate(documents, start=1):
            characters.update(text)
        return cls("".join(sorted(characters)), has_eot=count > 1)

    @classmethod
    def from_definition(cls, definition: bytes) -> "CharTokenizer":
        fields = json.loads(definition)
        return cls(fields["characters"], fields["end_of_text"])

    def encode(self, text: str) -> np.ndarray:
        """int32 [n]. Raises UserError: a character that was not in the training text."""
        code_point = np.frombuffer(_utf8(text, "utf-32-le"), np.uint32)
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

    def __init__(self, model: bytes):
        import sentencepiece

        self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        eot_id = self._model.piece_to_id(END_OF_TEXT)
        if not self._model.is_control(eot_id):  # a model made elsewhere
            eot_id = self._model.eos_id() if self._model.eos_id() >= 0 else None
        super().__init__([_spelling(self._model, i) for i in range(len(self._model))], eot_id, model)
        self._space_mark_ids = [self._model.piece_to_id(f"<0x{b:02X}>") for b in _SPACE_MARK.encode()]

    @classmethod
    def train(cls, config: DataConfig, documents) -> "SentencePieceTokenizer":
        """A model of the first data.tokenizer_train_bytes of documents, or the one at data.tokenizer_path.

        The same text gives the same model, byte for byte.
        """
        if config.tokenizer_path is not None:
            return cls._read(config.tokenizer_path)
        lines = list(_training_lines(documents, config.tokenizer_train_bytes))
        return cls(_train_sentencepiece(lines, config.tokenizer_vocab_size))

    @classmethod
    def from_definition(cls, definition: bytes) -> "SentencePieceTokenizer":
        return cls(definition)

    @classmethod
    def _read(cls, path: str) -> "SentencePieceTokenizer":
        key = f"data.tokenizer_path={path}"
        model = read_model(path)
        try:
            tokenizer = cls(model)
        except RuntimeError as error:
            raise UserError(f"{key} is not a SentencePiece model; expected the .model file of one.") from error
        probe = " \u00a0 Two  spaces\r\n\tﬁ ① e\u0301 \u2581 \U0001f600\0 "
        if tokenizer.decode(tokenizer.encode(probe)) != probe:
            raise UserError(
                f"{key} changes the text it encodes; expected a model trained with byte_fallback=true,"
                " normalization_rule_name=identity, add_dummy_prefix=false and remove_extra_whitespaces=false."
            )
        return tokenizer

    def encode(self, text: str) -> np.ndarray:
        _utf8(text)
        ids = []
        for i, span in enumerate(text.split(_SPACE_MARK)):
            ids += self._space_mark_ids if i else []
            for chunk in _CHUNK.findall(span):
                ids += self._model.encode(chunk)
        return np.array(ids, np.int32)


TOKENIZERS = {kind.kind: kind for kind in (ByteTokenizer, CharTokenizer, SentencePieceTokenizer)}


def train_tokenizer(config: DataConfig, documents) -> Tokenizer:
    """The tokenizer that config names, made from an iterable of documents (which some kinds don't read).

    Raises UserError: an unknown kind, too little text for data.tokenizer_vocab_size, an unusable data.tokenizer_path.
    """
    return tokenizer_class(config).train(config, documents)


def tokenizer_class(config: DataConfig) -> type[Tokenizer]:
    """Raises UserError: an unknown kind, or data.tokenizer_path for a kind that has no use for it."""
    kind = choose(TOKENIZERS, config.tokenizer or "sentencepiece", "data.tokenizer")
    if config.tokenizer_path is not None and kind is not SentencePieceTokenizer:
        raise UserError(
            f"data.tokenizer_path={config.tokenizer_path} is a SentencePiece model, but data.tokenizer="
            f"{config.tokenizer!r}; set data.tokenizer='sentencepiece', or data.tokenizer_path to None."
        )
    return kind


def tokenizer_settings(config: DataConfig) -> dict:
    """What, beside the text, decides which tokenizer train_tokenizer gives. Raises as tokenizer_class."""
    settings = {"kind": config.tokenizer or "sentencepiece"}
    if tokenizer_class(config) is not SentencePieceTokenizer:
        return settings
    if config.tokenizer_path is not None:
        return settings | {"model": hashlib.sha256(read_model(config.tokenizer_path)).hexdigest()}
    return settings | {"vocab_size": config.tokenizer_vocab_size, "train_bytes": config.tokenizer_train_bytes}


def save_tokenizer(tokenizer: Tokenizer, folder) -> None:
    """Writes tokenizer.json (kind, hash, sizes) and tokenizer.model (the definition). folder may be gs://."""
    from etils import epath

    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    summary = {
        "kind": tokenizer.kind,
        "hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "eot_id": tokenizer.eot_id,
    }
    (folder / "tokenizer.model").write_bytes(tokenizer.definition)
    (folder / "tokenizer.json").write_text(json.dumps(summary, indent=2) + "\n")


def load_tokenizer(folder) -> Tokenizer:
    """What save_tokenizer wrote. Raises UserError: files missing, or altered since."""
    from etils import epath

    folder = epath.Path(folder)
    for name in ("tokenizer.json", "tokenizer.model"):
        if not (folder / name).exists():
            raise UserError(f"{folder} has no {name}; expected a folder that a tokenizer was saved in.")
    try:
        summary = json.loads((folder / "tokenizer.json").read_text())
        kind, wanted = summary["kind"], summary["hash"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/tokenizer.json was altered: {error!r}; restore the file.") from error
    kind = choose(TOKENIZERS, kind, f"{folder}/tokenizer.json: kind")
    definition = (folder / "tokenizer.model").read_bytes()
    if _hash(kind.kind, definition) != wanted:
        raise UserError(f"{folder}/tokenizer.model was altered: its hash is not {wanted}; restore the file.")
    return kind.from_definition(definition)


def read_model(path: str) -> bytes:
    """The SentencePiece model at path, a file or a folder that save_tokenizer wrote."""
    from etils import epath

    file = epath.Path(path)
    file = file / "tokenizer.model" if file.is_dir() else file
    if not file.exists():
        raise UserError(f"data.tokenizer_path={path}: there is no {file}; expected a SentencePiece .model file.")
    return file.read_bytes()


def _hash(kind: str, definition: bytes) -> str:
    return hashlib.sha256(kind.encode() + b"\0" + definition).hexdigest()


def _utf8(text: str, encoding: str = "utf-8") -> bytes:
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text has U+{ord(text[error.start]):04X} at character {error.start}, half of a surrogate pair, which"
            " UTF-8 cannot hold; decode the text with errors='replace' first."
        ) from error


def _spelling(model, i: int) -> bytes:
    if model.is_control(i) or model.is_unknown(i) or model.is_unused(i):
        return b""
    piece = model.id_to_piece(i)
    return bytes([int(piece[3:5], 16)]) if model.is_byte(i) else piece.replace(_SPACE_MARK, " ").encode()


def _training_lines(documents, max_bytes: int):
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


def _train_sentencepiece(lines: list[str], vocab_size: int) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=_character_coverage(lines, vocab_size),
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            control_symbols=[END_OF_TEXT],  # user_defined_symbols could be spelled by a text
            unk_id=0,  # SentencePiece wants one; with byte fallback it never occurs
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _training_error(str(error), vocab_size) from error
    return model.getvalue()


def _character_coverage(lines: list[str], vocab_size: int) -> float:
    """The part of the text whose characters get an entry: .9995, or what half of the entries can hold.

    Chinese has more characters than a small vocabulary has room for; the rare ones are spelled in bytes.
    SentencePiece takes nothing under .98.
    """
    count = collections.Counter(itertools.chain.from_iterable(lines))
    kept = [n for _, n in count.most_common(max(0, vocab_size - 258) // 2)]
    return min(0.9995, max(0.98, sum(kept) / max(1, count.total())))


def _training_error(message: str, vocab_size: int) -> UserError:
    key = f"data.tokenizer_vocab_size={vocab_size}"
    if high := re.search(r"value <= (\d+)", message):
        return UserError(f"{key} is too large for this text; use {high[1]} at most, or data.tokenizer='bytes'.")
    if low := re.search(r"(\d+) vs (\d+)", message):
        return UserError(f"{key} is too small for the characters of this text; use at least {low[2]}.")
    if "sentences_.empty()" in message:
        return UserError(f"there is no text to train a tokenizer of {key} on; use data.tokenizer='bytes'.")
    return UserError(f"SentencePiece could not train a tokenizer of {key}: {message}")
