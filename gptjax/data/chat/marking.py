"""The text of messages kept from spelling a control token of a template.

A template mixes its own text, in which names of control tokens are these tokens, with the text of messages, in which they
are not. So a mark, which no text has, is put before every name that a message spells, and before what could become one
with the text behind or before it. The character behind a mark begins and ends no control token, and the mark is taken out
when it is read. It stands before names only: a template may trim spaces or look at words as it does for transformers.
"""

import re
from collections.abc import Iterator

from gptjax.data.chat.base import Piece


def marked(content: str, names: list[str], mark: str) -> str:
    """content with a mark before each name in it, before its end if a name begins so, and its beginning if one ends so."""
    places = {match.start() for match in re.finditer(f"(?={_any_of(names)})", content)}
    body, spaces = content.rstrip(), len(content) - len(content.lstrip())
    longest = max(map(len, names), default=0)
    for start in range(max(0, len(body) - longest), len(body)):
        if any(name.startswith(body[start:]) for name in names):
            places.add(start)
    if body and any(_ends_in(name, content[spaces:]) for name in names):
        places.add(spaces)
    for place in sorted(places, reverse=True):
        content = content[:place] + mark + content[place:]
    return content


def _ends_in(name: str, text: str) -> bool:
    """Whether a text begins with the end of a name, or is all of its inside."""
    return text.rstrip() in name[1:] or any(text.startswith(name[i:]) for i in range(1, len(name)))


def parts(text: str, names: list[str], mark: str) -> Iterator[tuple[int, Piece]]:
    """(where it ends in the text, control token or text without marks), in order; together the whole text."""
    done = 0
    for match in re.finditer(f"(?s:{re.escape(mark)}.)|{_any_of(names)}", text):
        if match[0].startswith(mark):
            yield match.start(), Piece(text[done : match.start()])
            yield match.end(), Piece(match[0][1:])
        else:
            yield match.start(), Piece(text[done : match.start()])
            yield match.end(), Piece(match[0], is_control=True)
        done = match.end()
    yield len(text), Piece(text[done:])


def _any_of(names: list[str]) -> str:
    """A pattern of any of the names, the longest there is at a place."""
    ordered = sorted(filter(None, names), key=len, reverse=True)
    return f"(?:{'|'.join(map(re.escape, ordered))})" if ordered else "(?!)"
