"""`gptjax bench --generate`: how fast text comes, beside transformers' generate on torch, alternated in one process.

Both have the same shape, float32, a cache of keys and values, random parameters and prompts, and take the likeliest
token; compilation and a first run of each are left out. Only the ratio means something on a machine that others use.
"""

import statistics
import time

import jax
import numpy as np

from gptjax.config.extras import library
from gptjax.errors import UserError
from gptjax.generation.engine import Engine, Row
from gptjax.generation.settings import Settings
from gptjax.huggingface import families
from gptjax.models import architectures
from gptjax.parallel import numerics
from gptjax.planning import info

BATCHES = (1, 8)
PROMPT_TOKENS, NEW_TOKENS = 16, 64


@numerics.settings()
def bench(config, seconds: float) -> dict:
    """Tokens per second of both for each of BATCHES, medians, and the median of the ratios of neighbouring runs.

    Raises UserError: torch or transformers is missing, transformers has no such model, or the context is too short.
    """
    if config.model.context_length < PROMPT_TOKENS + NEW_TOKENS:
        raise UserError(
            f"model.context_length={config.model.context_length} has no room for the {PROMPT_TOKENS} tokens of prompt and"
            f" {NEW_TOKENS} new ones that --generate measures; use at least {PROMPT_TOKENS + NEW_TOKENS}."
        )
    config = info.resolved(config).replace(model={"dtype": "float32"})
    theirs = _their_model(config.model)
    graph, abstract, _ = architectures.abstract(config.model)
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(abstract))))
    params = jax.tree.map(lambda a: 0.02 * jax.random.normal(next(keys), a.shape), abstract)
    engine = Engine(graph, params)
    rows = [_bench_batch(engine, theirs, batch, seconds / len(BATCHES)) for batch in BATCHES]
    return {"prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS, "batches": rows}


def _their_model(shape):
    torch = library("torch", "--generate measures beside Hugging Face, which")
    transformers = library("transformers", "--generate measures beside Hugging Face, which")
    family = families.family_for(shape)
    values = family.config_out(shape, "float32", None)
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def _bench_batch(engine, theirs, batch: int, seconds: float) -> dict:
    token_BL = np.random.default_rng(0).integers(engine.config.vocab_size, size=(batch, PROMPT_TOKENS), dtype=np.int32)
    functions = {"ours": lambda: _ours(engine, token_BL), "theirs": lambda: _theirs(theirs, token_BL)}
    times = {name: [] for name in functions}
    for function in functions.values():
        function()
    deadline = time.perf_counter() + seconds
    while len(times["ours"]) < 3 or time.perf_counter() < deadline:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    rates = {name: batch * NEW_TOKENS / statistics.median(taken) for name, taken in times.items()}
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["theirs"]))
    return {"batch": batch, **rates, "ratio": ratio, "runs": len(times["ours"])}


def _ours(engine, token_BL) -> None:
    settings = Settings(max_tokens=NEW_TOKENS, temperature=0)
    rows = [Row(prompt, 0, settings) for prompt in token_BL]
    engine.run(rows)
    assert all(len(row.new) == NEW_TOKENS for row in rows)


def _theirs(gpt, token_BL) -> None:
    import torch

    ids = torch.tensor(token_BL.astype(np.int64))
    options = dict(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)
    with torch.inference_mode():
        made = gpt.generate(ids, attention_mask=torch.ones_like(ids), **options)
    assert made.shape[1] == PROMPT_TOKENS + NEW_TOKENS


def table(results: dict) -> str:
    """bench() for a person."""
    lines = [f"{results['prompt_tokens']} tokens of prompt, {results['new_tokens']} new ones, float32, greedy"]
    for row in results["batches"]:
        lines.append(
            f"batch {row['batch']}: {row['ours']:.1f} tokens/s, Hugging Face generate {row['theirs']:.1f}:"
            f" {row['ratio']:.2f} times as fast (median of {row['runs']} pairs)"
        )
    return "\n".join(lines)
