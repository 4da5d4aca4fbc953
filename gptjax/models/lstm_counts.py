"""What flops.py counts in an LSTM: its layers' parameters and what they keep. It costs the same at every token.

D = d_model. The state's share of the gates is a matrix like any other, used once a token.
"""

from gptjax.config.fields import ModelConfig
from gptjax.errors import UserError, choose

GATES = 4


def layer_parameters(model: ModelConfig, relative_positions: bool = False) -> tuple[int, int]:
    """(matrices, vectors) of one layer. Raises UserError for relative positions."""
    if relative_positions:
        raise UserError(
            f"relative_positions=True, but model.architecture={model.architecture!r} knows none; leave it out."
        )
    return 2 * GATES * model.d_model**2, GATES * model.d_model * model.bias


def outer_parameters(model: ModelConfig, relative_positions: bool = False) -> tuple[int, int]:
    """(position table, vectors) outside of the layers."""
    return 0, 0


def mixing_flops(model: ModelConfig) -> int:
    """Forward FLOPs of one full sequence beside those of its matrices."""
    return 0


def full_mixing_flops(model: ModelConfig) -> int:
    return 0


def recomputed_flops(model: ModelConfig) -> int:
    """Forward FLOPs of the layers that the backward pass of one sequence runs again."""
    layers = 2 * model.n_layers * layer_parameters(model)[0] * model.context_length
    return choose({"none": 0, "full": layers}, model.remat, "model.remat")


def kept_bytes(model: ModelConfig, remat: str, itemsize: int, tensor: int = 1) -> int:
    """Bytes per token that one layer keeps for the backward pass, beside its input where that is recomputed from: the
    input, the output, the gates, float32 cells, and a dropout mask. Of `tensor` devices each has its own cells."""
    width, cells = model.d_model, model.d_model // tensor
    mask = width if model.residual_dropout else 0  # a byte an entry
    kept = {"none": itemsize * (2 * width + GATES * cells) + 4 * cells + mask, "full": 0}
    return choose(kept, remat, "model.remat")


def top_entries(model: ModelConfig) -> int:
    """Entries per token between the last layer and the logits: the input of the head."""
    return model.d_model
