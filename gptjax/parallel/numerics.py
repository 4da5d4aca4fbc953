"""The settings of JAX that our programs have, whatever others in the process or the environment have set.

A seed is a promise of numbers, and under another random generator, or with 64-bit integers, it would be kept with others:
so training, evaluation and text have the settings below. What changes precision and not meaning (jax_default_matmul_precision)
and what helps to find mistakes (jax_debug_nans, jax_check_tracer_leaks) stays as it is set.

In a process of ours (`gptjax ...`) they hold from the start. In others, such as a notebook, they hold inside our functions and
the caller's own come back behind them: JAX compiles for the settings in context, so that neither sees the other's programs.
"""

import contextlib

import jax

SETTINGS = {
    "enable_x64": False,
    "numpy_dtype_promotion": "standard",
    "numpy_rank_promotion": "allow",
    "default_prng_impl": "threefry2x32",
    "threefry_partitionable": True,  # random numbers of a mesh are those of one device
}


def set_for_process() -> None:
    """SETTINGS in every thread, from now on."""
    for name, value in SETTINGS.items():
        jax.config.update(f"jax_{name}", value)


@contextlib.contextmanager
def settings():
    """SETTINGS in this thread, inside the `with`, or inside a function that is decorated with it.

    Those that hold already are left alone: a context would be another key to what JAX has compiled.
    """
    with contextlib.ExitStack() as stack:
        for name, value in SETTINGS.items():
            if getattr(jax.config, f"jax_{name}") != value:
                stack.enter_context(getattr(jax, name)(value))
        yield


@contextlib.contextmanager
def on_mesh(mesh):
    """`jax.set_mesh` with SETTINGS: what everything that runs a program of ours is in."""
    with settings(), jax.set_mesh(mesh):
        yield
