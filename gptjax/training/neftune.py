"""Noise on the input embeddings while a model is fine-tuned (train.neftune_alpha): NEFTune, Jain et al. 2023.

Axes: B sequences, L inputs, T = L + 1 tokens, D width.
"""

import jax
import jax.numpy as jnp

STREAM = 1  # folded into a microbatch's key, whose own numbers are dropout's


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
