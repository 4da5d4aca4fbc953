"""What tokenizers have in common: spellings, special symbols, hashes."""

import abc
import concurrent.futures
import functools
import hashlib
import json

import numpy as np

from gptjax.config.fields import DataConfig
from gptjax.errors import UserError

END_OF_TEXT, START_OF_TEXT = "<|endoftext|>", "<|startoftext|>"
# Of text that a kind which is not gptjax's own must give back: spaces at both ends, none, and what normalisers change.
PROBES = (
    " \u00a0 Two  spaces\r\n\tﬁ ① e\u0301 \u2581 \U0001f600\0 ",
    "One''s ``12 345`` ÀÉ中文\n\n  x",
    "\u00c5\u212b\u0130",
)


class Tokenizer(abc.ABC):
    """`spelling[i]` is the UTF-8 that token i stands for, empty if it is special: then `special` has its name."""

    kind: str  # its key in text_kinds.TOKENIZERS
    sees_held_out_text = False  # while it is trained
    made_from_text = False  # rather than read from a file, or the same everywhere
    file: str | None = None  # what it may be read from, for messages; None: nothing
    needs_file = False  # whether it is only read
    invented_eot = False  # whether the last entry of `spelling` is an end-of-text that the definition did not have

    def __init__(self, spelling: list[bytes], special: dict[str, int], definition: bytes):
        self.spelling = spelling
        self.special = special  # name -> id
        self.definition = definition
        self.ends: tuple[int | None, int | None] | None = None  # of with_ends: (eot_id, bos_id)
        self.added: tuple[str, ...] = ()  # special symbols of with_special, the last ids
        self.strips: dict[str, tuple[bool, bool]] = {}  # special symbols that take in spaces before, and behind them

    @classmethod
    @abc.abstractmethod
    def train(cls, config: DataConfig, documents) -> "Tokenizer":
        """Made from the texts of documents. Raises UserError: this kind is not trained, or the text does not do."""

    @classmethod
    def settings(cls, config: DataConfig) -> dict:
        """JSON values that, beside the text, decide which tokenizer `train` gives."""
        return {}

    @classmethod
    @abc.abstractmethod
    def read(cls, path: str | None) -> "Tokenizer":
        """Made from the files of others at path; None: without any. Raises UserError: that is not to be had."""

    @classmethod
    @abc.abstractmethod
    def from_definition(cls, definition: bytes) -> "Tokenizer":
        """The tokenizer whose `definition` this is."""

    @abc.abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """int32 [n]. No special token among them, whatever the text. Raises UserError: text that has no UTF-8."""

    def encode_batch(self, texts: list[str], threads: int = 1) -> list[np.ndarray]:
        """encode of each text. All kinds but bytes and chars leave Python's lock, so that threads share the work."""
        if threads == 1:
            return [self.encode(text) for text in texts]
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.encode, texts))

    def decode(self, ids, special: bool = False) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD. Special tokens have no text, or show their names.

        Raises UserError: an id outside [0, vocab_size).
        """
        ids = np.asarray(ids, np.int64).reshape(-1)
        outside = ids[(ids < 0) | (ids >= self.vocab_size)]
        if outside.size:
            raise UserError(f"token id {outside[0]} is outside the vocabulary; expected 0 to {self.vocab_size - 1}.")
        name = {i: name.encode() for name, i in self.special.items()} if special else {}
        return b"".join(name.get(i, self.spelling[i]) for i in ids.tolist()).decode("utf-8", errors="replace")

    def with_special(self, names) -> "Tokenizer":
        """This tokenizer with special symbols of these names; those it lacks get the ids behind its vocabulary."""
        lacking = tuple(dict.fromkeys(name for name in names if name not in self.special))
        if not lacking:
            return self
        other = self._copy()
        other.added = self.added + lacking
        other.spelling = self.spelling + [b""] * len(lacking)
        other.special = self.special | {name: self.vocab_size + i for i, name in enumerate(lacking)}
        return other

    def with_ends(self, eot_id: int | None, bos_id: int | None) -> "Tokenizer":
        """This tokenizer for a model made elsewhere, whose documents end with eot_id and begin with bos_id; None: with
        nothing. Neither has a text then, whatever it had. Ids behind the vocabulary get entries."""
        assert not self.added
        other = self._copy()
        other.ends = (eot_id, bos_id)
        other.special = {name: i for name, i in self.special.items() if not self._stands_for_another(name)}
        other.spelling = self.spelling[:-1] if self.invented_eot else list(self.spelling)
        other.invented_eot = False
        for name, i in ((START_OF_TEXT, bos_id), (END_OF_TEXT, eot_id)):
            if i is None:
                continue
            other.spelling += [b""] * (i + 1 - len(other.spelling))
            other.spelling[i] = b""
            if i not in other.special.values():
                other.special[f"<|{i}|>" if name in other.special else name] = i
        if eot_id is not None:
            other.special.setdefault(END_OF_TEXT, eot_id)
        return other

    def _stands_for_another(self, name: str) -> bool:
        """Whether a name is ours for a symbol that the definition calls otherwise, or does not have."""
        same = [other for other, i in self.special.items() if i == self.special[name]]
        return name == END_OF_TEXT and (self.invented_eot or len(same) > 1)

    def _copy(self) -> "Tokenizer":
        other = object.__new__(type(self))  # copy.copy would build all anew, by __reduce__
        vars(other).update({name: value for name, value in vars(self).items() if name != "token_bytes"})  # cached
        return other

    @property
    def eot_id(self) -> int | None:
        """The id that ends a document; None: nothing does."""
        return self.special.get(END_OF_TEXT) if self.ends is None else self.ends[0]

    @property
    def bos_id(self) -> int | None:
        """The id that a document begins after: the end of the one before, but for models made elsewhere (with_ends)."""
        return self.eot_id if self.ends is None else self.ends[1]

    @property
    def vocab_size(self) -> int:
        return len(self.spelling)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [V]: UTF-8 bytes each token spells, 0 for special tokens."""
        return np.array([len(s) for s in self.spelling], np.int32)

    @property
    def base_hash(self) -> str:
        """Of the tokenizer without what with_special added: whatever text gives, it has the same tokens."""
        return definition_hash(self.kind, self.definition)

    @property
    def hash(self) -> str:
        if not self.added and self.ends is None:
            return self.base_hash
        ends = "" if self.ends is None else f" {json.dumps(self.ends)}"
        return hashlib.sha256(f"{self.base_hash}{ends} {json.dumps(self.added)}".encode()).hexdigest()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.kind}, {self.vocab_size:,} entries, {len(self.special)} of them special)"

    def __reduce__(self):
        return rebuilt, (type(self), self.definition, self.ends, self.added)  # what other libraries hold is not pickled


