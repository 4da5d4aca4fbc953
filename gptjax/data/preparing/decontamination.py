"""Where a document shares n words in a row with evaluation texts (Brown et al., 2020, GPT-3, app. C).

As there: a word is lower case, parted by white space and without punctuation; a shared 13-gram goes with 200
characters on each side of it; the steps around it (pieces under 200 characters dropped, documents of more than ten
pieces dropped whole) are cleaning's `decontaminate`. Read otherwise or not done here:
- The "200 character window around" is taken as 200 characters before and 200 behind.
- GPT-3 ignored 13-grams found in more than ten training documents (phrases, boilerplate). That takes a pass over the
  whole corpus beforehand; here every shared 13-gram counts, so that somewhat more is removed, never less.
- Evaluation texts of fewer than n words cannot be found, and the step says how many those are.
- In scripts without spaces each character is half a word: 26 characters in a row.
"""

import numpy as np

from gptjax.data.preparing import words
from gptjax.data.sources import packing
from gptjax.data.sources.records import Damaged, json_value
from gptjax.errors import UserError

_LINES = packing.with_packings((".jsonl",))
_ENDINGS = (*packing.with_packings((".txt",)), *_LINES)


def load_texts(path: str) -> list[str]:
    """The evaluation texts at path: each .txt file, and each line of .jsonl with all strings in it; packed or not.

    Raises UserError: no such file, a line that is not JSON, no text at all.
    """
    texts = [text for file in _files(path) for text in _texts_of(file)]
    if not any(text.strip() for text in texts):
        raise UserError(f"decontaminate={path} holds no text; expected .txt or .jsonl files of evaluation texts.")
    return texts


def _files(path: str) -> list:
    from gptjax.data.sources.files import find_files

    try:
        return find_files(path, _ENDINGS)
    except UserError as error:
        raise UserError(str(error).replace("data.path=", "decontaminate=")) from error


def _texts_of(file) -> list[str]:
    """Raises UserError: what is left out here would be trained on unseen."""
    try:
        with file.open("rb") as stream:
            text = packing.buffered(file, stream).read().decode()
    except packing.BadPacking as error:
        raise UserError(f"decontaminate: {file} is a {error}; fetch it again.") from error
    except Damaged as error:
        raise UserError(f"decontaminate: {error}") from error
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"decontaminate: {file} cannot be read ({error}); expected UTF-8 text.") from error
    if file.name.endswith(_LINES):
        return [_strings_of(line, f"{file}:{i}") for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    return [text]


def _strings_of(line: str, where: str) -> str:
    try:
        return "\n".join(_leaves(json_value(line, where, "one value a line")))
    except UserError as error:
        raise UserError(f"decontaminate: {error}") from error


def _leaves(value) -> list[str]:
    """The strings in a JSON value, in order, however deep they lie."""
    leaves, left = [], [value]
    while left:
        value = left.pop()
        if isinstance(value, str):
            leaves.append(value)
        elif isinstance(value, (dict, list)):
            left.extend(reversed(value.values() if isinstance(value, dict) else value))
    return leaves


class Overlaps:
    """The n-grams of evaluation texts. They are kept as hashes of 64 bits: with a million of them, one in 10 ** 13
    n-grams of a document that are made of their words is taken for one by chance."""

    def __init__(self, texts: list[str], n: int, path: str = "the evaluation texts"):
        self._n = n
        self._number: dict[str, int] = {}
        self.count, self.too_short = len(texts), 0
        hashes = []
        for text in texts:
            unit = [plain for plain in map(_plain, words.units(text)) if plain]
            number_L = np.array([self._number.setdefault(u, len(self._number) + 1) for u in unit], np.int64)
            first, stop = words.windows(words.unit_weights(unit), len(unit), n)
            self.too_short += not len(first)
            hashes.append(words.WindowHasher(number_L)(first, stop))
        self._hashes = np.unique(np.concatenate(hashes))
        if not len(self._hashes):
            raise UserError(
                f"decontaminate={path} holds no text of {n} words, so nothing could be found; give a smaller n."
            )

    def spans(self, text: str, window: int = 0) -> list[tuple[int, int]]:
        """Characters of text in shared n-grams, with window more on each side; merged, ascending."""
        unit = [(plain, i) for i, plain in enumerate(map(_plain, words.units(text))) if plain]
        number_L = np.array([self._number.get(plain, 0) for plain, _ in unit], np.int64)
        first, stop = words.windows(words.unit_weights([plain for plain, _ in unit]), len(unit), self._n)
        unknown = np.concatenate([[0], np.cumsum(number_L == 0)])
        known = unknown[first] == unknown[stop]
        first, stop = first[known], stop[known]
        if not len(first):
            return []
        hashes = words.WindowHasher(number_L)(first, stop)
        place = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        hit = self._hashes[place] == hashes
        if not hit.any():
            return []
        place = words.unit_spans(text)
        found = [(place[unit[a][1]][0], place[unit[b - 1][1]][1]) for a, b in zip(first[hit], stop[hit])]
        return _merged([(max(0, a - window), min(len(text), b + window)) for a, b in found])


def _plain(word: str) -> str:
    return word.lower() if word.isalnum() else "".join(filter(str.isalnum, word.lower()))


def _merged(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged = [spans[0]]
    for first, stop in spans[1:]:
        if first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((first, stop))
    return merged
