"""A model of the config: made from a key, or as a graph and plain arrays, with what each parameter states of itself.

A model is an nnx.Module(config, key, kernel) with the methods of gpt.GPT: `token_loss`, `activations`, `logits`,
`empty_cache`, `extend`, `apart`, `put_row`, `take_rows`, `lay_out`, and its stacked layers in `blocks`. Which there are,
and how to add one: catalogue.py.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.config import catalogue
from gptjax.models import roles as roles_of_parameters
from gptjax.parallel import numerics


def make(config, key, kernel: str = "xla") -> nnx.Module:
    """The model of a ModelConfig with vocab_size set. Raises UserError for an unknown architecture."""
    return catalogue.model_class(config.architecture)(config, key, kernel)


def split(module) -> tuple:
    """(graph definition, parameters as a plain nested dict, {path: logical axes incl. the stacked "layers"})."""
    graph, state = nnx.split(module)
    axes = {}
    for path, variable in nnx.to_flat_state(state):
        stated = variable.get_metadata().get("axes")
        axes[path] = None if stated is None else (("layers",) * ("blocks" in path) + tuple(stated))
    return graph, nnx.to_pure_dict(state), axes


@functools.lru_cache(maxsize=64)  # tracing a model takes a tenth of a second of each start
@numerics.settings()
def _shapes(config, kernel: str, model_class):
    return nnx.eval_shape(lambda: model_class(config, jax.random.key(0), kernel))


def abstract(config, kernel: str = "xla") -> tuple:
    """split() of a model whose parameters are shapes only: nothing is allocated."""
    return split(_shapes(config, kernel, catalogue.model_class(config.architecture)))


def entries(params: dict) -> int:
    """How many numbers a tree of parameters holds; a byte of nf4 has two."""
    return sum(leaf.size * (2 if leaf.dtype == jnp.uint8 else 1) for leaf in jax.tree.leaves(params))


def roles(config) -> dict:
    """{path: what the parameter is to an optimizer} of a ModelConfig's model. Raises ValueError that names a parameter
    which does not say."""
    return _roles(config, catalogue.model_class(config.architecture))


@functools.lru_cache(maxsize=64)
def _roles(config, model_class) -> dict:
    _, state = nnx.split(_shapes(config, "xla", model_class))
    return {path: roles_of_parameters.of_variable(path, variable) for path, variable in nnx.to_flat_state(state)}
