"""gptjax: pretrain GPTs in JAX. `gptjax --help` lists the commands; importing this imports nothing heavy.

run = gptjax.load("runs/quickstart")      a checkpoint in hand, see gptjax/run/run.py
"""


def __getattr__(name: str):
    if name in ("load", "Run"):
        from gptjax.run import run

        return getattr(run, name)
    raise AttributeError(f"module 'gptjax' has no attribute {name!r}")
