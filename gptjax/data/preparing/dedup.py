"""Duplicates over a whole corpus: a fingerprint of each document, and the first of equals stays.

Phase 1, in any process: `Fingerprinter(settings)(text)` is a row of fixed dtype and length; the rows of a file of
documents are written raw, one file after another. Phase 2, once (duplicates.py): `find_duplicates` reads these files.

exact: equal texts but for white space (each run of it is one space, none at the ends). A row is a hash of 128 bits.
minhash: texts whose sets of 5-word shingles have a Jaccard similarity of at least `threshold` as estimated by MinHash
(Broder, 1997), found by locality-sensitive hashing (bands of rows). A row is a signature of 128 values.

Rows of a band are as many as keep the chance of finding a pair at the threshold above 0.99; a pair found counts only
if its signatures agree in at least threshold * 128 places. Chance that a pair of similarity s is found, and that it is
then taken for a duplicate as well (at least the sum of both less one), for the default of 0.8 (21 bands of 6 rows):

    s        0.5    0.6    0.7    0.75   0.8    0.85   0.9    0.95
    found    0.282  0.633  0.928  0.984  0.998  1.000  1.000  1.000
    taken    0.000  0.000  0.000  0.074  0.498  0.936  1.000  1.000
"""

import dataclasses
import functools
import hashlib
import math

import numpy as np

from gptjax.config.extras import library
from gptjax.data.preparing import words
from gptjax.errors import UserError, did_you_mean

KINDS = ("exact", "minhash")
_FOUND_AT_THRESHOLD = 0.99


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the fingerprints (all but threshold) and the duplicates. threshold is unused by exact."""

    kind: str
    threshold: float = 0.8
    permutations: int = 128
    shingle_words: int = 5
    seed: int = 42

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint64 if self.kind == "exact" else np.uint32)

    @property
    def length(self) -> int:
        return 2 if self.kind == "exact" else self.permutations

    @property
    def row_bytes(self) -> int:
        return self.length * self.dtype.itemsize

    @property
    def rows(self) -> int:
        """Values of a band: the most with which a pair at the threshold is found with a chance of 0.99."""
        fits = [r for r in range(1, self.permutations + 1) if self._found(self.threshold, r) >= _FOUND_AT_THRESHOLD]
        return max(fits, default=1)

    @property
    def bands(self) -> int:
        return self.permutations // self.rows

    def _found(self, similarity: float, rows: int) -> float:
        return 1 - (1 - similarity**rows) ** (self.permutations // rows)


def parse(spec: str) -> Settings:
    """exact | minhash[:threshold]. Raises UserError."""
    kind, colon, value = spec.partition(":")
    if kind not in KINDS:
        raise UserError(
            f"--dedup={spec!r} is not known{did_you_mean(kind, KINDS)}; expected exact or minhash[:threshold]."
        )
    if not colon:
        return Settings(kind)
    if kind == "exact":
        raise UserError(f"--dedup={spec!r}: exact has no threshold; expected exact or minhash:{value or 0.8}.")
    try:
        threshold = float(value)
    except ValueError:
        threshold = math.nan
    if not 0.5 <= threshold <= 1:
        raise UserError(f"--dedup={spec!r}: expected a similarity from 0.5 to 1, e.g. minhash:0.8.")
    return Settings(kind, threshold)


class Fingerprinter:
    """fingerprinter(text): settings.length values of settings.dtype, the same in every process.

    minhash by rensa (R-MinHash): measured 60 times as fast as datasketch. Raises UserError: rensa is missing.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        if settings.kind == "minhash":
            _rensa()

    def __call__(self, text: str) -> np.ndarray:
        settings = self._settings
        if settings.kind == "exact":
            normal = " ".join(text.split()).encode(errors="surrogatepass")
            return np.frombuffer(hashlib.blake2b(normal, digest_size=16).digest(), "<u8").astype(np.uint64)
        signature = _rensa()(num_perm=settings.permutations, seed=settings.seed)
        signature.update(shingles(text, settings.shingle_words))
        return np.array(signature.digest(), np.uint32)


def shingles(text: str, n: int) -> list[str]:
    """All runs of n words in lower case, in scripts without spaces of 2n characters; of a shorter text, the text."""
    unit = words.units(text.lower())
    weight = words.unit_weights(unit)
    if weight is None or (weight == 0.5).all():
        length = n if weight is None else 2 * n
        runs = [" ".join(run) for run in zip(*(unit[i:] for i in range(length)))]
    else:
        runs = [" ".join(unit[a:b]) for a, b in zip(*(edge.tolist() for edge in words.windows(weight, len(unit), n)))]
    return runs or [" ".join(unit)]


@functools.cache
def _rensa():
    return library("rensa", "--dedup=minhash").RMinHash
