"""Cleaner: documents through steps, counted. Reports of many workers are merged, and read as a table and samples.

A report is JSON values: one dict a step, in order:
    {"step": spec, "documents": in, "removed", "changed", "split", "pieces": out, "bytes_in", "bytes_out", "seconds",
     "reasons": {reason: documents removed}, "edits": {kind: how often}, "samples": {reason or kind: [sample]}}
`changed` and `split` count documents that stay; a sample is {"hash", "where", "before", "after"}, after being None where
the document went. Samples are those of the smallest hashes of (step, reason, where, text), so that they do not depend
on the number of workers, on which documents each had, or on the order of merging.
"""

import collections
import functools
import hashlib
import time
from collections.abc import Iterable

from gptjax.data.preparing.cleaning.outcome import Outcome, Step
from gptjax.data.preparing.cleaning.repair import Html
from gptjax.data.preparing.cleaning.specs import spec_of
from gptjax.errors import UserError

_COUNTS = ("documents", "removed", "changed", "split", "pieces", "bytes_in", "bytes_out", "seconds")
_EXCERPT = 240


class Cleaner:
    """cleaner(document) is the list of documents that become of it; a document is a sources.Document.

    Pieces of a split document are named by their number: "FILE:7 piece 2".
    """

    def __init__(self, steps: list[Step], n_samples: int = 5):
        self._steps = steps
        self._tallies = [_Tally(spec_of(step), n_samples) for step in steps]

    def __call__(self, document) -> list:
        documents = [document]
        for step, tally in zip(self._steps, self._tallies):
            documents = [piece for whole in documents for piece in self._pieces(step, tally, whole)]
            if not documents:
                break
        return documents

    def _pieces(self, step: Step, tally: "_Tally", document) -> list:
        began = time.perf_counter()
        if isinstance(step, Html):
            outcome = step(document.text, document.is_html)
            document = document._replace(is_html=False)
        else:
            outcome = step(document.text)
        tally.add(document, outcome, time.perf_counter() - began)
        if len(outcome.texts) == 1:
            return [document._replace(text=outcome.texts[0])]
        pieces = enumerate(outcome.texts, start=1)
        return [document._replace(text=text, where=f"{document.where} piece {i}") for i, text in pieces]

    @property
    def report(self) -> dict:
        return {
            "n_samples": [t.n_samples for t in self._tallies][:1],
            "steps": [tally.report() for tally in self._tallies],
        }


class _Tally:
    """The counts and samples of one step."""

    def __init__(self, spec: str, n_samples: int):
        self.n_samples = n_samples
        self._spec = spec
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._reasons, self._edits = collections.Counter(), collections.Counter()
        self._samples: dict[str, list[dict]] = {}

    def add(self, document, outcome: Outcome, seconds: float) -> None:
        text, texts = document.text, outcome.texts
        same = texts == [text]
        size = _size(text)
        size_out = size if same else sum(map(_size, texts))
        split = len(texts) > 1
        added = (1, not texts, not same and len(texts) == 1, split, len(texts), size, size_out, seconds)
        for name, value in zip(_COUNTS, added):
            self._counts[name] += value
        (self._edits if texts else self._reasons).update(outcome.reasons)
        for reason in () if same else outcome.reasons:
            self._sample(reason, document, texts)

    def _sample(self, reason: str, document, texts: list[str]) -> None:
        samples = self._samples.setdefault(reason, [])
        named = "\0".join((self._spec, reason, document.where, document.text))
        key = hashlib.blake2b(named.encode(errors="surrogatepass"), digest_size=8).hexdigest()
        if len(samples) < self.n_samples or (samples and key < samples[-1]["hash"]):
            before, after = _excerpts(document.text, texts)
            sample = {"hash": key, "where": document.where, "before": before, "after": after}
            self._samples[reason] = _smallest([*samples, sample], self.n_samples)

    def report(self) -> dict:
        counters = {"reasons": _sorted(self._reasons), "edits": _sorted(self._edits)}
        return {"step": self._spec} | self._counts | counters | {"samples": _sorted(self._samples)}


def _sorted(table: dict) -> dict:
    return {key: table[key] for key in sorted(table)}


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _smallest(samples: Iterable[dict], n: int) -> list[dict]:
    return [sample for _, sample in sorted({s["hash"]: s for s in samples}.items())][:n]


def _excerpts(before: str, texts: list[str]) -> tuple[str, str | None]:
    """The start of a document that goes; of one that changes, both texts around the first difference."""
    if not texts:
        return before[:_EXCERPT], None
    after = "\n[piece]\n".join(texts)
    first = max(0, _common(before, after) - _EXCERPT // 3)
    return before[first : first + _EXCERPT], after[first : first + _EXCERPT]


def _common(a: str, b: str) -> int:
    """How many characters the texts begin with alike, by bisection."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def merge(reports: Iterable[dict]) -> dict:
    """One report of several Cleaners with the same steps; of none, a report of no step. Associative, commutative.

    Raises UserError: their steps differ.
    """
    return functools.reduce(_merged, reports, {"n_samples": [], "steps": []})


def _merged(a: dict, b: dict) -> dict:
    if not a["steps"] or not b["steps"]:
        return a if a["steps"] else b
    names = [[step["step"] for step in report["steps"]] for report in (a, b)]
    if names[0] != names[1] or a["n_samples"] != b["n_samples"]:
        raise UserError(
            f"Reports of different cleaning cannot be merged: {','.join(names[0])} and {','.join(names[1])}."
        )
    return a | {"steps": [_merged_step(x, y, a["n_samples"][0]) for x, y in zip(a["steps"], b["steps"])]}


def _merged_step(a: dict, b: dict, n_samples: int) -> dict:
    merged = {"step": a["step"]} | {name: a[name] + b[name] for name in _COUNTS}
    for table in ("reasons", "edits"):
        merged[table] = _sorted(collections.Counter(a[table]) + collections.Counter(b[table]))
    reasons = {*a["samples"], *b["samples"]}
    both = {r: _smallest([*a["samples"].get(r, []), *b["samples"].get(r, [])], n_samples) for r in reasons}
    return merged | {"samples": _sorted(both)}
