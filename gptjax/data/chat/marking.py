"""The text of messages kept from spelling a control token of a template.

A template mixes its own text, in which names of control tokens are these tokens, with the text of messages, in which they
are not. So a mark, which no text has, is put before every name that a message spells, and before what could become one
with the text behind or before it. The character behind a mark begins and ends no control token, and the mark is taken out
when it is read. It stands before names only: a template may trim spaces or look at words as it does for transformers.
"""

import functools
import re
from collections.abc import Iterator

from gptjax.data.chat.base import Piece


class Names:
    """Names of control tokens, with what texts are compared with. Made once for a tokenizer, by `names_of`."""

    def __init__(self, names: tuple[str, ...]):
        self.all = sorted(filter(None, names), key=len, reverse=True)
        self.longest = max(map(len, self.all), default=0)
        self.any = f"(?:{'|'.join(map(re.escape, self.all))})" if self.all else "(?!)"  # the longest at a place
        self.starts = re.compile(f"(?={self.any})")
        self.beginnings = {name[:n] for name in self.all for n in range(1, len(name))}
        self.ends = {name[n:] for name in self.all for n in range(1, len(name))}


names_of = functools.lru_cache(maxsize=16)(Names)


def marked(content: str, names: Names, mark: str) -> str:
    """content with a mark before each name in it, before its end if a name begins so, and its beginning if one ends so."""
    places = {match.start() for match in names.starts.finditer(content)}
    body, spaces = content.rstrip(), len(content) - len(content.lstrip())
    for start in range(max(0, len(body) - names.longest), len(body)):
        if body[start:] in names.beginnings:
            places.add(start)
    if body and _ends_one(body[spaces:], names):
        places.add(spaces)
    for place in sorted(places, reverse=True):
        content = content[:place] + mark + content[place:]
    return content


def _ends_one(text: str, names: Names) -> bool:
    """Whether a text begins with the end of a name, or is all of its inside."""
    if any(text[:n] in names.ends for n in range(1, min(len(text), names.longest) + 1)):
        return True
    return len(text) < names.longest and any(text in name[1:] for name in names.all)


def parts(text: str, names: Names, mark: str) -> Iterator[tuple[int, Piece]]:
    """(where it ends in the text, control token or text without marks), in order; together the whole text."""
    done = 0
    for match in re.finditer(f"(?s:{re.escape(mark)}.)|{names.any}", text):
        yield match.start(), Piece(text[done : match.start()])
        if match[0].startswith(mark):
            yield match.end(), Piece(match[0][1:])
        else:
            yield match.end(), Piece(match[0], is_control=True)
        done = match.end()
    yield len(text), Piece(text[done:])
