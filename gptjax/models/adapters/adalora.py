"""AdaLoRA (Zhang et al. 2023): to a frozen matrix W is added scale A diag(E) B, whose ranks are given up one by one.

E starts at 0, A and B normal with deviation 0.02. Training adds to the loss how far the columns of A and the rows of B are
from orthogonal: the mean over all of them of |A^T A - I| and |B B^T - I|, unsquared as PEFT has it, where the paper (eq. 4)
squares. Which ranks are given up, and when: optim/rank_budget.py. The scale is alpha / rank of the rank at the start.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict

from gptjax.errors import UserError
from gptjax.models import layers
from gptjax.models.adapters.adapter import at_least_one
from gptjax.models.adapters.lora import Lora, LowRank, Update

INIT_STD = 0.02


@dataclasses.dataclass(frozen=True)
class AdaLora(Lora):
    """rank: of the updates at the start; target: their average rank at the end; steps_before, steps_after: steps at the
    start with all ranks and at the end with the last; every: steps from one choice of ranks to the next; beta1, beta2: of the
    averages of importance and its uncertainty; orthogonality: weight of the term above. The rest as Lora."""

    rank: int = 12
    target: int = 8
    steps_before: int = 0
    steps_after: int = 0
    every: int = 1
    beta1: float = 0.85
    beta2: float = 0.85
    orthogonality: float = 0.5

    def check(self, model) -> None:
        super().check(model)
        at_least_one(self, "target", "every")
        if self.target > self.rank:
            raise UserError(f"target={self.target} is more than rank={self.rank}; use at most {self.rank}.")
        for name in ("steps_before", "steps_after", "orthogonality"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must not be negative.")
        for name in ("beta1", "beta2"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is not between 0 and 1.")

    @property
    def allocates_ranks(self) -> bool:
        return True

    @property
    def penalty_weight(self) -> float:
        return self.orthogonality

    def penalty(self, params: dict):
        """float32: what the weight multiplies. params: the model's."""
        distances = []
        for path, leaf in flatten_dict(params["blocks"]).items():
            if "adapter" in path and path[-1] in ("A", "B"):
                distances.append(jax.vmap(_distance_A if path[-1] == "A" else _distance_B)(leaf.astype(jnp.float32)))
        return jnp.concatenate(distances).mean()

    def part(self, linear, of, pieces, key):
        return Singular(self, linear, of, pieces, key)

    def piece_parameters(self, of, piece):
        return super().piece_parameters(of, piece)[0], self.rank


def _distance_A(A):
    return _from_identity(A, tuple(range(A.ndim - 1)))


def _distance_B(B):
    return _from_identity(B, tuple(range(1, B.ndim)))


def _from_identity(array, dims):
    products = jnp.tensordot(array, array, (dims, dims), precision="highest")
    return jnp.linalg.norm(products - jnp.eye(products.shape[0]))


class Triplet(Update):
    """A, E and B of one piece of a linear map."""

    def __init__(self, key, rank: int, inputs, outputs, axes):
        super().__init__(key, rank, inputs, outputs, axes)
        for number, param in enumerate((self.A, self.B)):
            param[...] = layers.normal(jax.random.fold_in(key, number), param[...].shape, INIT_STD)
        self.E = nnx.Param(jnp.zeros((rank,), jnp.float32), axes=("rank",), kind="vector")

    @property
    def down(self):
        return self.A[...] * self.E[...].astype(self.A[...].dtype)


class Singular(LowRank):
    """The updates of one linear map, by piece."""

    made = Triplet
