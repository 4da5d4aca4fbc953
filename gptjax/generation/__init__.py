"""Text from a model: one engine for notebook, command line and server.

completion = generate(Engine(graph, params), tokenizer, "Once upon", Settings(max_tokens=50))[0]

sampling.py   logits to a token: penalties, temperature, top-k, top-p, min-p
engine.py     tokens to tokens: prefill and decode with a cache of keys and values, rows of unequal length
text.py       texts to texts: stop strings, streaming, log-probabilities
beam.py       beam search
"""

import importlib

_HOMES = {  # imported when asked for
    "Engine": "gptjax.generation.engine",
    "Row": "gptjax.generation.engine",
    "Settings": "gptjax.generation.sampling",
    "Completion": "gptjax.generation.text",
    "generate": "gptjax.generation.text",
    "prompt_ids": "gptjax.generation.text",
}


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
