"""Which parameters are trained (train.trainable; None or "all": all): gradients, moments and updates exist for those alone.

The rest is frozen: a tree of its own beside the trained one, so that no zeros stand for what nobody wants. Parameters go by
their names in checkpoints, such as "blocks/mlp/up/weight"; a pattern names one, all below one ("blocks/mlp"), or those
that a glob matches ("blocks/*/bias", where * takes slashes too).
"""

import difflib
import fnmatch

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from gptjax.errors import UserError

OF_ADAPTER = "*adapter/*"  # all parameters that an adapter adds to a model
OF_TASK_HEAD = "task_head"


def split(tree: dict, config) -> tuple[dict, dict]:
    """(trained, frozen) of a tree like the parameters: the same tree and {} where a Config trains all of them."""
    patterns = patterns_of(config)
    if patterns is None:
        return tree, {}
    leaves = flatten_dict(tree, sep="/")
    trained = {name: leaf for name, leaf in leaves.items() if any(matches(name, pattern) for pattern in patterns)}
    frozen = {name: leaf for name, leaf in leaves.items() if name not in trained}
    return unflatten_dict(trained, sep="/"), unflatten_dict(frozen, sep="/")


def join(trained: dict, frozen: dict) -> dict:
    """The inverse of split."""
    if not frozen:
        return trained
    return unflatten_dict(flatten_dict(trained, sep="/") | flatten_dict(frozen, sep="/"), sep="/")


def floats(tree: dict) -> dict:
    """The leaves that are no integers, as of frozen matrices in bytes; the others as None."""
    return jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None, tree)


def share(params: dict, config) -> float:
    """Of all entries of the parameters, the part that is trained."""
    trained, frozen = (sum(leaf.size for leaf in flatten_dict(tree).values()) for tree in split(params, config))
    return trained / (trained + frozen)


def patterns_of(config) -> list[str] | None:
    """Of train.trainable; None: all are trained. A model with an adapter trains that alone unless it says otherwise, and with
    it a task head, which no base has."""
    patterns = config.train.trainable
    if patterns is None and config.model.adapter is not None:
        return [OF_ADAPTER, *[OF_TASK_HEAD] * (config.model.task_head is not None)]
    return None if patterns in (None, "all") else [pattern.strip() for pattern in patterns.split(",")]


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names this parameter, or something that it is part of."""
    return fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, pattern + "/*")


def check(config, params: dict) -> None:
    """Raises UserError for a pattern that matches no parameter of the model: a slip of the pen would freeze it unseen."""
    names = list(flatten_dict(params, sep="/"))
    for pattern in patterns_of(config) or ():
        if not any(matches(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
            there = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(names)}"
            raise UserError(
                f"train.trainable={config.train.trainable!r}: {pattern!r} matches no parameter of this model; {there}."
            )
    for name, leaf in flatten_dict(split(params, config)[0], sep="/").items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise UserError(
                f"train.trainable={config.train.trainable!r} trains {name}, which is kept in {leaf.dtype} and frozen; leave it out."
            )
