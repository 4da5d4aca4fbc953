"""jax.jit for programs that several processes run together: each compiles, then all meet, then it runs.

Programs meet in their collectives, and those wait for no one: gloo gives up the first meeting of some devices after 30 s
("Gloo context initialization failed"), NCCL and TPU runtimes have limits of their own. Yet processes compile for
different times: jax writes its cache of compiled programs from process 0 alone, so that the others compile what process 0
only reads. So whatever has collectives is made with `jit` here. In one process that is jax.jit, to the letter.
"""

import functools
import inspect

import jax
import numpy as np

from gptjax.hosts import coordination

SECONDS = 3600.0
VARIABLE = "GPTJAX_COMPILE_SECONDS"


def jit(function, **options) -> "Jit":
    """As jax.jit. A first call with arguments of new shapes raises PeerLost, which names who has not compiled in time."""
    return Jit(function, options)


def seconds() -> float:
    """For which the processes wait for one that compiles. Raises UserError: GPTJAX_COMPILE_SECONDS is no such time."""
    return coordination.seconds_of(VARIABLE, SECONDS)


def meet(devices, done: str) -> None:
    """Waits until all processes of these devices have done what `done` says. Raises PeerLost: one has not, in time."""
    advice = f"see the log of its host, or give {VARIABLE} for programs that take longer"
    coordination.among(devices).meet(done, seconds(), advice)


class Jit:
    """What `jit` returns: to be called, lowered, or made to forget its programs, as jax.jit's."""

    def __init__(self, function, options: dict):
        functools.update_wrapper(self, function, updated=())
        self._jitted = jax.jit(function, **options)
        self._label = getattr(function, "__name__", getattr(getattr(function, "func", None), "__name__", "program"))
        self._signature = inspect.signature(function)
        self._static = _static_names(self._signature, options)
        self._met = set()

    def lower(self, *args, **kwargs):
        return self._jitted.lower(*args, **kwargs)

    def clear_cache(self) -> None:
        self._jitted.clear_cache()
        self._met.clear()

    def __call__(self, *args, **kwargs):
        if jax.process_count() > 1:
            self._meet(args, kwargs)
        return self._jitted(*args, **kwargs)

    def _meet(self, args, kwargs) -> None:
        """Before the first call with such arguments: compiles, and waits for the other processes of its devices."""
        call = self._kind_of_call(args, kwargs)
        if call is None or call in self._met:
            return
        compiled = self._jitted.lower(*args, **kwargs).compile()  # which the call itself finds in jax's memory
        devices = set().union(*(place.device_set for place in jax.tree.leaves(compiled.output_shardings)))
        meet(devices, f"compiled {self._label}")
        self._met.add(call)

    def _kind_of_call(self, args, kwargs):
        """What the compiled program depends on; None inside another program, which then compiles this one too."""
        bound = self._signature.bind(*args, **kwargs).arguments
        static = tuple((name, bound[name]) for name in sorted(self._static & bound.keys()))
        leaves, tree = jax.tree.flatten({name: value for name, value in bound.items() if name not in self._static})
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return None
        return jax.sharding.get_abstract_mesh(), static, tree, tuple(map(_kind_of_array, leaves))


def _kind_of_array(leaf):
    if isinstance(leaf, jax.Array):
        return jax.typeof(leaf), leaf.sharding
    return (np.shape(leaf), np.result_type(leaf)) if isinstance(leaf, np.ndarray | np.generic) else type(leaf)


def _static_names(signature: inspect.Signature, options: dict) -> set[str]:
    names, numbers = options.get("static_argnames", ()), options.get("static_argnums", ())
    names = (names,) if isinstance(names, str) else names
    numbers = (numbers,) if isinstance(numbers, int) else numbers
    return {*names, *(list(signature.parameters)[number] for number in numbers)}
