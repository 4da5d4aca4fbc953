#!/usr/bin/env bash
# jax 0.10.2 on a CPU: inside jit, x @ W.T with one row of 4096 or more numbers copies the whole matrix first.
#
# W has the layout of a PyTorch checkpoint, outputs x inputs, in float32; x is one token's row, as in decoding.
#
# Expected: x @ W.T reads W once, where it lies. jax.lax.dot_general over the last axes of both is the same product.
# Seen: so it is for a row of 4095 numbers, and for two rows of 4096. For one row of 4096 the compiled program writes W
# transposed into temporary memory as large as W (64 MiB here, by memory_analysis()) and multiplies by that, at each
# call. dot_general needs 16 KiB there, and a small part of the time (here a 25th to a 49th, on two cores).
#
# Exits 0 while this holds, 1 when XLA behaves otherwise.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
cat >"$folder/transposed.py" <<'PY'
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

OUTPUTS, TURNS = 4096, 20
LAST_OF_BOTH = (((1,), (1,)), ((), ()))
generator = np.random.default_rng(0)
with_transpose = jax.jit(lambda x, weights: x @ weights.T)
with_dot_general = jax.jit(lambda x, weights: jax.lax.dot_general(x, weights, LAST_OF_BOTH))


def temporary_and_median(function, *arguments):
    """The bytes of temporary memory that the compiled function needs, and the median seconds of a call."""
    seconds = []
    for _ in range(TURNS + 1):
        start = time.perf_counter()
        function(*arguments).block_until_ready()
        seconds.append(time.perf_counter() - start)
    memory = function.lower(*arguments).compile().memory_analysis()
    return memory.temp_size_in_bytes, float(np.median(seconds[1:]))


copies, ratios = {}, {}
for rows, inputs in ((1, 4095), (1, 4096), (2, 4096)):
    x = jnp.asarray(generator.integers(-8, 8, (rows, inputs)), jnp.float32)
    weights = jnp.asarray(generator.integers(-8, 8, (OUTPUTS, inputs)), jnp.float32)
    assert np.array_equal(with_transpose(x, weights), with_dot_general(x, weights))  # exact: these are small integers
    (of_transpose, slow), (of_dot_general, fast) = (
        temporary_and_median(function, x, weights) for function in (with_transpose, with_dot_general)
    )
    copies[rows, inputs] = of_transpose >= weights.nbytes > of_dot_general
    ratios[rows, inputs] = slow / fast
    print(f"{rows} x {inputs}: x @ W.T {slow * 1e3:.1f} ms, temporary memory {of_transpose} bytes;", end=" ")
    print(f"dot_general {fast * 1e3:.1f} ms, {of_dot_general} bytes; ratio {slow / fast:.1f}")
as_seen = copies == {(1, 4095): False, (1, 4096): True, (2, 4096): False}
sys.exit(0 if as_seen and ratios[1, 4096] > 2 else 1)
PY
JAX_PLATFORMS=cpu "$folder/venv/bin/python" "$folder/transposed.py"
