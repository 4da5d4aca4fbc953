"""Steps that mend a text and remove none that has any: html and unicode."""

import dataclasses
import functools
import re

from gptjax.config.extras import library
from gptjax.data.preparing.cleaning.outcome import Outcome, kept, removed
from gptjax.data.sources.markup import begins_as_html
from gptjax.errors import UserError

_KNOWN_BY = 50
"""Characters at the start of a page in which trafilatura looks for "html"; without it, it refuses pages of one element."""


@dataclasses.dataclass(frozen=True)
class Html:
    """The readable text of a web page by trafilatura: without navigation, scripts, styles, comments of readers.

    A page is what the source says is HTML, as a WARC file does by Content-Type. Where the source doesn't say, it is what
    begins as a page does (see sources.markup), or with html=all any text. A tag within a text is left alone.
    no_text: nothing was found.
    """

    texts: str = "pages"

    def ready(self) -> None:
        if self.texts not in ("pages", "all"):
            raise UserError(f"html={self.texts}: expected html=all, for texts of which each is HTML, or html alone.")
        _trafilatura()

    def __call__(self, text: str, is_html: bool | None = None) -> Outcome:
        if is_html is None:
            is_html = self.texts == "all" or begins_as_html(text)
        if not is_html:
            return kept(text)
        page = text if "html" in text[:_KNOWN_BY].lower() else f"<html>{text}"
        found = _trafilatura()(page, include_comments=False, include_tables=True)
        return kept(found, page=1) if found else removed("no_text")


@functools.cache
def _trafilatura():
    return library("trafilatura", "cleaning step html").extract


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
    ftfy = library("ftfy", "cleaning step unicode")
    return functools.partial(ftfy.fix_text, config=ftfy.TextFixerConfig(explain=False, normalization="NFC", **_OFF))
