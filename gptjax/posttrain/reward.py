"""The loss of a reward model: train.loss="reward(margin=True, centering=0.0)", with model.task_head="score"."""

import dataclasses
import typing

import jax.numpy as jnp

from gptjax.config import task_heads
from gptjax.errors import UserError
from gptjax.models import scores
from gptjax.training.losses import Mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reward:
    """Bradley-Terry's loss over all pairs of a prompt, ties left out; a prompt counts once, however many answers it has
    (Ouyang et al. 2022, section 3.5).

    margin: whether the margins of the records count (Touvron et al. 2023, section 3.2.2). centering: weight of the mean of
    (r_i + r_j)^2 over the pairs, which draws scores towards 0 (Eisenstein et al. 2023), as in TRL's RewardTrainer.
    """

    margin: bool = True
    centering: float = 0.0
    preferences: typing.ClassVar[str] = "compared"

    def __post_init__(self):
        if self.centering < 0:
            raise UserError(f"centering={self.centering} is negative; use 0 for none.")

    def __call__(self, params, batch: dict, key, *, graph, config):
        """Nats a prompt; numbers: the share of pairs that it orders rightly, by how much, and the mean score."""
        head = task_heads.of(config.model)
        score_BK = scores.of_batch(
            params,
            batch,
            graph=graph,
            mesh_config=config.mesh,
            head=head,
            chunks=config.train.vocab_chunks,
            key=key if max(config.model.max_dropout, head.dropout) else None,
        )
        is_better_BIJ = scores.is_better(batch)
        difference_BIJ = score_BK[:, :, None] - score_BK[:, None, :]
        margin_B = batch["margin_B"] * self.margin
        weight_B = batch["weight_B"] * is_better_BIJ.any((1, 2))
        loss_sum = jnp.sum(scores.bradley_terry(difference_BIJ, is_better_BIJ, margin_B) * weight_B)
        objective, weight = loss_sum, weight_B.sum()
        if self.centering:
            square_BIJ = jnp.square(score_BK[:, :, None] + score_BK[:, None, :])
            objective += self.centering * jnp.sum(scores.mean_over_pairs(square_BIJ, is_better_BIJ) * weight_B)
        of_pairs = {"accuracy": difference_BIJ > 0, "margin": difference_BIJ}
        numbers = {
            name: Mean(jnp.sum(scores.mean_over_pairs(value_BIJ, is_better_BIJ) * weight_B), weight)
            for name, value_BIJ in of_pairs.items()
        }
        there_BK = (batch["length_BK"] > 0) * weight_B[:, None]
        return objective, ((loss_sum, weight), numbers | {"score": Mean(jnp.sum(score_BK * there_BK), there_BK.sum())})
