"""Steps that keep or remove whole documents by one measure: length and language."""

import dataclasses
import functools

from gptjax.config.extras import library
from gptjax.data.preparing.cleaning.outcome import Outcome, check_order, check_range, kept, removed
from gptjax.data.preparing.words import count_words
from gptjax.errors import UserError, did_you_mean

_HUGE = 1e12


@dataclasses.dataclass(frozen=True)
class Length:
    """Documents of min to max characters, and of min to max words (words.count_words: two Chinese characters are a
    word); the limits themselves are kept. `length=200` is min_characters=200."""

    min_characters: int | None = None
    max_characters: int | None = None
    min_words: int | None = None
    max_words: int | None = None

    def ready(self) -> None:
        values = dataclasses.asdict(self)
        if all(value is None for value in values.values()):
            raise UserError(f"cleaning step length has no limit; give one of: {', '.join(values)}, e.g. length=200.")
        check_range("length", **{name: (value, 0, _HUGE) for name, value in values.items()})
        characters, words = (self.min_characters, self.max_characters), (self.min_words, self.max_words)
        check_order("length", characters=characters, words=words)

    def __call__(self, text: str) -> Outcome:
        if self.min_characters is not None and len(text) < self.min_characters:
            return removed("too_few_characters")
        if self.max_characters is not None and len(text) > self.max_characters:
            return removed("too_many_characters")
        if self.min_words is None and self.max_words is None:
            return kept(text)
        words = count_words(text)
        if self.min_words is not None and words < self.min_words:
            return removed("too_few_words")
        if self.max_words is not None and words > self.max_words:
            return removed("too_many_words")
        return kept(text)


_READ_CHARACTERS = 700


@dataclasses.dataclass(frozen=True)
class Language:
    """Documents in one of the languages (`language=en`, several: `language=en+zh:0.5`) by py3langid, 97 of ISO 639-1,
    judged by 700 characters each of its start, middle and end; the model is part of the library.

    probability is the model's, flattened for length: a page of one language has 0.9 and more. Reasons: the language
    found (found_de), uncertain (a wanted one, less probable), no_letters (the model sees nothing to judge by).
    """

    codes: str = ""
    probability: float = 0.0

    def ready(self) -> None:
        known = sorted(_identifier().labels)
        if not self.codes:
            raise UserError(
                "cleaning step language names no language; expected e.g. language=en or language=en+zh:0.5."
            )
        for code in self.codes.split("+"):
            if code not in known:
                near = did_you_mean(code, known)
                raise UserError(f"language={code!r} is not known{near}; expected codes of: {', '.join(known)}.")
        check_range("language", probability=(self.probability, 0, 1))

    def __call__(self, text: str) -> Outcome:
        text_read = _parts_of(text)
        if not any(map(str.isalpha, text_read)):
            return removed("no_letters")
        found, probability = _identifier().classify(text_read)
        if found not in self.codes.split("+"):
            return removed(f"found_{found}")
        return kept(text) if probability >= self.probability else removed("uncertain")


def _parts_of(text: str) -> str:
    n, middle = _READ_CHARACTERS, (len(text) - _READ_CHARACTERS) // 2
    return text if len(text) <= 3 * n else "\n".join((text[:n], text[middle : middle + n], text[-n:]))


@functools.cache
def _identifier():
    langid = library("py3langid.langid", "cleaning step language")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
