"""The one door to the models: which there are, and a model as a graph and plain arrays.

A model is an nnx.Module(config, key, kernel) with the methods of model.GPT: `token_loss`, `activations`, `logits`,
`empty_cache`, `extend`, `apart`, `put_row`, `lay_out`, and its stacked layers in `blocks`. To add one, write a file beside
gpt.py that stands alone and name its class in ARCHITECTURES, its counts in flops.COUNTS (a copy of gpt.py whose
layers have the same matrices is counted by gpt_counts, as GPT is), and the fields it does not have in validate.FOREIGN.
"""

import jax
from flax import nnx

from gptjax import flops
from gptjax.errors import UserError, choose
from gptjax.models import gpt, lstm
from gptjax.parallel import numerics

ARCHITECTURES = {"gpt": gpt.GPT, "lstm": lstm.LSTM}


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


def check_counts(config, params) -> None:
    """Raises UserError where the counts of a ModelConfig's architecture are not those of its parameters, such as of a
    copied model with another matrix: every number of FLOPs and every fit over sizes would be wrong, and nobody told."""
    padding = (config.padded_vocab_size - config.vocab_size) * config.d_model * (1 if config.tied_head else 2)
    entries = sum(leaf.size for leaf in jax.tree.leaves(params)) - padding
    counted = flops.parameters(config).total
    if entries != counted:
        raise UserError(
            f"model.architecture={config.architecture!r} has {entries:,} parameters, but {flops.counts_of(config).__name__}"
            f" counts {counted:,}; name counts of its own in flops.COUNTS."
        )
