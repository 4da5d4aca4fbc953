"""An adapter's part put into the model's own matrices, and taken out again, in float32.

What is merged computes the same without the adapter, up to rounding, and is a model like any other. Bottlenecks, prefixes and
prompts are no part of any matrix and can't be merged.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from gptjax.config import catalogue
from gptjax.errors import UserError
from gptjax.models import architectures
from gptjax.models.adapters import targets
from gptjax.models.adapters.adapter import OnLinear, linear_at


def without_adapter(config):
    """A ModelConfig without its adapter."""
    return dataclasses.replace(config, adapter=None)


def merge(config, params: dict) -> tuple[dict, dict]:
    """(parameters of the model without the adapter of a ModelConfig, what `unmerge` needs beside both). Raises UserError: it
    has no adapter, or one that can't be merged."""
    _check(config)
    return _changed(config, params, params, lambda part, weight, bias, _: part.merged(weight, bias), {})


def unmerge(config, merged: dict, params: dict, kept: dict) -> dict:
    """The parameters before `merge`, up to rounding, of what it gave. params: with the adapter, whatever else. Raises UserError:
    they were bytes, which no float comes back to."""
    _check(config)
    if catalogue.adapter(config.adapter).in_bytes:
        raise UserError(
            f"model.adapter={config.adapter!r} was merged into what its bytes stand for: load the run again."
        )
    restored, _ = _changed(config, params, merged, lambda *each: (*each[0].restored(*each[1:]), None), kept)
    adapter = {name: leaf for name, leaf in flatten_dict(params).items() if "adapter" in name}
    return unflatten_dict(flatten_dict(restored) | adapter)


def _check(config) -> None:
    if config.adapter is None:
        raise UserError("this model has no adapter to merge (model.adapter=None).")
    kind = catalogue.adapter(config.adapter)
    if not isinstance(kind, OnLinear) or not kind.can_merge:
        raise UserError(
            f"model.adapter={config.adapter!r} adds parts that no matrix of the model can take up, so that it can't be"
            " merged; use it as it is."
        )


def _changed(config, params: dict, plain: dict, change, kept: dict) -> tuple[dict, dict]:
    """(plain with change(part, weight, bias, kept) of every adapted map in it, what the changes keep), by the adapter in
    params; of weights in bytes, what they stand for."""
    graph = architectures.abstract(config)[0]
    blocks = nnx.merge(graph, params).blocks
    leaves = {name: leaf for name, leaf in flatten_dict(plain).items() if "adapter" not in name}
    keeps = {}
    for name, of in targets.maps(config).items():
        linear, path = linear_at(blocks, of.path), ("blocks", *of.path)
        if (scale := leaves.pop((*path, "scale"), None)) is not None:  # of bytes
            over = tuple(range(1, 1 + len(of.inputs)))
            wide = lambda path=path, over=over, scale=scale: (  # noqa: E731
                leaves[*path, "weight"].astype(jnp.float32) * jnp.expand_dims(scale, over)
            )
            leaves[*path, "weight"] = wide() if linear.block_dim is None else linear.whole_weight()
        if linear.adapter is None:
            continue
        weight = leaves[*path, "weight"].astype(jnp.float32)
        bias = None if linear.bias is None else leaves[*path, "bias"].astype(jnp.float32)
        weight, bias, keeps[name] = jax.vmap(change)(linear.adapter, weight, bias, kept.get(name))
        leaves[*path, "weight"] = weight
        if bias is not None:
            leaves[*path, "bias"] = bias
    return unflatten_dict(leaves), keeps
