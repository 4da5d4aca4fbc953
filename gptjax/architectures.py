"""The one door to the models: which there are, and a model as a graph and plain arrays.

A model is an nnx.Module(config, key, kernel) with the methods of model.GPT: `token_loss`, `activations`, `logits`,
`empty_cache`, `extend`, `apart`, and its stacked layers in `blocks`. To add one, write a file beside model.py that stands
alone and name it in ARCHITECTURES, its counts in flops.COUNTS, and the fields it does not have in validate.FOREIGN.
"""

import jax
from flax import nnx

from gptjax import lstm, model, numerics
from gptjax.errors import choose

ARCHITECTURES = {"gpt": model.GPT, "lstm": lstm.LSTM}


def make(config, key, kernel: str = "xla") -> nnx.Module:
    """The model of a ModelConfig with vocab_size set. Raises UserError for an unknown architecture."""
    return choose(ARCHITECTURES, config.architecture, "model.architecture")(config, key, kernel)


def split(module) -> tuple:
    """(graph definition, parameters as a plain nested dict, {path: logical axes incl. the stacked "layers"})."""
    graph, state = nnx.split(module)
    axes = {}
    for path, variable in nnx.to_flat_state(state):
        stated = variable.get_metadata().get("axes")
        axes[path] = None if stated is None else (("layers",) * (path[0] == "blocks") + tuple(stated))
    return graph, nnx.to_pure_dict(state), axes


@numerics.settings()
def abstract(config, kernel: str = "xla") -> tuple:
    """split() of a model whose parameters are shapes only: nothing is allocated."""
    return split(nnx.eval_shape(lambda: make(config, jax.random.key(0), kernel)))
