"""`gptjax bench --sft`: how fast a model learns answers, beside TRL's SFTTrainer on torch, alternated in one process.

Both have the same shape, float32, AdamW, the same constructed conversations, and pack whole ones into rows of
model.context_length, apart from each other. What is counted are the tokens of answers, which alone bear loss. Compilation and
a first step of each are left out; the peak of memory is that of a process of its own for each side. With --lora both train
LoRA of rank 8 on the matrix of queries, keys and values (TRL with peft). Only ratios mean something on a shared machine.

Axes: R rows, B rows of a step, T = L + 1 tokens.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
import typing

import numpy as np

from gptjax import flops, start
from gptjax.config.values import from_dict
from gptjax.errors import UserError
from gptjax.planning import info
from gptjax.terminal import si

ROWS = 32  # of packed conversations, at least: steps go through them again and again
LEAST_CONTEXT = 64
LORA = {"rank": 8, "alpha": 16}
OURS, THEIRS = SIDES = ("ours", "theirs")
MEMORY_STEPS = 2


class Conversation(typing.NamedTuple):
    token_N: np.ndarray  # int32
    is_answer_N: np.ndarray  # bool: of an answer, its end token among them


def conversations(vocab_size: int, context_length: int, seed: int = 0) -> list[Conversation]:
    """Of one to three turns, enough for ROWS rows: questions of 8 to 64 tokens and answers of 16 to 160, all random; longer
    ones are cut at context_length, as few are."""
    rng, made, tokens = np.random.default_rng(seed), [], 0
    while tokens < ROWS * context_length:
        turns = [(rng.integers(8, 65), rng.integers(16, 161)) for _ in range(rng.integers(1, 4))]
        is_answer_N = np.concatenate([np.repeat([False, True], turn) for turn in turns])[:context_length]
        made.append(Conversation(rng.integers(vocab_size, size=len(is_answer_N), dtype=np.int32), is_answer_N))
        tokens += len(is_answer_N)
    return made


def packed(made: list[Conversation], context_length: int) -> dict[str, np.ndarray]:
    """Rows as data/rows/packing has them, with the loss at answers alone: token_BT, weight_BL, segment_BT, position_BL."""
    from gptjax.data.rows.packing import best_fit_decreasing

    row_P = best_fit_decreasing(np.array([len(one.token_N) for one in made]), context_length + 1)
    rows, T = int(row_P.max()) + 1, context_length + 1
    token_BT, segment_BT, position_BT = (np.zeros((rows, T), np.int32) for _ in range(3))
    weight_BT, used_B, count_B = np.zeros((rows, T), np.float32), np.zeros(rows, int), np.zeros(rows, int)
    for one, row in zip(made, row_P):
        place = slice(used_B[row], used_B[row] + len(one.token_N))
        token_BT[row, place], segment_BT[row, place] = one.token_N, count_B[row]
        position_BT[row, place], weight_BT[row, place] = np.arange(len(one.token_N)), one.is_answer_N
        weight_BT[row, place.start] = 0  # nothing of its own conversation foretells its first token
        used_B[row], count_B[row] = place.stop, count_B[row] + 1
    for row in range(rows):  # what pads a row is a document of its own
        segment_BT[row, used_B[row] :] = count_B[row]
        position_BT[row, used_B[row] :] = np.arange(T - used_B[row])
    return {
        "token_BT": token_BT,
        "weight_BL": weight_BT[:, 1:],
        "segment_BT": segment_BT,
        "position_BL": position_BT[:, :-1],
    }


def resolved(config, lora: bool):
    """The config that is measured: as given, but in float32, without dropout, and one step a call. Raises UserError: the
    context is too short for a conversation."""
    config = info.resolved(config)
    if config.model.context_length < LEAST_CONTEXT:
        raise UserError(
            f"model.context_length={config.model.context_length} has no room for the conversations that --sft measures; use"
            f" at least {LEAST_CONTEXT}."
        )
    model = {"dtype": "float32", "embed_dropout": 0.0, "attention_dropout": 0.0, "residual_dropout": 0.0}
    if lora:
        model["adapter"] = f"lora(rank={LORA['rank']}, alpha={LORA['alpha']}, on='qkv')"
    of_conversations = {
        "chat": "gptjax",
        "source": "jsonl",
        "path": "constructed",
        "mixture": None,
    }  # read by nobody here
    data = of_conversations | {"packing": "best_fit", "val_split": "document", "objective": "next_token"}
    return config.replace(model=model, train={"steps_per_call": 1}, data=data)


class Ours:
    """Steps of gptjax over the packed conversations. `step` returns how many tokens bore loss."""

    def __init__(self, config):
        import jax

        from gptjax.parallel import numerics
        from gptjax.training import program as programs

        self._config, self._jax, self._numerics = config, jax, numerics
        self._rows = packed(
            conversations(config.model.vocab_size, config.model.context_length), config.model.context_length
        )
        self._program = programs.of(config)
        with numerics.on_mesh(self._program.mesh):
            self._state = self._program.init()
        self._first = 0

    def step(self) -> float:
        size, rows = self._config.train.batch_size, len(self._rows["token_BT"])
        place_B = np.arange(self._first, self._first + size) % rows
        self._first += size
        batch = {name: array[place_B][None] for name, array in self._rows.items()}
        rate = np.full(1, self._config.optim.peak_lr, np.float32)
        with self._numerics.on_mesh(self._program.mesh):
            batch_on_device = self._jax.device_put(batch, self._program.train_batch_sharding)
            self._state, numbers = self._program.train(self._state, batch_on_device, rate)
            assert np.isfinite(self._jax.device_get(numbers["loss"])).all()
        return float(batch["weight_BL"].sum())

    def close(self) -> None: ...


def _side(name: str, config, lora: bool):
    if name == OURS:
        return Ours(config)
    from gptjax.diagnostics import bench_sft_trl

    made = conversations(config.model.vocab_size, config.model.context_length)
    return bench_sft_trl.Theirs(config, made, LORA if lora else None)


def bench(config, seconds: float, lora: bool = False) -> dict:
    """Loss-bearing tokens per second of both sides, medians, the median of the ratios of neighbouring steps, and the peak of
    memory of each.

    Raises UserError: torch, transformers, trl or peft is missing, or transformers has no such model.
    """
    config = resolved(config, lora)
    memory = {name: _memory(config, name, lora) for name in SIDES}  # first: this process holds both sides from here on
    sides = {name: _side(name, config, lora) for name in SIDES}
    try:
        rates = _alternate(sides, seconds)
    finally:
        for side in sides.values():
            side.close()
    ratio = statistics.median(ours / theirs for ours, theirs in zip(rates[OURS], rates[THEIRS]))
    return {
        "context_length": config.model.context_length,
        "batch_size": config.train.batch_size,
        "lora": LORA if lora else None,
        "tokens_per_second": {name: statistics.median(rates[name]) for name in SIDES},
        "ratio": ratio,
        "pairs": len(rates[OURS]),
        "flops_per_step": config.train.batch_size * flops.train_flops_per_sequence(config.model),
        "targets_per_step": statistics.mean(_targets(config)),
        "matmul_flops_per_second": matmul_rate(config),
        "memory": memory,
    }


def _targets(config) -> list[float]:
    """Loss-bearing tokens of each step of an epoch."""
    made, size = conversations(config.model.vocab_size, config.model.context_length), config.train.batch_size
    target_B = packed(made, config.model.context_length)["weight_BL"].sum(axis=1)
    return [float(target_B[np.arange(first, first + size) % len(target_B)].sum()) for first in range(len(target_B))]


def matmul_rate(config, times: int = 8) -> float:
    """FLOPs per second of the MLP's first matmul alone, a row of tokens on each device: what bounds a step. The best of some."""
    import jax

    shape, devices = config.model, jax.devices()[: config.mesh.cpu_devices]
    rows, D, F = len(devices) * shape.context_length, shape.d_model, shape.ff_size
    mesh = jax.sharding.Mesh(np.array(devices), ("rows",))
    on_mesh = lambda array, *spec: jax.device_put(array, jax.NamedSharding(mesh, jax.P(*spec)))  # noqa: E731
    x, weight = on_mesh(np.ones((rows, D), np.float32), "rows"), on_mesh(np.ones((D, F), np.float32))
    matmul, seconds = jax.jit(lambda x, weight: x @ weight).lower(x, weight).compile(), []
    for _ in range(1 + times):
        begun = time.perf_counter()
        jax.block_until_ready(matmul(x, weight))
        seconds.append(time.perf_counter() - begun)
    return 2 * rows * D * F / min(seconds[1:])


