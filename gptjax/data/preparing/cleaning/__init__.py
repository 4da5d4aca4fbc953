"""Cleaning of documents by named steps, composed by a spec such as "unicode,language=en:0.5,gopher_quality,pii".

`parse(spec)` gives the steps (the grammar is in specs.py, each step's rules and their source in its docstring),
`Cleaner(steps)` applies them and counts; `merge(reports)`, `table(report)` and `samples(report)` are for reading.

    specs           steps from a spec: the table of them
    cleaner         documents through steps, counted
    outcome         what a step is, and what it says about a document
    repair          html, unicode                   filters         length, language
    gopher          gopher_quality, gopher_repetition       c4      c4
    personal        pii                             overlap         decontaminate
    report          a report to look at

A step keeps, changes, splits or removes a document, and says why. Duplicates over a whole corpus: gptjax.data.preparing.dedup.
"""

from gptjax.data.preparing.cleaning.cleaner import Cleaner, merge
from gptjax.data.preparing.cleaning.report import samples, table
from gptjax.data.preparing.cleaning.specs import STEPS, parse, spec_of

__all__ = ["STEPS", "Cleaner", "merge", "parse", "samples", "spec_of", "table"]
