"""Each way to fit a law, as what `gptjax study fit` makes of it: one class a method, one line of catalogue.METHODS.

catalogue.py  the methods by name                  method.py      what a method says and does; what it is given
section.py    constants, intervals, best splits    checks.py      held-out points, other choices, noise of seeds
parametric.py, isoflop.py, envelope.py, kaplan.py   the methods
"""
