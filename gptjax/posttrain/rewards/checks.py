"""Checks of a text, one function each; their parameters have the names of IFEval's records."""

import functools
import re
import unicodedata
from collections.abc import Sequence

from gptjax.config import extras
from gptjax.errors import UserError
from gptjax.posttrain.rewards.form import parsed_json

RELATIONS = {"at least": lambda count, number: count >= number, "less than": lambda count, number: count < number}
_SENTENCE_END = re.compile(r"[.!?]+(?=[\s\"')\]]|$)|[。！？]+")
CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _holds(count: int, relation: str, number: int) -> bool:
    if relation not in RELATIONS:
        raise UserError(f"relation={relation!r} is not known; expected one of: {', '.join(RELATIONS)}.")
    return RELATIONS[relation](count, number)


def _count(word: str, text: str) -> int:
    """Of a word or phrase as whole words, whatever their case."""
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))


# ---- words


def keywords_there(text: str, keywords: Sequence[str]) -> bool:
    return all(word.casefold() in text.casefold() for word in keywords)


def keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _holds(text.casefold().count(keyword.casefold()), relation, frequency)


def no_forbidden_words(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(_count(word, text) for word in forbidden_words)


def letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(text.casefold().count(letter.casefold()), let_relation, let_frequency)


# ---- language


def language(text: str, language: str) -> bool:
    """Of an ISO 639-1 code, the likeliest one as py3langid tells it."""
    return _identifier().classify(text)[0] == language


@functools.cache
def _identifier():
    module = extras.library("py3langid.langid", "the instruction language:response_language")
    return module.LanguageIdentifier.from_model_file(module.MODEL_FILE, norm_probs=True)


def script(text: str, script: str) -> bool:
    """Whether nine letters of ten belong to a script by the first word of their Unicode names, such as LATIN, CYRILLIC, CJK."""
    letters = [unicodedata.name(letter, "").split(" ")[0].split("-")[0] for letter in text if letter.isalpha()]
    return bool(letters) and letters.count(script.upper()) >= 0.9 * len(letters)


# ---- length


def number_of_words(text: str, num_words: int, relation: str) -> bool:
    return _holds(len(re.findall(r"\w+", text)), relation, num_words)


def number_of_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _holds(len(sentences(text)), relation, num_sentences)


def sentences(text: str) -> list[str]:
    """Parted behind . ! ? and a space, and behind 。！？"""
    ends = [0, *(match.end() for match in _SENTENCE_END.finditer(text)), len(text)]
    parts = (text[first:last] for first, last in zip(ends, ends[1:]))
    return [part.strip() for part in parts if re.search(r"\w", part)]


def number_of_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Parted by ***, each with words."""
    parts = [part.strip() for part in re.split(r"\s*\*\*\*\s*", text)]
    inner = parts[1:-1] if len(parts) > 2 else []
    return all(inner) and len(list(filter(None, parts))) == num_paragraphs


def first_word_of_paragraph(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs are parted by an empty line; a word ends before . , ? ! and quotation marks."""
    parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    word = re.split(r"[\s.,?!'\"]", parts[nth_paragraph - 1].lstrip("'\""))[0]
    return word.casefold() == first_word.casefold()


# ---- what is in it


def placeholders(text: str, num_placeholders: int) -> bool:
    """In brackets, as [name]; at least so many."""
    return len(re.findall(r"\[[^\[\]]+\]", text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    """A line that begins with P.S. or another marker, spaces and full stops aside."""
    letters = [re.escape(letter) for letter in postscript_marker if letter not in ". "]
    return re.search(rf"^\s*{r'[. ]*'.join(letters)}", text, re.IGNORECASE | re.MULTILINE) is not None


def bullets(text: str, num_bullets: int) -> bool:
    """Lines that begin with "* " or "- "; exactly so many."""
    return len(re.findall(r"^\s*(?:\*(?!\*)|-)\s*\S", text, re.MULTILINE)) == num_bullets


def one_of_the_options(text: str) -> bool:
    """One of CONSTRAINED is in it."""
    return any(option in text for option in CONSTRAINED)


def highlights(text: str, num_highlights: int) -> bool:
    """In *one* or **two** stars, with text in them; at least so many."""
    return len(re.findall(r"\*\*[^*\n]*[^*\s][^*\n]*\*\*|\*[^*\n]*[^*\s][^*\n]*\*", text)) >= num_highlights


def sections(text: str, section_spliter: str, num_sections: int) -> bool:
    """That begin with a marker and a number, as "Section 1"; at least so many."""
    return len(re.findall(rf"\s?{re.escape(section_spliter)}\s?\d+\s?", text)) >= num_sections


def is_json(text: str) -> bool:
    return parsed_json(text)[1]


def title(text: str) -> bool:
    """In double angular brackets, as <<a title>>."""
    return any(inside.strip() for inside in re.findall(r"<<([^\n]+?)>>", text))


def two_responses(text: str) -> bool:
    """Two different ones parted by six stars."""
    parts = [part.strip() for part in text.split("******")]
    parts = [part for i, part in enumerate(parts) if part or 0 < i < len(parts) - 1]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]


def repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    """It begins with the prompt."""
    return text.strip().casefold().startswith(prompt_to_repeat.strip().casefold())


# ---- start, end, case, punctuation


def starts_with(text: str, start_phrase: str) -> bool:
    return text.strip().casefold().startswith(start_phrase.strip().casefold())


def ends_with(text: str, end_phrase: str) -> bool:
    """Quotation marks around the text aside."""
    return text.strip().strip('"').casefold().endswith(end_phrase.strip().casefold())


def quoted(text: str) -> bool:
    """The whole text in double quotation marks."""
    bare = text.strip()
    return len(bare) > 1 and bare[0] == bare[-1] == '"'


def capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    """Words in capitals, hyphens and apostrophes inside them too."""
    words = re.findall(r"\w+(?:['\u2019-]\w+)*", text)
    return _holds(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def upper_case(text: str) -> bool:
    return text.isupper()


def lower_case(text: str) -> bool:
    return text.islower()


def no_comma(text: str) -> bool:
    return "," not in text
