"""gptjax: pretrain GPTs in JAX. `gptjax --help` lists the commands; importing this imports nothing heavy.

run = gptjax.load("runs/quickstart")      a checkpoint in hand, see gptjax/run/run.py
gptjax.compare(run, "runs/other")         two of them on the same text
"""

import sys

DOOR = ("load", "compare", "Run")  # imported when they are asked for


def __getattr__(name: str):
    if name in DOOR:
        from gptjax.run import run

        return getattr(run, name)
    raise AttributeError(f"module 'gptjax' has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return [*globals(), *DOOR]
