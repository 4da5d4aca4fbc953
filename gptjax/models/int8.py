"""Weights as int8, for making text: of each linear map in the layers a byte for an entry and a float32 scale for each output.

A weight is off by half of its output's scale at most, and a scale is 1/127 of the largest weight of its output. A map
multiplies by the bytes in the dtype of the matmuls, and then by the scales (layers.linear_of_bytes). Embeddings, head, norms
and biases stay what they were, in the dtype of the matmuls. Bytes have no gradient: in training they are of the frozen matrices
below an adapter (adapters/lora.py).
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import unflatten_dict

from gptjax.errors import UserError
from gptjax.hosts import compiling
from gptjax.models import architectures, layers

IN_BYTES = (jnp.int8, jnp.uint8)  # dtypes of frozen weights: uint8 is two entries of nf4.py
LARGEST = 127  # -128 is not used, so that a weight and its negative are as exact


def parts(config, graph, abstract_params) -> tuple:
    """architectures.split() of the model of a ModelConfig, in shapes, with such weights in place of its own.

    Raises UserError: it is of an architecture without attention.
    """
    if not config.has_attention:
        raise UserError(
            f"dtype='int8' is not for model.architecture={config.architecture!r}, which reads its weights in other ways"
            " than as linear maps; use 'bfloat16' or 'float32'."
        )

    def model():
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, layers.DTYPES[config.dtype]), abstract_params)
        gpt = nnx.merge(graph, zeros)
        for _, module in nnx.iter_modules(gpt):
            if isinstance(module, layers.Linear):
                module.hold_bytes()
        return gpt

    return architectures.split(nnx.eval_shape(model))


def converted(params: dict, abstract_params: dict, shardings: dict) -> dict:
    """The parameters of `parts`, laid out so, made of a model's own, which are left empty: of each there is only one form in
    memory at a time."""
    kinds, places = _by_path(abstract_params), _by_path(shardings)
    weights, made = _by_path(params), {}
    params.clear()
    for path in list(weights):
        weight, scale_path = weights.pop(path), (*path[:-1], "scale")
        if path[-1] == "weight" and scale_path in kinds:
            n_inputs = weight.ndim - kinds[scale_path].ndim
            made[path], made[scale_path] = _conversion(n_inputs, places[path], places[scale_path])(weight)
        else:
            made[path] = weight.astype(kinds[path].dtype)
    return jax.tree_util.tree_map_with_path(lambda path, _: made[_keys(path)], abstract_params)


@functools.lru_cache(maxsize=64)
def _conversion(n_inputs: int, weight_sharding, scale_sharding):
    """weight [N, *inputs, *outputs] -> (its bytes, scale [N, *outputs])."""

    def convert(weight):
        return quantised(weight, tuple(range(1, 1 + n_inputs)))

    return compiling.jit(convert, out_shardings=(weight_sharding, scale_sharding))


@functools.lru_cache(maxsize=64)
def _conversion_to_nf4(dim: int, *layout):
    """weight -> (its bytes, scales of blocks along a dimension)."""
    from gptjax.models import nf4

    return compiling.jit(functools.partial(nf4.quantised, dim=dim), out_shardings=layout)


def quantised(weight, inputs: tuple[int, ...]):
    """(bytes, scales) of a weight, whose dimensions `inputs` a scale is of."""
    largest = jnp.abs(weight.astype(jnp.float32)).max(inputs, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0) / LARGEST
    return jnp.round(weight.astype(jnp.float32) / scale).astype(jnp.int8), scale.squeeze(inputs)


# ---- a frozen base in bytes, under an adapter that is trained


def quantise(linear) -> None:
    """A linear map's weight as bytes and scales, in a model that is being made."""
    weight, scale = quantised(linear.weight[...], tuple(range(len(linear.inputs))))
    linear.hold_bytes()
    linear.weight[...], linear.scale[...] = weight, scale


def scales_in(abstract: dict) -> set[tuple[str, ...]]:
    """Paths of the scales of weights in bytes, in a tree of shapes: no checkpoint of a model in floats has them."""
    kinds = _by_path(abstract)
    return {(*path[:-1], "scale") for path, leaf in kinds.items() if leaf.dtype in IN_BYTES and path[-1] == "weight"}


def in_floats(abstract: dict) -> dict:
    """A tree of shapes as a checkpoint of a model in floats has them: without the scales of `scales_in`, and with two entries
    in place of a byte of nf4."""
    leaves, scales = _by_path(abstract), scales_in(abstract)
    for path in scales:
        weight, scale = leaves[weight_path := (*path[:-1], "weight")], leaves.pop(path)
        if weight.dtype == jnp.uint8:
            shape = [2 * size if size != of_scale else size for size, of_scale in zip(weight.shape, scale.shape)]
            leaves[weight_path] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return unflatten_dict(leaves)


def with_bytes(params: dict, abstract: dict, shardings: dict) -> dict:
    """Parameters with the weights that are bytes in `abstract` made so, and their scales, of a tree that has them in floats.
    Others are left as they are."""
    made, places, kinds = _by_path(params), _by_path(shardings), _by_path(abstract)
    for path in scales_in(abstract) & places.keys():
        weight_path = (*path[:-1], "weight")
        layout, weight = (places[weight_path], places[path]), made[weight_path]
        if kinds[weight_path].dtype == jnp.uint8:
            dim = next(d for d in range(-weight.ndim, 0) if kinds[weight_path].shape[d] != weight.shape[d])
            made[weight_path], made[path] = _conversion_to_nf4(dim, *layout)(weight)
        else:
            made[weight_path], made[path] = _conversion(weight.ndim - len(kinds[path].shape), *layout)(weight)
    return unflatten_dict(made)


def _by_path(tree: dict) -> dict:
    return {_keys(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _keys(path) -> tuple[str, ...]:
    return tuple(key.key for key in path)
