"""Scaling studies: a file that declares many runs, the runs, and fits of what came out.

declaration.py  what configs/studies/NAME.py returns        recipes.py  shapes and rules from one dial
lengths.py      tokens and steps from budgets, branches     plan.py     the table of runs, before any is started
layout.py       the folder of a study                       runner.py   starts and resumes them
points.py       finished runs as numbers                    fits/       laws through those numbers
"""

from gptjax.study.declare import recipes
from gptjax.study.declare.declaration import Branch, PlannedRun, Study, Target
from gptjax.study.declare.recipes import by_depth, by_params, by_width, lstm_by_params, tuned

__all__ = [
    "Branch",
    "PlannedRun",
    "Study",
    "Target",
    "by_depth",
    "by_params",
    "by_width",
    "lstm_by_params",
    "recipes",
    "tuned",
]