def _alternate(sides: dict, seconds: float) -> dict[str, list[float]]:
    """Loss-bearing tokens per second of steps of each side, one after the other, at least three of each."""
    for side in sides.values():
        side.step()
    rates, deadline = {name: [] for name in sides}, time.perf_counter() + seconds
    while len(rates[OURS]) < 3 or time.perf_counter() < deadline:
        for name, side in sides.items():
            begun = time.perf_counter()
            tokens = side.step()
            rates[name].append(tokens / (time.perf_counter() - begun))
    return rates


def _memory(config, name: str, lora: bool) -> dict[str, int]:
    """{"peak": bytes, "before": bytes of it that stood there before the model was made}, of a process that takes a few steps."""
    code = "from gptjax.diagnostics import bench_sft; bench_sft.in_child()"
    wanted = {"config": config.to_dict(), "side": name, "lora": lora}
    child = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(wanted), capture_output=True, text=True, check=False
    )
    if child.returncode:
        raise UserError(f"--sft: the process that measures memory ended with {child.returncode}: {child.stderr[-300:]}")
    return json.loads(child.stdout.splitlines()[-1])


def in_child() -> None:
    """Takes steps of the side that stdin names, and prints what `_memory` gives."""
    wanted = json.load(sys.stdin)
    config = from_dict(wanted["config"])
    start.start_jax(config)
    if wanted["side"] == THEIRS:
        from gptjax.diagnostics import bench_sft_trl

        bench_sft_trl.libraries(wanted["lora"])
    before = _peak_bytes()
    side = _side(wanted["side"], config, wanted["lora"])
    for _ in range(MEMORY_STEPS):
        side.step()
    memory = {"peak": _peak_bytes(), "before": before}
    side.close()
    print(json.dumps(memory), flush=True)


def _peak_bytes() -> int:
    """Of this process so far; Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def table(results: dict) -> str:
    """bench() for a person."""
    form = "LoRA of rank 8" if results["lora"] else "all parameters"
    rates, memory = results["tokens_per_second"], results["memory"]
    per_target = results["flops_per_step"] / results["targets_per_step"]
    flop_rates = {name: si(per_target * rates[name]) for name in SIDES}
    shown = {name: f"{memory[name]['peak'] / 2**30:.2f} GiB" for name in SIDES}
    return "\n".join(
        [
            f"packed conversations, {results['batch_size']} rows of {results['context_length']} tokens a step, float32, {form}",
            f"{si(rates[OURS])} loss-bearing tokens/s, TRL's SFTTrainer {si(rates[THEIRS])}: {results['ratio']:.2f} times as fast"
            f" (median of {results['pairs']} pairs)",
            f"{si(per_target)}FLOP for each at all logits, so {flop_rates[OURS]}FLOP/s, TRL {flop_rates[THEIRS]}FLOP/s;"
            f" the MLP's matmul alone {si(results['matmul_flops_per_second'])}FLOP/s",
            f"peak memory {shown[OURS]}, TRL {shown[THEIRS]}",
        ]
    )