def rebuilt(kind: type[Tokenizer], definition: bytes, ends, added: tuple[str, ...]) -> Tokenizer:
    """The tokenizer that had these."""
    tokenizer = kind.from_definition(definition)
    return (tokenizer if ends is None else tokenizer.with_ends(*ends)).with_special(added)


def definition_hash(kind: str, definition: bytes) -> str:
    return hashlib.sha256(kind.encode() + b"\0" + definition).hexdigest()


def utf8(text: str, encoding: str = "utf-8") -> bytes:
    """text encoded. Raises UserError: it has half of a surrogate pair."""
    try:
        return text.encode(encoding)
    except UnicodeEncodeError as error:
        raise UserError(
            f"the text has U+{ord(text[error.start]):04X} at character {error.start}, half of a surrogate pair, which"
            " UTF-8 cannot hold; decode the text with errors='replace' first."
        ) from error


def changed_probe(tokenizer: Tokenizer) -> str | None:
    """The first of PROBES, or name of a special token, that encoding changes or miscounts the bytes of; None: none."""
    for text in (*PROBES, *tokenizer.special):
        ids = tokenizer.encode(text)
        if tokenizer.decode(ids) != text or tokenizer.token_bytes[ids].sum() != len(text.encode()):
            return text
    return None


def read_file(path: str, wanted: str) -> bytes:
    """The bytes of a file, local or gs://. Raises UserError: it does not exist; wanted says what was expected."""
    from etils import epath

    file = epath.Path(path).expanduser()
    if not file.exists():
        raise UserError(f"there is no {file}; expected {wanted}.")
    if file.is_dir():
        raise UserError(f"{file} is a folder; expected {wanted}.")
    return file.read_bytes()
