"""What a product of few rows and int8 weights costs on a CPU, by form, for docs/speed.md: python docs/measure_int8.py

MATRICES matrices [768, 3072] are read one after another in a jitted function, so that they come from memory and not from a
cache. The figure is the least CPU milliseconds of a call, which other processes disturb less than the seconds on the clock.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from gptjax import start
from gptjax.models import layers

MATRICES, INPUTS, OUTPUTS = 6, 768, 3072
CALLS, ROUNDS = 5, 12


def widened(x_RI, byte_IO, scale_O):
    """XLA writes the weight in float32 before it multiplies."""
    return x_RI @ byte_IO.astype(x_RI.dtype) * scale_O


FORMS = {
    "float32 as W @ x' (layers.by_columns)": lambda x_RI, byte_IO, scale_O, weight_OI: layers.by_columns(
        x_RI, weight_OI
    ),
    "int8, x @ W.astype(float32)": lambda x_RI, byte_IO, scale_O, weight_OI: widened(x_RI, byte_IO, scale_O),
    "int8 by layers.by_chunks": lambda x_RI, byte_IO, scale_O, weight_OI: layers.by_chunks(
        x_RI, byte_IO, scale_O, None
    ),
}


@functools.partial(jax.jit, static_argnames="form")
def products(x_RI, matrices, form: str):
    """Their sum, so that none is left out."""
    return sum(FORMS[form](x_RI, *matrix) for matrix in matrices)


def milliseconds(form: str, x_RI, matrices) -> float:
    jax.block_until_ready(products(x_RI, matrices, form))
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(CALLS):
            jax.block_until_ready(products(x_RI, matrices, form))
        rounds.append((time.process_time() - began) / CALLS)
    return 1e3 * min(rounds)


def main() -> None:
    start.start_jax()
    rng = np.random.default_rng(0)
    byte_NIO = rng.integers(-127, 128, (MATRICES, INPUTS, OUTPUTS), np.int8)
    scale_NO = rng.uniform(1e-3, 2e-3, (MATRICES, OUTPUTS)).astype(np.float32)
    matrices = [
        tuple(map(jnp.asarray, (byte_IO, scale_O, np.ascontiguousarray((byte_IO * scale_O).T))))
        for byte_IO, scale_O in zip(byte_NIO, scale_NO)
    ]
    print("| form | 1 row | 8 rows | largest error, of the largest output |\n|---|---|---|---|")
    for form in FORMS:
        taken, errors = [], []
        for rows in (1, 8):
            x_RI = rng.standard_normal((rows, INPUTS)).astype(np.float32)
            exact_RO = sum(x_RI.astype(np.float64) @ (byte_IO * scale_O.astype(np.float64)) for byte_IO, scale_O in zip(byte_NIO, scale_NO))  # fmt: skip
            made_RO = np.asarray(products(x_RI, matrices, form))
            errors.append(abs(made_RO - exact_RO).max() / abs(exact_RO).max())
            taken.append(milliseconds(form, x_RI, matrices))
        print(f"| {form} | {taken[0]:.1f} | {taken[1]:.1f} | {max(errors):.0e} |", flush=True)


if __name__ == "__main__":
    main()
