"""Scaling studies: a file that declares many runs, the runs, and fits of what came out.

declare/   what a study file says, and the table of its runs     running/   starting, resuming and watching them
lanes/     small runs of one shape in one program                 fits/      laws through numbers, and no files
methods/   ways to fit, as they are reported                      results/   from finished runs to laws and a verdict
pictures/  what is drawn of them                                  report/    page and Markdown
batched.py the process in which runs train together

Each room imports only rooms before it in this order: declare, running, lanes, fits, methods, results, pictures, report.
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
