"""What a reward model makes of answers: their scores, and how likely its comparisons are by them.

The batch is that of data/pairs/rows.py. Every answer goes through the model once, whatever the number of pairs it stands in.
Axes: B prompts, K answers to one, I and J the better and the worse of a pair, L length, T = L + 1.
"""

import jax
import jax.numpy as jnp

from gptjax.models import labelled


def of_batch(params, batch: dict, **options):
    """float32 [B, K]: the score of each answer of token_BKT, read at its last token by length_BK; 0 where there is none.
    options: of `labelled.outputs`."""
    sequences = {"token_BCL": batch["token_BKT"][..., :-1], "length_BC": batch["length_BK"]}
    return labelled.outputs(params, sequences, **options)[0]


def of_rows(params, token_BL, length_B, **options):
    """float32 [B]: the score of each sequence, such as those of a rollout."""
    sequences = {"token_BCL": token_BL[:, None], "length_BC": length_B[:, None]}
    return labelled.outputs(params, sequences, **options)[0][:, 0]


def is_better(batch: dict):
    """bool [B, I, J]: whether answer i is better than answer j; ties are no pairs."""
    score_BK, is_there_BK = batch["score_BK"], batch["length_BK"] > 0
    above_BIJ = score_BK[:, :, None] > score_BK[:, None, :]
    return above_BIJ & is_there_BK[:, :, None] & is_there_BK[:, None, :]


def mean_over_pairs(value_BIJ, is_better_BIJ):
    """[B]: the mean over the pairs of a prompt; 0 where it has none."""
    return jnp.sum(value_BIJ * is_better_BIJ, (1, 2)) / jnp.maximum(is_better_BIJ.sum((1, 2)), 1)


def bradley_terry(difference_BIJ, is_better_BIJ, margin_B):
    """float32 [B]: nats a pair, the mean over all pairs of a prompt: one element whose answers are each read once (Ouyang et
    al. 2022, section 3.5, equation 1). The margin is that of Touvron et al. 2023, section 3.2.2."""
    return mean_over_pairs(-jax.nn.log_sigmoid(difference_BIJ - margin_B[:, None, None]), is_better_BIJ)
