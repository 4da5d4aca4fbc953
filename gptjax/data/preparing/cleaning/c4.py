"""The rules of C4: c4 (Raffel et al., 2020, sec. 2.2), first over lines, then over what is left of the page."""

import dataclasses
import functools
import re

from gptjax.data.preparing import words
from gptjax.data.preparing.cleaning.outcome import Outcome, check_range, removed
from gptjax.errors import UserError

_CLOSERS = "\"'”’»」』）)】"
_END = re.compile(f"(?:[.!?。！？।؟\"'”»」』][{_CLOSERS}]*)$")
_SENTENCE = re.compile(f"[.!?।؟]+[{_CLOSERS}]*(?=\\s|$)|[。！？]+")
_CITATION = re.compile(r"\[(?:\d+|edit|citation needed)\]", re.IGNORECASE)
_POLICY = re.compile("terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies", re.IGNORECASE)
_JAVASCRIPT = re.compile("javascript", re.IGNORECASE)
_LOREM = re.compile("lorem ipsum", re.IGNORECASE)
_HUGE = 1e12


@dataclasses.dataclass(frozen=True)
class C4:
    """Raffel et al. 2020 sec. 2.2. Citation marks ([1], [edit], [citation needed]) go; then lines that do not end in a
    terminal mark (.!? or a closing quote; also 。！？, ।, ؟), with fewer than min_line_words words, with "javascript", or
    with a policy notice ("privacy policy", "uses cookies", ...). The page goes if it says "lorem ipsum" or has a curly
    bracket, if it holds a word of bad_words (a file, one word or phrase a line; none is shipped, None: rule off), or
    if fewer than min_sentences sentences are left.

    Two Chinese characters count as one word (words.count_words). Not here: English only (see language) and the removal
    of repeated three-sentence spans over the whole corpus (see --dedup).
    The rules are for one paragraph a line: text wrapped at 70 characters loses every line that ends within a sentence.
    """

    min_line_words: int | None = 5
    min_sentences: int | None = 3
    bad_words: str | None = None

    def ready(self) -> None:
        limits = {"min_line_words": self.min_line_words, "min_sentences": self.min_sentences}
        check_range("c4", **{name: (value, 0, _HUGE) for name, value in limits.items()})
        if self.bad_words is not None:
            _pattern_of(self.bad_words)

    def __call__(self, text: str) -> Outcome:
        if "{" in text or "}" in text:
            return removed("curly_bracket")
        if _LOREM.search(text):
            return removed("lorem_ipsum")
        if self.bad_words is not None and _pattern_of(self.bad_words).search(text):
            return removed("bad_word")
        clean, citations = _without_citations(text)
        reasons = {"citation": citations} if citations else {}
        lines = []
        for line in clean.split("\n"):
            reason = self._line(line)
            if reason is None:
                lines.append(line)
            else:
                reasons[reason] = reasons.get(reason, 0) + 1
        left = "\n".join(lines)
        if self.min_sentences is not None and len(_SENTENCE.findall(left)) < self.min_sentences:
            return removed("too_few_sentences")
        return Outcome([left], reasons if left != text else {})

    def _line(self, line: str) -> str | None:
        if not line.strip():
            return "line_empty"
        if _JAVASCRIPT.search(line):
            return "line_javascript"
        if _POLICY.search(line):
            return "line_policy"
        if not _END.search(line.rstrip()):
            return "line_unfinished"
        if self.min_line_words is not None and words.count_words(line) < self.min_line_words:
            return "line_short"
        return None


def _without_citations(text: str) -> tuple[str, int]:
    """Taken out again until none is left: "[1[2]]" holds one within one."""
    total, found = 0, 1
    while found:
        text, found = _CITATION.subn("", text)
        total += found
    return text, total


@functools.lru_cache(maxsize=4)
def _pattern_of(path: str) -> re.Pattern:
    """Matches any line of the file as whole words (anywhere, in scripts without spaces), in any case."""
    from etils import epath

    try:
        lines = epath.Path(path).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"c4(bad_words={path}) cannot be read: {error}; expected a UTF-8 file, a word a line."
        ) from error
    phrases = sorted({line.strip() for line in lines if line.strip()})
    if not phrases:
        raise UserError(f"c4(bad_words={path}) names no word; expected a UTF-8 file, a word or phrase a line.")
    whole = [re.escape(p) if words.is_spaceless(p) else rf"(?<!\w){re.escape(p)}(?!\w)" for p in phrases]
    return re.compile("|".join(whole), re.IGNORECASE)
