"""What GPT-2's kind of byte-pair encoding shares: how vocabulary files write bytes, and where texts may be cut."""

import functools
import re

_CHUNK_CHARACTERS = 1 << 20  # some 50 MB in `tokenizers`, which is slower by a third at 1 << 14
# Where a split always parts pieces, looking neither back across nor ahead beyond. GPT-2's: before spaces and line ends
# that follow something else. Llama 3's and Qwen 2's, which leave line ends with punctuation: before such spaces, and
# between a line end and what begins a line.
GPT2_CUT = re.compile(r"(?<=\S)(?=[ \n])")
LLAMA_CUT = re.compile(r"(?<=\S)(?= )|(?<=\n)(?=\S)")


def chunks(text: str, cut: re.Pattern) -> list[str]:
    """text in parts, so that memory stays bounded, whose tokens are those of the whole; a run without a cut is one."""
    parts, start = [], 0
    while len(text) - start > _CHUNK_CHARACTERS:
        found = cut.search(text, start + _CHUNK_CHARACTERS)
        if found is None:
            break
        parts.append(text[start : found.start()])
        start = found.start()
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
