"""`gptjax bench --generate`: how fast text comes, beside transformers' generate on torch, alternated in one process.

Both have the same shape, float32 (ours also int8), a cache of keys and values, random parameters and prompts, and take the likeliest
token; compilation and a first run of each are left out. Only the ratio means something on a machine that others use.
"""

import statistics
import time

import jax
import numpy as np

from gptjax.config.extras import library
from gptjax.errors import UserError, choose
from gptjax.generation.engine import Engine, Row
from gptjax.generation.settings import Settings
from gptjax.huggingface import families
from gptjax.models import architectures, int8
from gptjax.parallel import numerics
from gptjax.planning import info

BATCHES = (1, 8)
PROMPT_TOKENS, NEW_TOKENS = 16, 64


@numerics.settings()
def bench(config, seconds: float, dtype: str | None = None) -> dict:
    """Tokens per second of both for each of BATCHES, medians, and the median of the ratios of neighbouring runs, also of the CPU
    seconds of this process. dtype: "int8": of our weights; None: float32, as theirs.

    Raises UserError: torch or transformers is missing, transformers has no such model, or the context is too short.
    """
    if config.model.context_length < PROMPT_TOKENS + NEW_TOKENS:
        raise UserError(
            f"model.context_length={config.model.context_length} has no room for the {PROMPT_TOKENS} tokens of prompt and"
            f" {NEW_TOKENS} new ones that --generate measures; use at least {PROMPT_TOKENS + NEW_TOKENS}."
        )
    config = info.resolved(config).replace(model={"dtype": "float32"})
    theirs = _their_model(config.model)
    engine = _engine(config.model, dtype)
    rows = [_bench_batch(engine, theirs, batch, seconds / len(BATCHES)) for batch in BATCHES]
    sizes = {"prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS}
    return sizes | {"dtype": dtype or "float32", "batches": rows}


def _engine(shape, dtype: str | None) -> Engine:
    """Of random parameters. Raises UserError: another dtype than is measured."""
    choose({"float32": None, "int8": None}, dtype or "float32", "--dtype")
    graph, abstract, _ = architectures.abstract(shape)
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(abstract))))
    params = jax.tree.map(lambda a: 0.02 * jax.random.normal(next(keys), a.shape), abstract)
    if dtype == "int8":
        graph, abstract, _ = int8.parts(shape, graph, abstract)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        params = int8.converted(params, abstract, jax.tree.map(lambda _: here, abstract))
    return Engine(graph, params)


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
    times, cpu_times = ({name: [] for name in functions} for _ in range(2))
    for function in functions.values():
        function()
    deadline = time.perf_counter() + seconds
    while len(times["ours"]) < 3 or time.perf_counter() < deadline:
        for name, function in functions.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            function()
            times[name].append(time.perf_counter() - start)
            cpu_times[name].append(time.process_time() - cpu_start)
    rates = {name: batch * NEW_TOKENS / statistics.median(taken) for name, taken in times.items()}
    ratio = statistics.median(b / a for a, b in zip(times["ours"], times["theirs"]))
    cpu_ratio = min(cpu_times["theirs"]) / min(
        cpu_times["ours"]
    )  # what others do on the machine adds to both, so the least
    return {"batch": batch, **rates, "ratio": ratio, "cpu_ratio": cpu_ratio, "runs": len(times["ours"])}


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
    lines = [
        f"{results['prompt_tokens']} tokens of prompt, {results['new_tokens']} new ones, {results['dtype']} beside Hugging Face's"
        " float32, greedy"
    ]
    for row in results["batches"]:
        lines.append(
            f"batch {row['batch']}: {row['ours']:.1f} tokens/s, Hugging Face generate {row['theirs']:.1f}:"
            f" {row['ratio']:.2f} times as fast (median of {row['runs']} pairs);"
            f" {row['cpu_ratio']:.2f} by CPU seconds, the least of each"
        )
    return "\n".join(lines)
