"""`gptjax bench --prefs=reward|dpo`: how fast a model learns preferences, beside TRL's trainer on torch, in turn.

Both sides have the same shape, float32, AdamW and the same constructed answers to the same prompts. What is counted are pairs:
of K answers to a prompt (--answers=K) K (K - 1) / 2. A reward model of ours reads each answer once; TRL, which knows pairs
alone, reads both answers of each. The reference's log-probabilities of DPO are there before the first step, on both sides.
Compilation and a first step of each are left out. Only ratios mean something on a shared machine.

Axes: B prompts of a step, K answers.
"""

import itertools
import statistics
import time

import numpy as np

from gptjax.data.pairs.encoding import Example
from gptjax.errors import UserError
from gptjax.planning import info

SETS = 16  # of prompts that steps go through again and again, each of one batch
LEAST_CONTEXT = 32


def examples(vocab_size: int, context_length: int, answers: int, count: int, seed: int = 0) -> list[Example]:
    """Prompts of an eighth to a half of the context, each with answers of an eighth to a half, the best first; all random."""
    rng, made = np.random.default_rng(seed), []
    least, most = context_length // 8, context_length // 2
    for _ in range(count):
        prompt = rng.integers(vocab_size, size=rng.integers(least, most + 1), dtype=np.int32)
        sequences, targets = [], []
        for _ in range(answers):
            answer = rng.integers(vocab_size, size=rng.integers(least, most + 1), dtype=np.int32)
            sequences.append(np.concatenate([prompt, answer]))
            targets.append(np.repeat([False, True], [len(prompt), len(answer)]))
        score_K = np.arange(answers, 0, -1, dtype=np.float32)
        made.append(_example(sequences, targets, score_K, len(prompt)))
    return made


def _example(sequences, targets, score_K, prompt_length: int) -> Example:
    values = dict.fromkeys(Example._fields)
    values |= {"sequences": tuple(sequences), "targets": tuple(targets), "score_K": score_K, "margin": 0.0}
    return Example(**values | {"prompt_length": prompt_length, "reference_K": np.zeros(len(sequences), np.float32)})


def pairs(example: Example) -> list[tuple[int, int]]:
    """(better, worse) answers of an example."""
    return list(itertools.combinations(range(len(example.sequences)), 2))


def resolved(config, kind: str, answers: int):
    """The config that is measured: as given, but in float32, without dropout, one step a call, and with that loss. Raises
    UserError: it cannot be measured."""
    if answers < 2:
        raise UserError(f"--answers={answers} makes no pair; use at least 2.")
    if kind == "dpo" and answers > 2:
        raise UserError(f"--answers={answers} is of --prefs=reward; DPO learns from pairs.")
    config = info.resolved(config)
    if config.model.context_length < LEAST_CONTEXT:
        raise UserError(
            f"model.context_length={config.model.context_length} has no room for the answers that --prefs measures; use at"
            f" least {LEAST_CONTEXT}."
        )
    model = dict.fromkeys(("embed_dropout", "attention_dropout", "residual_dropout"), 0.0) | {"dtype": "float32"}
    if kind == "reward":
        model["task_head"] = "score(dropout=0.0)"
    data = {"source": "jsonl:pairs.jsonl", "chat": "gptjax", "preferences": "compared"}  # nothing is read
    return config.replace(model=model, data=data, train={"steps_per_call": 1, "loss": kind})


class Ours:
    """Steps of gptjax over the answers. `step` returns of how many pairs."""

    def __init__(self, config, made: list[Example]):
        import jax

        from gptjax.data.pairs.rows import batch_of
        from gptjax.parallel import numerics
        from gptjax.training import program as programs

        self._config, self._jax, self._numerics = config, jax, numerics
        self._program = programs.of(config)
        with numerics.on_mesh(self._program.mesh):
            self._state = self._program.init()
        size, answers = config.train.batch_size, len(made[0].sequences)
        batches = [made[first : first + size] for first in range(0, len(made), size)]
        self._batches = itertools.cycle([batch_of(batch, answers, config.model.context_length) for batch in batches])
        self._pairs = size * len(pairs(made[0]))

    def step(self) -> float:
        batch = {name: array[None] for name, array in next(self._batches).items()}
        rate = np.full(1, self._config.optim.peak_lr, np.float32)
        with self._numerics.on_mesh(self._program.mesh):
            batch_on_device = self._jax.device_put(batch, self._program.train_batch_sharding)
            self._state, numbers = self._program.train(self._state, batch_on_device, rate)
            assert np.isfinite(self._jax.device_get(numbers["loss"])).all()
        return float(self._pairs)

    def close(self) -> None: ...


def bench(config, seconds: float, kind: str, answers: int = 2) -> dict:
    """Pairs per second of both sides, medians, and the median of the ratios of neighbouring steps.

    Raises UserError: torch, transformers or trl is missing, transformers has no such model, or see `resolved`.
    """
    from gptjax.diagnostics import bench_prefs_trl

    config = resolved(config, kind, answers)
    count = SETS * config.train.batch_size
    made = examples(config.model.vocab_size, config.model.context_length, answers, count)
    sides = {"ours": Ours(config, made), "theirs": bench_prefs_trl.Theirs(config, made, pairs(made[0]), kind)}
    try:
        rates = _alternate(sides, seconds)
    finally:
        for side in sides.values():
            side.close()
    return {
        "kind": kind,
        "answers": answers,
        "context_length": config.model.context_length,
        "batch_size": config.train.batch_size,
        "pairs_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "ratio": statistics.median(ours / theirs for ours, theirs in zip(rates["ours"], rates["theirs"])),
        "steps": len(rates["ours"]),
    }


def _alternate(sides: dict, seconds: float) -> dict[str, list[float]]:
    """Pairs per second of steps of each side, one after the other, at least three of each."""
    for side in sides.values():
        side.step()
    rates, deadline = {name: [] for name in sides}, time.perf_counter() + seconds
    while len(rates["ours"]) < 3 or time.perf_counter() < deadline:
        for name, side in sides.items():
            began = time.perf_counter()
            count = side.step()
            rates[name].append(count / (time.perf_counter() - began))
    return rates


def table(results: dict) -> str:
    """bench() for a person."""
    rates = results["pairs_per_second"]
    return "\n".join(
        [
            f"{results['kind']}, {results['batch_size']} prompts of {results['answers']} answers a step, in at most"
            f" {results['context_length']} tokens, float32",
            f"{rates['ours']:.2f} pairs/s, TRL {rates['theirs']:.2f}: {results['ratio']:.2f} times as fast (median of"
            f" {results['steps']} steps that take turns)",
        ]
    )
