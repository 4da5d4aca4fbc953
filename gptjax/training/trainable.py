"""Which parameters are trained (train.trainable; None or "all": all): gradients, moments and updates exist for those alone.

The rest is frozen: a tree of its own beside the trained one, so that no zeros stand for what nobody wants. Parameters go by
their names in checkpoints, such as "blocks/mlp/up/weight"; a pattern names one, all below one ("blocks/mlp"), or those
that a glob matches ("blocks/*/bias", where * takes slashes too). "blocks[6:]/mlp" is of some layers: see depth.py.
"""

import difflib
import fnmatch

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from gptjax.config import catalogue
from gptjax.errors import UserError
from gptjax.models import architectures

OF_ADAPTER = "*adapter/*"  # all parameters that an adapter adds to a model
OF_TASK_HEAD = "task_head"
OF_CRITIC = "critic"


def split(tree: dict, config) -> tuple[dict, dict]:
    """(trained, frozen) of a tree like the parameters: the same tree and {} where a Config trains all of them."""
    if patterns_of(config) is None:
        return tree, {}
    trained, frozen = {}, {}
    for name, leaf in flatten_dict(tree, sep="/").items():
        layers = chosen(name, config)
        if isinstance(layers, bool):
            (trained if layers else frozen)[name] = leaf
        else:
            from gptjax.training import depth

            trained[name], frozen[name] = depth.apart(leaf, layers)
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def join(trained: dict, frozen: dict) -> dict:
    """The inverse of split."""
    if not frozen:
        return trained
    leaves, others = flatten_dict(trained, sep="/"), flatten_dict(frozen, sep="/")
    if both := leaves.keys() & others.keys():
        from gptjax.training import depth

        others |= {name: depth.together(leaves[name], others[name]) for name in both}
    return unflatten_dict(leaves | others, sep="/")


def floats(tree: dict) -> dict:
    """The leaves that are no integers, as of frozen matrices in bytes; the others as None."""
    return jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None, tree)


def share(params: dict, config) -> float:
    """Of all entries of the parameters, the part that is trained."""
    trained, frozen = map(architectures.entries, split(params, config))
    return trained / (trained + frozen)


def chosen(name: str, config) -> bool | tuple[int, ...]:
    """Whether a Config trains a parameter; the layers of it that it trains, if these are some of them. Raises UserError:
    layers that the model has not."""
    if (patterns := patterns_of(config)) is None:
        return True
    layers: set[int] = set()
    for pattern in patterns:
        glob, of_pattern = layers_in(pattern, config.model.n_layers)
        if matches(name, glob):
            layers |= set(of_pattern)
    return tuple(sorted(layers)) if 0 < len(layers) < config.model.n_layers else bool(layers)


def layers_in(pattern: str, n_layers: int) -> tuple[str, range]:
    """(pattern without layers, the layers it names)."""
    if not pattern.startswith("blocks["):
        return pattern, range(n_layers)
    from gptjax.training import depth

    return depth.parse(pattern, n_layers)


def roles(config) -> dict | None:
    """{path: roles.Role} as an optimizer of what is trained needs them; None: as the model states them."""
    if not any(pattern.startswith("blocks[") for pattern in patterns_of(config) or ()):
        return None
    from gptjax.models import architectures
    from gptjax.training import depth

    return depth.roles(architectures.roles(config.model), lambda name: chosen(name, config))


def patterns_of(config) -> list[str] | None:
    """Of train.trainable; None: all are trained. A model with an adapter trains that alone unless it says otherwise, and with
    it a task head and a critic, which no base has."""
    patterns = config.train.trainable
    if patterns is None and config.model.adapter is not None:
        parts = {OF_TASK_HEAD: config.model.task_head, OF_CRITIC: config.model.critic}
        return [OF_ADAPTER, *(name for name, part in parts.items() if part is not None)]
    return None if patterns in (None, "all") else [pattern.strip() for pattern in patterns.split(",")]


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names this parameter, or something that it is part of."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern + "/*")


def check(config, params: dict) -> None:
    """Raises UserError for a pattern that matches no parameter of the model: a slip of the pen would freeze it unseen."""
    names = list(flatten_dict(params, sep="/"))
    for pattern in patterns_of(config) or ():
        glob, _ = layers_in(pattern, config.model.n_layers)
        if not any(matches(name, glob) for name in names):
            near = difflib.get_close_matches(glob, names, n=3, cutoff=0.4)
            there = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(names)}"
            raise UserError(
                f"train.trainable={config.train.trainable!r}: {pattern!r} matches no parameter of this model; {there}."
            )
    for name, leaf in flatten_dict(split(params, config)[0], sep="/").items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(
                f"train.trainable={config.train.trainable!r} trains {name}, which is kept in {leaf.dtype} and frozen; leave it out."
            )
        if not isinstance(layers := chosen(name, config), bool):
            from gptjax.training import depth

            depth.check(layers, name, config)
    _check_ranks(config, names)


def _check_ranks(config, names: list[str]) -> None:
    """Raises UserError: an adapter that gives up ranks is not trained in all layers."""
    if config.model.adapter is None or not catalogue.adapter(config.model.adapter).allocates_ranks:
        return
    for name in names:
        if matches(name, OF_ADAPTER) and chosen(name, config) is not True:
            raise UserError(
                f"train.trainable={config.train.trainable!r} leaves out {name}, in whole or part, but model.adapter="
                f"{config.model.adapter!r} gives up ranks by the gradients of all; add {OF_ADAPTER}."
            )
