"""Scaling studies: a file that declares many runs, the runs, and fits of what came out.

declaration.py  what configs/studies/NAME.py returns        recipes.py  shapes and rules from one dial
plan.py         the table of runs, before any is started    layout.py   the folder of a study
points.py       finished runs as numbers                    fits/       laws through those numbers
"""

from gptjax.study.declaration import Branch, PlannedRun, Study

__all__ = ["Branch", "PlannedRun", "Study"]
