"""Text from a model: one engine for notebook, command line and server.

completion = generate(Engine(graph, params), tokenizer, "Once upon", Settings(max_tokens=50))[0]

sampling.py   logits to a token: penalties, temperature, top-k, top-p, min-p
engine.py     tokens to tokens: prefill and decode with a cache of keys and values, rows of unequal length
text.py       texts to texts: stop strings, streaming, log-probabilities
beam.py       beam search
"""

from gptjax.generation.engine import Engine, Row
from gptjax.generation.sampling import Settings
from gptjax.generation.text import Completion, generate, prompt_ids

__all__ = ["Completion", "Engine", "Row", "Settings", "generate", "prompt_ids"]
