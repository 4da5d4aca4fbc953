"""Which ranks an AdaLoRA adapter keeps (Zhang et al. 2023, section 3.2 and algorithm 1; models/adapters/adalora.py).

After each update, of every entry w of the adapter with gradient g:

    sensitivity = beta1 sensitivity + (1 - beta1) |w g|
    uncertainty = beta2 uncertainty + (1 - beta2) | |w g| - sensitivity |
    importance  = sensitivity times uncertainty

The importance of a rank of a matrix is that of its entry of E, plus the means over its columns of A and of B. Of all matrices
together the most important ranks are kept, as many as the budget says; E is set to 0 at the others, which may come back
while the budget falls. It stays at `rank` for each matrix up to step `steps_before`, falls with the cube of the time that is
left (eq. 12), and is `target` from `steps_after` steps before the end on, when importance is followed no more and so the ranks
stay what they are.

As PEFT 0.21.2 does, importance is of the parameters behind the update and of the gradient that the optimizer got.
Axes: N layers, R ranks, S all ranks of all matrices.
"""

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from gptjax import schedule
from gptjax.config import catalogue
from gptjax.errors import UserError


def initial(trained: dict) -> dict:
    """Averages before the first step, of an adapter's parameters among those that are trained."""
    zeros = unflatten_dict({name: jnp.zeros(leaf.shape, jnp.float32) for name, leaf in _triplets(trained).items()})
    return {"sensitivity": zeros, "uncertainty": zeros}


def check(config) -> None:
    """Raises UserError: the budget of a Config's adapter has no step to fall in."""
    spec, steps = catalogue.adapter(config.model.adapter), schedule.total_steps(config)
    if spec.steps_before >= steps - spec.steps_after:
        raise UserError(
            f"model.adapter={config.model.adapter!r} leaves no step to give up ranks in: the run has {steps} steps; use smaller"
            " steps_before and steps_after."
        )


def allocate(importance: dict, params: dict, grads: dict, step, config) -> tuple[dict, dict, dict]:
    """(averages, parameters, {"ranks": average rank of a matrix}) after an update. params, grads: of what is trained, after
    the update and before it; step: updates made, with this one."""
    spec, last = catalogue.adapter(config.model.adapter), last_choice(config)
    values, slopes = _triplets(params), _triplets(grads)
    follows = step < last
    averages = {name: flatten_dict(tree) for name, tree in importance.items()}
    for path, value in values.items():
        now = jnp.abs(value * slopes[path])
        sensitivity = spec.beta1 * averages["sensitivity"][path] + (1 - spec.beta1) * now
        uncertainty = averages["uncertainty"][path]
        uncertainty = spec.beta2 * uncertainty + (1 - spec.beta2) * jnp.abs(now - sensitivity)
        for name, new in (("sensitivity", sensitivity), ("uncertainty", uncertainty)):
            averages[name][path] = jnp.where(follows, new, averages[name][path])
    kept = _kept(averages, step, spec, last)
    values = {path: jnp.where(kept[path], value, 0.0) if path in kept else value for path, value in values.items()}
    params = unflatten_dict(flatten_dict(params) | values)
    ranks = jnp.concatenate([(values[path] != 0).sum(-1) for path in kept]).mean(dtype=jnp.float32)
    return {name: unflatten_dict(tree) for name, tree in averages.items()}, params, {"ranks": ranks}


def last_choice(config) -> int:
    """The step from which on ranks stay what they are."""
    return schedule.total_steps(config) - catalogue.adapter(config.model.adapter).steps_after


def budget(step, matrices: int, spec, last: int):
    """int32: how many ranks of so many matrices are kept after a step."""
    left = jnp.clip((last - step) / (last - spec.steps_before), 0.0, 1.0)
    first, final = spec.rank * matrices, spec.target * matrices
    return jnp.floor((first - final) * left**3 + final).astype(jnp.int32)


def _kept(averages: dict, step, spec, last: int) -> dict:
    """{path of E: bool [N, R]}: all True after a step that gives up none."""
    importance = {path: leaf * averages["uncertainty"][path] for path, leaf in averages["sensitivity"].items()}
    scores = {}
    for path, of_E_NR in importance.items():
        if path[-1] == "E":
            of_A, of_B = (importance[*path[:-1], name] for name in ("A", "B"))
            mean_A, mean_B = of_A.mean(tuple(range(1, of_A.ndim - 1))), of_B.mean(tuple(range(2, of_B.ndim)))
            scores[path] = of_E_NR + mean_A + mean_B
    score_S = jnp.sort(jnp.concatenate([score_NR.reshape(-1) for score_NR in scores.values()]))
    matrices = sum(score_NR.shape[0] for score_NR in scores.values())
    given_up = len(score_S) - budget(step, matrices, spec, last)
    threshold = score_S[jnp.maximum(given_up - 1, 0)]
    chooses = (step > spec.steps_before) & ((step % spec.every == 0) | (step >= last)) & (given_up > 0)
    return {path: ~chooses | (score_NR > threshold) for path, score_NR in scores.items()}


def _triplets(tree: dict) -> dict:
    """{path: leaf} of the parameters A, E and B of an adapter."""
    return {
        path: leaf for path, leaf in flatten_dict(tree).items() if "adapter" in path and path[-1] in ("A", "E", "B")
    }
