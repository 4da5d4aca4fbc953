"""Scaling studies: a file that declares many runs, the runs, and fits of what came out.

declaration.py  what configs/studies/NAME.py returns        recipes.py  shapes and rules from one dial
lengths.py      tokens and steps from budgets, branches     plan.py     the table of runs, before any is started
layout.py       the folder of a study                       runner.py   starts and resumes them
points.py       finished runs as numbers                    fits/       laws through those numbers
methods/        ways to fit, as they are reported           report/, pictures/  what they say

Names that study files use are taken from where they are when they are asked for.
"""

import importlib

_HOMES = {
    "Branch": "gptjax.study.declare.declaration",
    "PlannedRun": "gptjax.study.declare.declaration",
    "Study": "gptjax.study.declare.declaration",
    "Target": "gptjax.study.declare.declaration",
    "by_depth": "gptjax.study.declare.recipes",
    "by_params": "gptjax.study.declare.recipes",
    "by_width": "gptjax.study.declare.recipes",
    "lstm_by_params": "gptjax.study.declare.recipes",
    "recipes": "gptjax.study.declare.recipes",
    "tuned": "gptjax.study.declare.recipes",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    return module if name == "recipes" else getattr(module, name)
