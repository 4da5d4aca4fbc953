"""A run that starts from a model whose tokenizer lacks some of its special symbols, such as the control tokens of a chat.

The symbols stand behind the other model's vocabulary. Their rows of the token embedding, and of an output matrix of its
own, start as the mean of the rows there are: the symbols then get less than an average token's share of the probability,
so that the model's predictions change little (Hewitt 2021, "Initializing new word embeddings for pretrained language
models"). Small random rows would get most of it from a model whose logits are well below 0.
"""

import functools

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from gptjax.models import architectures


def added(theirs, ours) -> tuple[str, ...] | None:
    """The symbols that our tokenizer has behind all of theirs; None: it is another one."""
    same = (ours.kind, ours.base_hash, ours.ends) == (theirs.kind, theirs.base_hash, theirs.ends)
    n = len(theirs.added)
    return ours.added[n:] if same and ours.added[:n] == theirs.added else None


def axes(model_config) -> dict[str, int]:
    """{parameter: its dimension of the vocabulary} of a ModelConfig's model."""
    _, _, stated = architectures.abstract(model_config)
    return {"/".join(path): names.index("vocab") for path, names in stated.items() if names and "vocab" in names}


def may_grow(name: str, theirs: tuple[int, ...], ours: tuple[int, ...], vocab_dims: dict[str, int]) -> bool:
    """Whether a parameter of theirs is one of ours but for fewer rows of the vocabulary."""
    dim = vocab_dims.get(name)
    if dim is None or len(theirs) != len(ours):
        return False
    return theirs[dim] <= ours[dim] and theirs[:dim] + theirs[dim + 1 :] == ours[:dim] + ours[dim + 1 :]


def with_their_shapes(abstract_params: dict, shapes: dict[str, list[int]]) -> dict:
    """abstract_params with the shapes that some have in the other run."""
    leaves = flatten_dict(abstract_params, sep="/")
    leaves |= {name: jax.ShapeDtypeStruct(tuple(shape), leaves[name].dtype) for name, shape in shapes.items()}
    return unflatten_dict(leaves, sep="/")


def grown(params: dict, names, entries: int, program, model_config) -> dict:
    """params with our shapes: rows from `entries` on, the other vocabulary's size, are the mean of those before."""
    leaves, vocab_dims = flatten_dict(params, sep="/"), axes(model_config)
    places, sizes = (flatten_dict(tree, sep="/") for tree in (program.param_sharding, program.abstract_params))
    for name in names:
        dim = vocab_dims[name]
        grow = functools.partial(_with_means, entries=entries, size=sizes[name].shape[dim], dim=dim)
        leaves[name] = jax.jit(grow, out_shardings=places[name])(leaves[name])
    return unflatten_dict(leaves, sep="/")


def _with_means(array, *, entries: int, size: int, dim: int):
    rows = jax.lax.slice_in_dim(array, 0, entries, axis=dim)
    mean = rows.astype(jnp.float32).mean(axis=dim, keepdims=True).astype(array.dtype)
    return jnp.concatenate([rows, jnp.repeat(mean, size - entries, axis=dim)], axis=dim)
