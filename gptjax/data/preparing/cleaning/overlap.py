"""The step decontaminate: documents without the passages they share with evaluation texts."""

import dataclasses
import functools
import sys

from gptjax.data.preparing.cleaning.outcome import Outcome, kept, removed
from gptjax.data.preparing.decontamination import Overlaps, load_texts
from gptjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Decontaminate:
    """Brown et al. 2020 (GPT-3) app. C, see gptjax.data.preparing.decontamination: `decontaminate=PATH`, or PATH:n for n-grams.

    path is a file, a folder or a glob of .txt (one evaluation text a file) and .jsonl(.gz) (one a line; every string
    in it counts). Reasons: passage (how many were cut out), too_many_pieces, in_evaluation_text (nothing of 200
    characters is left).
    """

    path: str = ""
    n: int = 13
    window: int = 200
    min_characters: int = 200
    max_pieces: int = 10

    def ready(self) -> None:
        if not self.path:
            raise UserError("cleaning step decontaminate has no path; expected decontaminate=PATH of evaluation texts.")
        if self.n < 1 or self.window < 0 or self.min_characters < 0 or self.max_pieces < 1:
            raise UserError(f"{self}: expected n and max_pieces of at least 1, the others not negative.")
        overlaps = _overlaps(self.path, self.n)
        if overlaps.too_short:
            what = f"{overlaps.too_short} of {overlaps.count} evaluation texts have fewer than {self.n} words"
            print(f"decontaminate={self.path}: {what}; they cannot be found.", file=sys.stderr, flush=True)

    def __call__(self, text: str) -> Outcome:
        spans = _overlaps(self.path, self.n).spans(text, self.window)
        if not spans:
            return kept(text)
        ends = [0, *(edge for span in spans for edge in span), len(text)]
        pieces = [text[a:b] for a, b in zip(ends[::2], ends[1::2]) if a < b]
        if len(pieces) > self.max_pieces:
            return removed("too_many_pieces")
        long = [piece for piece in pieces if len(piece) >= self.min_characters]
        return Outcome(long, {"passage": len(spans)}) if long else removed("in_evaluation_text")


@functools.cache
def _overlaps(path: str, n: int) -> Overlaps:
    return Overlaps(load_texts(path), n, path)
