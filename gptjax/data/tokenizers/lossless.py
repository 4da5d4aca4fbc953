"""Whether a tokenizer.json gives back the texts it is given: asked of the tokenizer itself, with texts that would show it.

A normalizer that does nothing is seen by its form (DOES_NOTHING). Any other is tried on PROBES, on every character there
is, and on the strings that it says it replaces. One that no such text shows to act, a regular expression say, is taken:
`encode` compares every text with what its tokens spell, and refuses one that is changed.
"""

from gptjax.data.tokenizers.base import PROBES
from gptjax.data.tokenizers.byte_level import byte_of_character

# Of a normalizer's type: whether its fields, as the library writes them, leave every text as it is.
DOES_NOTHING = {
    "Replace": lambda n: n["pattern"].get("String") == n["content"],
    "Strip": lambda n: not (n["strip_left"] or n["strip_right"]),
    "BertNormalizer": lambda n: (
        not (n["clean_text"] or n["handle_chinese_chars"] or n["strip_accents"] or n["lowercase"])
    ),
}
# Bytes that no UTF-8 has (RFC 3629): two would begin what is too long, the others what lies beyond U+10FFFF.
NEVER = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))
# Bytes that a vocabulary may lack, as SmolLM2's does some: control characters that no printed text has, and what begins the
# characters of planes 4 to 11, of which Unicode assigns none. `encode` refuses a text with one that is lacking.
SELDOM = frozenset((*(b for b in range(1, 32) if b not in b"\t\n\r"), 0x7F, 0xF1, 0xF2))
_BLOCK = 1024  # characters


def acting(normalizer: dict | None) -> list[dict]:
    """The normalizers of a Sequence, or the one, that may change a text."""
    if normalizer is None:
        return []
    if normalizer["type"] == "Sequence":
        return [each for inner in normalizer["normalizers"] for each in acting(inner)]
    nothing = DOES_NOTHING.get(normalizer["type"])
    return [] if nothing is not None and nothing(normalizer) else [normalizer]


def changed_text(tokenizer, comes_back, lacking: list[int] = ()) -> str | None:
    """A text, as short as is easily found, that comes_back(text) says not to; None: there is none among those tried.
    lacking: bytes that the tokenizer is known to have no token for."""
    tried = [*PROBES, *tokenizer.special]
    normalizers = acting(tokenizer.normalizer)
    tried += [string for n in normalizers if (string := n.get("pattern", {}).get("String"))]
    blocks = _characters() if normalizers else ()
    texts = (_without(text, lacking) for texts in (tried, blocks) for text in texts)
    changed = next((text for text in texts if not comes_back(text)), None)
    return None if changed is None else _shortest(changed, comes_back)


def _without(text: str, lacking) -> str:
    """text without the characters that have such a byte."""
    return "".join(c for c in text if not any(b in lacking for b in c.encode())) if lacking else text


def _characters():
    """Every character, in texts of some."""
    for start in range(0, 0x110000, _BLOCK):
        if not 0xD800 <= start < 0xE000:  # halves of surrogate pairs are no characters
            yield "".join(map(chr, range(start, start + _BLOCK)))


def _shortest(text: str, comes_back) -> str:
    """A character or two of a changed text that are changed alone; else the text without what it does not need at its ends."""
    for size in (1, 2):
        for i in range(len(text) - size + 1):
            if not comes_back(text[i : i + size]):
                return text[i : i + size]
    while not comes_back(text[1:]):
        text = text[1:]
    while not comes_back(text[:-1]):
        text = text[:-1]
    return text


def lacking_bytes(vocab: dict[str, int]) -> list[int]:
    """The bytes of UTF-8 that have no token of their own."""
    return sorted(b for character, b in byte_of_character().items() if character not in vocab and b not in NEVER)


def difference(before: bytes, after: bytes) -> tuple[str, str]:
    """Of a text and of what its tokens spell, the parts around where they begin to differ."""
    same = next((i for i, (a, b) in enumerate(zip(before, after)) if a != b), min(len(before), len(after)))
    start = max(0, same - 12)
    return tuple(part[start : same + 24].decode(errors="replace") for part in (before, after))
