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
USUAL = (0.05, 20.0)  # RMS of updates from gradients of ones: built-in optimizers are at 0.2 to 2


class Probe(typing.NamedTuple):
    """Over STEPS gradients of ones, for a matrix of ones."""

    along: float  # inner product of all updates with the gradient
    rms: float  # of the largest update
    idle_rms: float  # of the first update where the gradient is zero


@functools.lru_cache(maxsize=32)
def probe(name: str, optimizer) -> Probe:
    """Of an optimizers.Optimizer. Raises UserError: it gives no direction, or fails."""
    roles = {("blocks", "probe"): Role("matrix", True, (1,), (2,), ("embed",), ("embed",))}
    links = optimizer.direction(OptimConfig(name=name), roles)
    if not isinstance(links, tuple) or not all(isinstance(link, optax.GradientTransformation) for link in links):
        raise UserError(
            f"optim.name={name!r}: its function returns {type(links).__name__}; expected a tuple of optax transformations,"
            " such as (optax.scale_by_adam(),)."
        )
    try:
        found = Probe(*(float(value) for value in jax.jit(functools.partial(_measure, optax.chain(*links)))()))
    except Exception as error:  # whatever the code of the optimizer does wrong
        raise UserError(
            f"optim.name={name!r} fails on a first gradient ({type(error).__name__}: {first_line(error)}); it is given"
            " gradients, its state and the parameters, and nothing else."
        ) from error
    if not found.along > 0:
        raise UserError(
            f"optim.name={name!r} makes {'no updates' if found.rms == 0 else 'updates that point against the gradient'}, as"
            " optimizers do that have a learning rate of their own; give its direction alone, such as optax.scale_by_adam()"
            " instead of optax.adam(rate), or end it with optax.scale(-1 / rate)."
        )
    return found


def _measure(direction: optax.GradientTransformation) -> tuple:
    params = {"blocks": {"probe": jnp.ones((1, 2, 2), np.float32)}}
    size = 4
    start, zeros = direction.init(params), jax.tree.map(jnp.zeros_like, params)

    def step(state, _):
        updates, state = direction.update(params, state, params)  # the gradient is ones, as the parameters are
        return state, updates["blocks"]["probe"].sum()

    _, along_S = jax.lax.scan(step, start, length=STEPS)
    idle, _ = direction.update(zeros, start, params)
    return along_S.sum(), jnp.abs(along_S).max() / size, jnp.sqrt(jnp.square(idle["blocks"]["probe"]).mean())


def said(name: str, optimizer) -> list[str]:
    """What a run with it should tell its user: nothing, where all is usual."""
    found, notes = probe(name, optimizer), []
    if not USUAL[0] <= found.rms <= USUAL[1]:
        notes.append(
            f"makes updates of {found.rms:.2g} from gradients of 1, before the learning rate: choose optim.peak_lr for that"
        )
    if found.idle_rms > 0:
        notes.append(
            "moves parameters without a gradient (a weight decay of its own?), and optim.weight_decay is added"
        )
    return [f"{name} {note}" for note in notes]
