"""What an optimizer makes of a few gradients that are known: whether it gives a direction, and how large that is.

Its learning rate is the schedule's alone: an optimizer that brings one of its own trains as if the schedule were a thousand
times lower, and no error says so. But it brings that rate's sign along, and so it points against the gradient. What is
right and unusual, such as updates a thousand times smaller than the gradient, is said when a run starts.
"""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gptjax.config.fields import OptimConfig
from gptjax.errors import UserError, first_line
from gptjax.models.roles import Role

STEPS = 4  # that are looked at: the first update of some is zero, as ADOPT's, which divides by the gradient before
GRADIENT = ((1.0, -1.0), (1.0, 1.0))  # its RMS is 1, and no row, column or whole of it has only one sign
PARAMS = ((0.5, 1.0), (-1.0, 2.0))  # neither along the gradient nor at right angles to it
USUAL = (0.05, 20.0)  # RMS of the largest update: that of Muon is 0.2, that of SGD with its momentum 3.7


class Probe(typing.NamedTuple):
    """What an optimizer makes of STEPS times the same gradient of one matrix."""

    along: float  # inner product of the sum of all updates with the gradient
    rms: float  # of the largest update
    idle_rms: float  # of the first update where the gradient is zero


@functools.lru_cache(maxsize=32)
def probe(name: str, optimizer) -> Probe:
    """What an optimizers.Optimizer does. Raises UserError: it fails, or its updates point against the gradient."""
    roles = {("blocks", "probe"): Role("matrix", True, (1,), (2,), ("embed",), ("embed",))}
    links = optimizer.direction(OptimConfig(name=name), roles)
    if not isinstance(links, tuple) or not all(isinstance(link, optax.GradientTransformation) for link in links):
        raise UserError(
            f"optim.name={name!r}: its function returns {type(links).__name__}; expected a tuple of optax transformations,"
            " such as (optax.scale_by_adam(),)."
        )
    try:
        seen = Probe(*(float(value) for value in jax.jit(functools.partial(_measure, optax.chain(*links)))()))
    except Exception as error:  # whatever the code of the optimizer does wrong
        raise UserError(
            f"optim.name={name!r} fails on a first gradient ({type(error).__name__}: {first_line(error)}); it is given"
            " gradients, its state and the parameters, and nothing else."
        ) from error
    if seen.along < 0:
        raise UserError(
            f"optim.name={name!r} makes updates that point against the gradient, as optimizers do that have a learning rate"
            " of their own; give its direction alone, such as optax.scale_by_adam() instead of optax.adam(rate), or end it"
            " with optax.scale(-1 / rate)."
        )
    return seen


def _measure(direction: optax.GradientTransformation) -> tuple:
    params, gradient = ({"blocks": {"probe": jnp.array([matrix], np.float32)}} for matrix in (PARAMS, GRADIENT))
    start, zeros = direction.init(params), jax.tree.map(jnp.zeros_like, params)

    def rms(updates):
        return jnp.sqrt(jnp.square(updates["blocks"]["probe"]).mean())

    def step(state, _):
        updates, state = direction.update(gradient, state, params)
        return state, (jnp.vdot(updates["blocks"]["probe"], gradient["blocks"]["probe"]), rms(updates))

    _, (along_S, rms_S) = jax.lax.scan(step, start, length=STEPS)
    idle, _ = direction.update(zeros, start, params)
    return along_S.sum(), rms_S.max(), rms(idle)


def said(name: str, optimizer) -> list[str]:
    """What a run with it should tell its user: nothing, where all is usual."""
    seen, notes = probe(name, optimizer), []
    if seen.rms == 0:
        notes.append(f"makes no update in its first {STEPS} steps")
    elif not USUAL[0] <= seen.rms <= USUAL[1]:
        notes.append(
            f"makes updates of {seen.rms:.2g} from gradients of 1, before the learning rate: choose optim.peak_lr for that"
        )
    if seen.idle_rms > 0:
        notes.append(
            "moves parameters whose gradient is zero; if that is a weight decay of its own, set optim.weight_decay=0"
        )
    return [f"{name} {note}" for note in notes]
