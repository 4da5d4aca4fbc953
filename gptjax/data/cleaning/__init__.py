"""Cleaning of documents by named steps, composed by a spec such as "unicode,language=en:0.5,gopher_quality,pii".

`parse(spec)` gives the steps (the grammar is in specs.py, each step's rules and their source in its docstring),
`Cleaner(steps)` applies them and counts; `merge(reports)`, `table(report)` and `samples(report)` are for reading.
A step keeps, changes, splits or removes a document, and says why. Duplicates over a whole corpus: gptjax.data.preparing.dedup.
"""

from gptjax.data.cleaning.report import samples, table
from gptjax.data.preparing.cleaning.cleaner import Cleaner, merge
from gptjax.data.preparing.cleaning.specs import STEPS, parse, spec_of

__all__ = ["STEPS", "Cleaner", "merge", "parse", "samples", "spec_of", "table"]
