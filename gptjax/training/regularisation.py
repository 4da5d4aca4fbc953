"""What keeps a model that is fine-tuned on little text from learning it by heart: label smoothing (train.label_smoothing),
whose formula is in models/loss, and noise on the input embeddings (train.neftune_alpha): NEFTune, Jain et al. 2023.

Axes: B sequences, L inputs, T = L + 1 tokens, D width.
"""

import jax
import jax.numpy as jnp

from gptjax.models import loss

STREAM = 1  # folded into a microbatch's key, whose own numbers are dropout's


def options(batch: dict, key, config) -> dict:
    """What a Config's smoothing and noise ask of a model's token_loss, beside what they do to the sums."""
    train, asked = config.train, {}
    if train.label_smoothing:
        asked["head"] = loss.smoothed_cross_entropy
    if train.neftune_alpha:
        asked["noise_BLD"] = noise(key, batch, config.model.d_model, train.neftune_alpha)
    return asked


def noise(key, batch: dict, width: int, alpha: float) -> jax.Array:
    """float32 [B, L, D], uniform between -a and a with a = alpha / sqrt(length * width) (Jain et al. 2023, algorithm 1).

    The length is that of the document that a token belongs to, where documents of a row are apart, else that of the row:
    so packed documents have the noise of documents alone, and padding adds to no length.
    """
    token_BT, segment_BT = batch["token_BT"], batch.get("segment_BT")
    B, L = token_BT.shape[0], token_BT.shape[1] - 1
    length_BL = jnp.full((B, L), L + 1) if segment_BT is None else document_lengths(segment_BT)[:, :-1]
    bound_BL = alpha / jnp.sqrt(length_BL.astype(jnp.float32) * width)
    unit_BLD = jax.random.uniform(jax.random.fold_in(key, STREAM), (B, L, width), minval=-1.0, maxval=1.0)
    return unit_BLD * bound_BL[..., None]


def document_lengths(segment_BT) -> jax.Array:
    """int32 [B, T]: how many tokens of the row belong to the document that each token belongs to."""
    tokens = segment_BT.shape[1]
    return jax.vmap(lambda segment_T: jnp.bincount(segment_T, length=tokens)[segment_T])(segment_BT)
