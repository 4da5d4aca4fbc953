#!/usr/bin/env bash
# jax 0.10.2 on a CPU: a vector times an int8 matrix that is widened inside jit takes longer than times the float32 matrix,
# unless the matrix is stored transposed.
#
# The vector has 768 numbers, the matrix 768 x 3072: a layer of GPT-2 that writes one token, with weights kept as int8.
#
# Expected: x @ W.astype(float32) reads a quarter of the bytes and widens them as it goes: not slower than x @ W in float32.
# Seen: the compiled program first writes the whole matrix as float32 into temporary memory (9.4 MB, by memory_analysis())
# and then multiplies: almost twice the time of float32, five times with 4096 x 4096; bfloat16 weights fare alike.
# The same weights stored transposed, x @ W.T.astype(float32), need no temporary memory and take half the time of float32.
# This way out holds for one row of x and fewer than 4096 inputs: with two rows, or 4096 inputs, they are widened first too.
#
# Exits 0 while this holds, 1 when XLA behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat >"$folder/matvec.py" <<'PY'
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

INPUTS, OUTPUTS, TURNS = 768, 3072, 300
generator = np.random.default_rng(0)
x = jnp.asarray(generator.integers(-8, 8, (1, INPUTS)), jnp.float32)
weights = jnp.asarray(generator.integers(-127, 128, (INPUTS, OUTPUTS)), jnp.int8)


@jax.jit
def product(x, weights):
    return x @ weights.astype(jnp.float32)


@jax.jit
def product_of_transposed(x, weights):
    return x @ weights.T.astype(jnp.float32)


cases = {
    "float32": (product, weights.astype(jnp.float32)),
    "bfloat16": (product, weights.astype(jnp.bfloat16)),
    "int8": (product, weights),
    "float32 transposed": (product_of_transposed, weights.T.astype(jnp.float32)),
    "int8 transposed": (product_of_transposed, weights.T.copy()),
}
temporary, seconds = {}, {name: [] for name in cases}
exact = np.asarray(x, np.int64) @ np.asarray(weights, np.int64)
for name, (function, stored) in cases.items():
    temporary[name] = function.lower(x, stored).compile().memory_analysis().temp_size_in_bytes
    assert np.array_equal(function(x, stored), exact), name  # integers this small are exact in float32
for _ in range(TURNS):
    for name, (function, stored) in cases.items():
        start = time.perf_counter()
        function(x, stored).block_until_ready()
        seconds[name].append(time.perf_counter() - start)
median = {name: float(np.median(each)) for name, each in seconds.items()}
ratio = {name: median[name] / median["float32"] for name in cases}
for name in cases:
    print(f"{name:18}: {median[name] * 1e6:6.0f} us, {ratio[name]:.2f} of float32, temporary memory {temporary[name]} bytes")
whole_matrix = 4 * INPUTS * OUTPUTS
widened_first = temporary["int8"] >= whole_matrix > temporary["int8 transposed"] and temporary["float32"] < whole_matrix
sys.exit(0 if widened_first and ratio["int8"] > 1.2 and ratio["int8 transposed"] < ratio["int8"] else 1)
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/matvec.py"
