"""Scaling laws through points: NumPy and SciPy in float64, no JAX, no files.

laws.py        the forms, and the best split of a budget        parametric.py  approach 3: E + A/N^alpha + B/D^beta
huber.py       its objective, for many fits at once             isoflop.py     approach 2: a parabola per budget
bootstrap.py   intervals: runs drawn again, everything refitted envelope.py    approach 1: the lower hull of training curves
window.py      which points a parabola goes through
identified.py  which constants the points do not determine      kaplan.py      L(N), L(D), L(C) and the joint form
fit.py         what every fit is                                points.py      finished runs as a fit sees them
bench.py       how long fits and intervals take

Nothing is dropped silently.
"""
