"""Steps that mend a text and remove none that has any: html and unicode."""

import dataclasses
import functools
import re

from gptjax.data.cleaning.outcome import Outcome, kept, need, removed

_HTML = re.compile(r"\s*<(?:!doctype html|html|head|body|\?xml|!--)", re.IGNORECASE)
_INSIDE = re.compile(r"<(?:html|head|body)[\s>]", re.IGNORECASE)
_HEAD_CHARACTERS = 2048


@dataclasses.dataclass(frozen=True)
class Html:
    """The readable text of a web page by trafilatura: without navigation, scripts, styles, comments of readers.

    Touched is only a text that starts as a page does (a doctype, <?xml, a comment, or <html>, <head>, <body>) and has
    one of these tags in its first 2048 characters; a tag within a text is left alone. no_text: nothing was found.
    """

    def ready(self) -> None:
        _trafilatura()

    def __call__(self, text: str) -> Outcome:
        if not is_html(text):
            return kept(text)
        found = _trafilatura()(text, include_comments=False, include_tables=True)
        return kept(found, page=1) if found else removed("no_text")


def is_html(text: str) -> bool:
    head = text[:_HEAD_CHARACTERS]
    return _HTML.match(head) is not None and _INSIDE.search(head) is not None


@functools.cache
def _trafilatura():
    try:
        from trafilatura import extract
    except ImportError as error:
        raise need(f"trafilatura ({error})".replace("\n", " "), "html") from error
    return extract


# What ftfy can do and is off: HTML entities, curly quotes, ligatures, full-width letters. Those are the author's.
_OFF = dict(unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False)
# ASCII in which ftfy finds nothing to do: no control characters other than tab and newline.
_PLAIN = re.compile(r"[\t\n\x20-\x7e]*")
_MOST_ROUNDS = 8


@dataclasses.dataclass(frozen=True)
class Unicode:
    """ftfy's repairs: text decoded by the wrong encoding ("Ã©" to "é"), C1 control characters that were
    Windows-1252, halves of surrogate pairs, line ends (CRLF, CR, U+2028, U+2029, U+0085 to "\\n"), terminal escapes and
    control characters removed (a byte-order mark too), and NFC. Applied again until nothing changes.

    Not NFKC: ligatures, full-width letters, superscripts, quotation marks and HTML entities stay as they are.
    """

    def ready(self) -> None:
        _fixer()

    def __call__(self, text: str) -> Outcome:
        if text.isascii() and _PLAIN.fullmatch(text):
            return kept(text)
        fixed, fix = text, _fixer()
        for _ in range(_MOST_ROUNDS):
            before, fixed = fixed, fix(fixed)
            if before == fixed:
                break
        if fixed == text:
            return kept(text)
        return kept(fixed, repaired=1) if fixed.strip() else removed("no_text")


@functools.cache
def _fixer():
    try:
        import ftfy
    except ImportError as error:
        raise need("ftfy", "unicode") from error
    return functools.partial(ftfy.fix_text, config=ftfy.TextFixerConfig(explain=False, normalization="NFC", **_OFF))
