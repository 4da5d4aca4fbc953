"""What a model with a task head makes of labelled examples: its outputs and the losses, example by example.

A batch holds, of B examples with C sequences each (several of a choice, or both orders of a pair):

    token_BCL     ids, padded behind their end          length_BC    tokens of each sequence; 0: there is no such one
    weight_B      1 of an example, 0 of padding         label_...    what is right, as the head takes it (see LOSSES)

A sequence is read at its last token, whose place is its length less one: no id is searched for, so that text cannot move it,
and padding changes nothing, since nothing sees what comes later.

Axes: B examples, C sequences of one, L length, D width, O outputs of the head.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.models import attention, layers, loss, placed


def outputs(params, batch: dict, *, graph, mesh_config, head, chunks: int = 1, key=None, with_lm: bool = False):
    """(float32 outputs of the task head, each example's loss of the language model or None).

    Outputs are [B, O] of an example, [B, C] of a choice or of scores, [B, L, O] of tokens. head: the config.task_heads.TaskHead.
    chunks: see `loss.cross_entropy`. key: of dropout; None: off.
    """
    token_BCL, length_BC = batch["token_BCL"], batch["length_BC"]
    B, C, L = token_BCL.shape
    key_model, key_head = (None, None) if key is None else jax.random.split(key)

    def losses_and_activations(x_BLD, head_VD, target_BL, **options):
        loss_BL = loss.cross_entropy(x_BLD, head_VD, target_BL, **options)[0] if with_lm else jnp.zeros(x_BLD.shape[:2])
        return loss_BL, x_BLD

    rows = {"token_BT": jnp.pad(token_BCL.reshape(B * C, L), ((0, 0), (0, 1)))}  # the last is only ever a target
    loss_BL, x_BLD, _ = placed.token_loss(
        params, rows, graph=graph, mesh_config=mesh_config, chunks=chunks, key=key_model, head=losses_and_activations
    )
    model = nnx.merge(graph, params)
    output = _outputs(model.task_head, x_BLD.reshape(B, C, L, -1), length_BC, head, key_head)
    return output, _lm_loss(loss_BL.reshape(B, C, L), length_BC) if with_lm else None


def _outputs(task_head, x_BCLD, length_BC, head, key):
    """Dropout is the same in all sequences of an example, as in GPT-1's released fine-tuning code, so that none of a choice
    is ahead by chance."""
    if head.reads_tokens:
        return task_head(layers.dropout(x_BCLD[:, 0], head.dropout, key))
    last_BC = jnp.maximum(length_BC - 1, 0)
    x_BCD = jnp.take_along_axis(x_BCLD, last_BC[..., None, None], axis=2)[:, :, 0]
    kept_B1D = layers.dropout(jnp.ones_like(x_BCD[:, :1]), head.dropout, key)
    x_BCD = x_BCD * kept_B1D if key is not None and head.dropout else x_BCD
    if head.absent is not None:
        return jnp.where(length_BC > 0, task_head(x_BCD)[..., 0], head.absent)
    return task_head(x_BCD.sum(axis=1))  # of a pair both orders, added (Radford et al. 2018, section 3.3)


def _lm_loss(loss_BCL, length_BC):
    """float32 [B]: nats a token, the mean over each sequence's tokens but the first, then over the sequences of an example,
    as in GPT-1's released fine-tuning code."""
    predicted_BCL = jnp.arange(loss_BCL.shape[-1]) < length_BC[..., None] - 1
    mean_BC = jnp.sum(loss_BCL * predicted_BCL, -1) / jnp.maximum(predicted_BCL.sum(-1), 1)
    return mean_BC.sum(-1) / jnp.maximum((length_BC > 0).sum(-1), 1)


def length_unit(kernel: str, mesh) -> int:
    """What the tokens of a row are a multiple of under an attention kernel on a mesh."""
    devices = mesh.shape["sequence"]
    return attention.token_unit(kernel) * (2 * devices if devices > 1 else 1)


# ---- losses: (sum, weight) of each example, float32 [B]


def _cross_entropy(logit, label):
    """Nats of each label among the entries of the last axis."""
    chosen = jnp.take_along_axis(logit, label[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logit, axis=-1) - chosen


def of_classes(logit_BO, batch):
    """Cross-entropy of label_B among the classes, or the sequences of a choice."""
    return _cross_entropy(logit_BO, batch["label_B"]) * batch["weight_B"], batch["weight_B"]


def of_tokens(logit_BLO, batch):
    """Cross-entropy of label_BL among the classes, summed over the tokens that have one (weight_BL)."""
    weight_BL = batch["weight_BL"]
    return jnp.sum(_cross_entropy(logit_BLO, batch["label_BL"]) * weight_BL, -1), weight_BL.sum(-1)


def of_span(logit_BLO, batch):
    """Cross-entropy of the answer's first and last token, label_B2, among all tokens of the sequence: their mean."""
    is_text_BL = jnp.arange(logit_BLO.shape[1]) < batch["length_BC"][:, :1]
    logit_B2L = jnp.where(is_text_BL[:, None], logit_BLO.swapaxes(1, 2), -jnp.inf)
    return _cross_entropy(logit_B2L, batch["label_B2"]).mean(-1) * batch["weight_B"], batch["weight_B"]


def of_numbers(output_BO, batch):
    """Squared error of label_BO, the mean over the numbers of an example."""
    return jnp.square(output_BO - batch["label_BO"]).mean(-1) * batch["weight_B"], batch["weight_B"]


LOSSES = {"classify": of_classes, "choice": of_classes, "tag": of_tokens, "span": of_span, "regress": of_numbers}
