"""What loading a checkpoint of GPT-2 xl's shape needs: peak memory over what stays loaded, and GB/s.

    python tests/support/load_memory.py make /tmp/xl                   random parameters, 6.2 GB, written by Checkpointer
    python tests/support/load_memory.py load /tmp/xl bfloat16          in a process of its own, else its peak is another's
    python tests/support/load_memory.py load /tmp/xl float32

make takes --layers=N for a smaller one.
"""

import argparse
import json
import pathlib
import time

import jax
import numpy as np

import gptjax
from gptjax.checkpoints import checkpointer
from gptjax.config import fields
from gptjax.data import tokenizers
from gptjax.data.tokenizers.simple import IdTokenizer
from gptjax.models import gpt
from gptjax.run import run
from gptjax.rundir import run_directory


def make(directory: str, layers: int) -> None:
    shape = fields.ModelConfig(vocab_size=50257, n_layers=layers, d_model=1600, n_heads=25)
    chosen = fields.Config(model=shape, train=fields.TrainConfig(steps=1))
    place = run_directory.open_run(directory)
    place.write_config(chosen)
    tokenizers.save_tokenizer(IdTokenizer(shape.vocab_size), place.tokenizer)
    noise = np.random.default_rng(0).standard_normal(2**24, np.float32)
    program = run._program(chosen, None, None)

    def filled(leaf, sharding):
        return jax.device_put(np.resize(noise, leaf.shape), sharding)

    params = jax.tree.map(filled, program.abstract_params, program.param_sharding)
    writer = checkpointer.Checkpointer(place.checkpoints, chosen)
    writer.save({"params": params}, 1)
    writer.wait()
    writer.close()


def load(directory: str, dtype: str) -> dict:
    """Bytes, and seconds of wall and CPU."""
    start = gptjax.load, gpt, memory("VmRSS"), time.perf_counter(), time.process_time()
    loaded = gptjax.load(directory, dtype=dtype)
    wall, cpu = time.perf_counter() - start[-2], time.process_time() - start[-1]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
    stored = sum(leaf.size * 4 for leaf in jax.tree.leaves(loaded.params))
    stays, peak = memory("VmRSS"), memory("VmHWM")
    return {
        "dtype": dtype,
        "before_gb": start[2] / 1e9,
        "parameters_gb": size / 1e9,
        "stays_gb": stays / 1e9,
        "peak_gb": peak / 1e9,
        "peak_over_stays": peak / stays,
        "peak_over_parameters": peak / size,
        "seconds": wall,
        "cpu_seconds": cpu,
        "stored_gb_per_second": stored / 1e9 / wall,
        "stored_gb_per_cpu_second": stored / 1e9 / cpu,
    }


def memory(name: str) -> int:
    """Bytes, of /proc/self/status."""
    [line] = [line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=["make", "load"])
    parser.add_argument("directory")
    parser.add_argument("dtype", nargs="?", default="bfloat16")
    parser.add_argument("--layers", type=int, default=48)
    args = parser.parse_args()
    if args.action == "make":
        make(args.directory, args.layers)
    else:
        facts = load(args.directory, args.dtype)
        print(json.dumps({name: round(f, 3) if isinstance(f, float) else f for name, f in facts.items()}))
