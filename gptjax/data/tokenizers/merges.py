"""Byte-level BPE in two files, as GPT-2 came and as `save_model` of Hugging Face's `tokenizers` writes it: tokens by
number, and merges in their order. Vocabularies of one's own number special tokens first, and bytes as they like."""

import json

from gptjax.data.tokenizers import library_json
from gptjax.data.tokenizers.base import END_OF_TEXT
from gptjax.errors import UserError

NAMES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))  # OpenAI's names, Hugging Face's
_ADDED = "added_tokens.json"  # beside Hugging Face's: names and ids of what was added to the vocabulary


def names_in(folder) -> tuple[str, str] | None:
    """The names of the two files that a folder (of etils.epath) has; None: it has not both."""
    return next((names for names in NAMES if all((folder / name).exists() for name in names)), None)


def lines(folder, name: str) -> list[tuple[int, str]]:
    """(line number, merge) of a file of merges, without its head and empty lines."""
    numbered = enumerate((folder / name).read_bytes().decode(errors="replace").split("\n"), start=1)
    return [(n, line.rstrip("\r")) for n, line in numbered if line.strip("\r") and not line.startswith("#version")]


def as_tokenizer_json(folder) -> bytes:
    """The two files of a folder, with what added_tokens.json adds, as one tokenizer.json with the same ids.

    Tokens of several characters that no merge makes come from no text: they are the special ones. Raises UserError:
    files that are not of one vocabulary.
    """
    vocabulary, merges = names_in(folder)
    vocab = _numbers(folder / vocabulary)
    pairs = [_pair(folder / merges, n, line, vocab, vocabulary) for n, line in lines(folder, merges)]
    made = {a + b for a, b in pairs}
    special = {name: i for name, i in vocab.items() if len(name) > 1 and name not in made}
    if (folder / _ADDED).exists():
        special |= _numbers(folder / _ADDED)
    if END_OF_TEXT in vocab:
        special.setdefault(END_OF_TEXT, vocab[END_OF_TEXT])
    beyond = sorted(i for name, i in special.items() if name not in vocab)
    if beyond != list(range(len(vocab), len(vocab) + len(beyond))) or sorted(vocab.values()) != list(range(len(vocab))):
        raise UserError(
            f"{folder}: {vocabulary}{f' and {_ADDED}' if beyond else ''} do not number their tokens from 0 on without a"
            " gap, each once; give a tokenizer.json, which says what it means."
        )
    return library_json.tokenizer_json(special, library_json.bpe(vocab, pairs), library_json.BYTE_LEVEL)


def _numbers(file) -> dict[str, int]:
    try:
        numbers = json.loads(file.read_bytes())
        wrong = next((name for name, i in numbers.items() if type(i) is not int), None)
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is not numbered tokens ({error}); copy the file again.") from error
    if wrong is not None:
        raise UserError(f"{file} gives {wrong[:40]!r} the number {numbers[wrong]!r}; expected whole numbers.")
    return numbers


def _pair(file, n: int, line: str, vocab: dict[str, int], vocabulary: str) -> tuple[str, str]:
    parts = line.split(" ")
    lacking = next((part for part in [*parts, "".join(parts)] if part not in vocab), None)
    if len(parts) != 2 or lacking is not None:
        what = "is not two tokens" if len(parts) != 2 else f"has {lacking[:40]!r}, which {vocabulary} lacks"
        raise UserError(f"{file}, line {n}: {line[:40]!r} {what}; the two files are not of one vocabulary.")
    return parts[0], parts[1]
