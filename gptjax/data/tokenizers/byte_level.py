"""What GPT-2's kind of byte-pair encoding shares: how vocabulary files write bytes, and where texts may be cut."""

import functools
import re

_CHUNK_CHARACTERS = 1 << 14  # larger ones are no faster, and those of `tokenizers` slower
_CUT = re.compile(r"(?<=\S)[ \n]")


def chunks(text: str) -> list[str]:
    """text, cut before spaces and line ends that follow something else; a run without any stays whole.

    Memory is bounded so. A pre-tokenizer of GPT-2's family always parts pieces there, and looks neither back across
    nor ahead beyond: the tokens are those of the whole text.
    """
    parts, start = [], 0
    while len(text) - start > _CHUNK_CHARACTERS:
        cut = _CUT.search(text, start + _CHUNK_CHARACTERS)
        if cut is None:
            break
        parts.append(text[start : cut.start()])
        start = cut.start()
    return [*parts, text[start:]]


@functools.cache
def byte_of_character() -> dict[str, int]:
    """Printable Latin-1 characters write their own bytes; the other bytes, in order, U+0100 and what follows."""
    own = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    others = [b for b in range(256) if b not in own]
    return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(others)}


def to_bytes(token: str) -> bytes:
    """The bytes that the characters of a token write. Raises KeyError: one of them writes none."""
    table = byte_of_character()
    return bytes([table[c] for c in token])
