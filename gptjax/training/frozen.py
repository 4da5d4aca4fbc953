"""The frozen parameters of a run with an adapter, which its checkpoints leave in the run that it started from."""

import typing

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from gptjax.checkpoints import loading, weights
from gptjax.checkpoints.base import Base


class Frozen(typing.NamedTuple):
    """The parameters that a run leaves in its base."""

    base: Base
    names: frozenset[str]  # such as "blocks/mlp/up/weight"

    def without(self, params: dict) -> dict:
        return self._chosen(params, lambda name: name not in self.names)

    def of(self, params: dict) -> dict:
        return self._chosen(params, lambda name: name in self.names)

    def _chosen(self, params: dict, is_chosen) -> dict:
        leaves = flatten_dict(params, sep="/")
        return unflatten_dict({name: leaf for name, leaf in leaves.items() if is_chosen(name)}, sep="/")

    def joined(self, own: dict, like) -> dict:
        """{"params": ..., "ema": ...} whole, of those that were read and what lies in the base. like: a TrainState of shapes
        and shardings. Raises UserError: the base is not what it was."""
        whole = {}
        for item in own.keys() & {"params", "ema"}:
            shapes = self.of(getattr(like, item))
            read = loading.from_base(self.base, shapes, jax.tree.map(lambda leaf: leaf.sharding, shapes))
            whole[item] = weights.joined(own[item], jax.tree.map(lambda a, leaf: a.astype(leaf.dtype), read, shapes))
        return whole


def of_step(checkpointer, step: int, abstract_params: dict) -> Frozen:
    """What a step that names a base has left there."""
    names = {f"params/{name}" for name in flatten_dict(abstract_params, sep="/")} - checkpointer.shapes(step).keys()
    return Frozen(Base(**checkpointer.meta(step)["base"]), frozenset(name.removeprefix("params/") for name in names))
