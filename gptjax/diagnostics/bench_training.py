"""How fast a config trains and decodes here: compile time, tokens per second, MFU, memory. Random tokens, no disk.

Times on a shared machine drift; compare ratios of runs that alternate, not numbers from different days.
"""

import statistics
import time

import jax
import numpy as np

from gptjax import flops, hardware
from gptjax.generation.engine import Engine, Row
from gptjax.generation.settings import Settings
from gptjax.parallel import numerics
from gptjax.planning import info
from gptjax.terminal import si
from gptjax.training import program as programs
from gptjax.training.step import TrainState

DECODE_BATCHES = (1, 8)
DECODE_TOKENS = 64


def bench(config, seconds: float) -> dict:
    """Measurements of training (whole calls of train.steps_per_call steps) and of decoding after a one-token prompt.

    MFU is of the peak that `gptjax train` counts with, FLOPs counted as PaLM does; None on a CPU (hardware.peak_of).
    Raises UserError for a config that does not fit the devices.
    """
    config = info.resolved(config)
    program = programs.of(config)
    mesh, device = program.mesh, program.mesh.devices.flat[0]
    peak, source = hardware.peak_of(device, config.model.dtype)
    with numerics.on_mesh(mesh):
        start = time.perf_counter()
        state = jax.block_until_ready(program.init())
        results = {
            "device": f"{mesh.size} x {device.device_kind}",
            "attention": program.kernel,
            "peak_flops_per_second": peak,  # of a device
            "peak_source": source,
            "init_seconds": time.perf_counter() - start,
        }
        results["train"], state = _bench_train(config, program, state, peak, seconds)
        results["decode"] = [_bench_decode(config, program, state.params, batch, seconds) for batch in DECODE_BATCHES]
    results["peak_memory_bytes"] = hardware.memory_in_use(mesh.local_devices)
    return results


def _bench_train(config, program, state, peak: float | None, seconds: float) -> tuple[dict, TrainState]:
    shape = (config.train.steps_per_call, config.train.batch_size, config.model.context_length)
    token = np.random.default_rng(0).integers(config.model.vocab_size, size=(*shape[:2], shape[2] + 1), dtype=np.int32)
    batch = {"token_BT": token, "weight_BL": np.ones(shape, np.float32)}
    batch = jax.device_put(batch, program.train_batch_sharding)
    rates = np.full(shape[0], config.optim.peak_lr, np.float32)
    start = time.perf_counter()
    call = program.train.lower(state, batch, rates).compile()
    compile_seconds = time.perf_counter() - start
    times, deadline = [], time.perf_counter() + seconds
    state, _ = jax.block_until_ready(call(state, batch, rates))
    while len(times) < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        state, _ = jax.block_until_ready(call(state, batch, rates))
        times.append(time.perf_counter() - start)
    rate = np.prod(shape) / statistics.median(times)
    per_token = flops.flops_per_token(config.model)["6n_attn_full"]
    memory = call.memory_analysis()
    return {
        "compile_seconds": compile_seconds,
        "tokens_per_second": float(rate),
        "tokens_per_second_best": float(np.prod(shape) / min(times)),
        "step_seconds": statistics.median(times) / shape[0],
        "mfu": None if peak is None else flops.mfu(rate, per_token, peak * program.mesh.size),
        "program_temporary_bytes": getattr(memory, "temp_size_in_bytes", None),
        "calls_measured": len(times),
    }, state


def _bench_decode(config, program, params, batch: int, seconds: float) -> dict:
    tokens = min(DECODE_TOKENS, config.model.context_length - 1)

    engine, settings = Engine(program.graph, params), Settings(max_tokens=tokens)

    def generate(seed):
        rows = [Row(np.zeros(1, np.int32), seed + i, settings) for i in range(batch)]
        start = time.perf_counter()
        engine.run(rows)
        return time.perf_counter() - start

    first, times = generate(0), []
    deadline = time.perf_counter() + seconds / len(DECODE_BATCHES)
    while len(times) < 3 or time.perf_counter() < deadline:
        times.append(generate(len(times)))
    median = statistics.median(times)
    return {"batch": batch, "compile_seconds": first - median, "tokens_per_second": batch * tokens / median}


def table(results: dict) -> str:
    """bench() for a person."""
    train = results["train"]
    peak, source = results["peak_flops_per_second"], results["peak_source"]
    mfu = "" if peak is None else f" MFU {train['mfu']:.1%},"
    of = f"MFU not shown: {source}" if peak is None else f"MFU of {peak / 1e12:.4g} TFLOP/s a device ({source})"
    lines = [
        f"device   {results['device']}, attention {results['attention']}, {of}",
        f"init     {results['init_seconds']:.1f} s, compilation included",
        f"train    compile {train['compile_seconds']:.1f} s, {si(train['tokens_per_second'])} tokens/s"
        f" (best {si(train['tokens_per_second_best'])}),{mfu}"
        f" {train['step_seconds'] * 1000:.1f} ms a step,"
        f" median of {train['calls_measured']} calls",
    ]
    for decode in results["decode"]:
        lines.append(
            f"decode   batch {decode['batch']}: compile {decode['compile_seconds']:.1f} s,"
            f" {si(decode['tokens_per_second'])} tokens/s"
        )
    return "\n".join([*lines, f"memory   peak {si(results['peak_memory_bytes'])}B"])
