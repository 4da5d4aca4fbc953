"""LoRA (Hu et al. 2021, section 4): to a frozen matrix W is added scale A B of low rank; B starts at 0.

    lora      scale alpha / rank
    rslora    scale alpha / sqrt(rank): Kalajdzievski 2023, eq. 4
    dora      each output of W + scale A B is scaled to a trained length: Liu et al. 2024, eq. 5

A [*inputs, rank] starts uniform within 1/sqrt(fan in), as torch's linear maps do and PEFT's; B [rank, *outputs].

With frozen="nf4" the model's own matrices have four bits an entry: QLoRA (Dettmers et al. 2023). With "int8" they are bytes.

DoRA's length of an output is |W| plus `magnitude`, which starts at 0: so that the ratio of lengths is exactly 1 before
training, and a base of any parameters is fitted by itself. It has no part in gradients but through `magnitude` (section
4.3). |W + D|^2 is |W|^2 + 2 W.D + |D|^2, of which nothing is as large as W but W.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.errors import UserError, choose, imported
from gptjax.models import layers
from gptjax.models.adapters import targets
from gptjax.models.adapters.adapter import OnLinear, Part, at_index, at_least_one, check_dropout, fan, linear_at
from gptjax.parallel import sharding

FROZEN = ("as_stored", "int8", "nf4")


@dataclasses.dataclass(frozen=True)
class Lora(OnLinear):
    """rank: of the updates; alpha: scale times rank; on: which matrices (targets.py); dropout: of the updates' inputs; frozen:
    how the layers' own matrices are kept, as_stored, as int8 with a scale for each output (models/int8.py), or as nf4 with one for
    each block (models/nf4.py)."""

    rank: int = 8
    alpha: float = 16.0
    on: str = "q,v"
    dropout: float = 0.0
    frozen: str = "as_stored"

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def dropout_rate(self) -> float:
        return self.dropout

    def check(self, model) -> None:
        super().check(model)
        at_least_one(self, "rank")
        check_dropout(self.dropout)
        for of, pieces in targets.chosen(self.on, model):
            for piece in pieces:
                if self.rank > (full := min(fan(of.inputs), fan(of.outputs_of(piece)))):
                    name = of.path[-1] if piece == targets.WHOLE else piece
                    raise UserError(
                        f"rank={self.rank} is more than the full rank of {name}, a matrix of {fan(of.inputs)} x"
                        f" {fan(of.outputs_of(piece))}; use at most {full}."
                    )
        if self.alpha <= 0:
            raise UserError(f"alpha={self.alpha} must be positive.")
        choose(dict.fromkeys(FROZEN), self.frozen, "frozen")
        if self.frozen == "nf4":
            from gptjax.models import nf4

            nf4.check(targets.maps(model))

    def attach(self, block, model, key) -> None:
        super().attach(block, model, key)
        if self.in_bytes:
            quantise = imported(f"gptjax.models.{self.frozen}:quantise", f"frozen={self.frozen!r}")
            for of in targets.maps(model).values():
                quantise(linear_at(block, of.path))

    def layer_parameters(self, model):
        matrices, vectors = super().layer_parameters(model)
        scales = 0
        if self.frozen == "nf4":
            from gptjax.models import nf4

            scales = sum(nf4.entries(of) for of in targets.maps(model).values())
        elif self.in_bytes:
            scales = sum(fan(of.outputs) for of in targets.maps(model).values())
        return matrices, vectors + scales

    @property
    def in_bytes(self) -> bool:
        return self.frozen != "as_stored"

    def part(self, linear, of, pieces, key):
        return LowRank(self, linear, of, pieces, key)

    def piece_parameters(self, of, piece):
        return self.rank * (fan(of.inputs) + fan(of.outputs_of(piece))), 0


@dataclasses.dataclass(frozen=True)
class RankStabilized(Lora):
    @property
    def scale(self) -> float:
        return self.alpha / math.sqrt(self.rank)


@dataclasses.dataclass(frozen=True)
class Dora(Lora):
    def part(self, linear, of, pieces, key):
        return Decomposed(self, linear, of, pieces, key)

    def piece_parameters(self, of, piece):
        return super().piece_parameters(of, piece)[0], fan(of.outputs_of(piece))


class Update(nnx.Module):
    """A and B of one piece of a linear map."""

    def __init__(self, key, rank: int, inputs, outputs, axes):
        n_inputs, bound = len(inputs), 1 / math.sqrt(fan(inputs))
        A = jax.random.uniform(key, (*inputs, rank), jnp.float32, -bound, bound)
        dims = tuple(range(n_inputs))
        self.A = nnx.Param(A, axes=(*axes[:n_inputs], "rank"), kind="matrix", inputs=dims, outputs=(n_inputs,))
        dims = tuple(range(1, 1 + len(outputs)))
        B = jnp.zeros((rank, *outputs), jnp.float32)
        self.B = nnx.Param(B, axes=("rank", *axes[n_inputs:]), kind="matrix", inputs=(0,), outputs=dims)

    @property
    def down(self):
        """What inputs are multiplied by first, [*inputs, rank]."""
        return self.A[...]

    @property
    def product(self):
        """A B [*inputs, *outputs], float32."""
        A, B = self.down.astype(jnp.float32), self.B[...].astype(jnp.float32)
        return jnp.tensordot(A, B, 1, precision="highest")


class LowRank(Part):
    """The updates of one linear map, by piece."""

    made = Update

    def __init__(self, spec: Lora, linear, of: targets.Map, pieces, key):
        super().__init__(of, pieces, spec.dropout)
        self.scale = spec.scale
        axes = linear.weight.get_metadata()["axes"]
        for piece, key_of_piece in zip(pieces, jax.random.split(key, len(pieces))):
            setattr(self, piece, self.made(key_of_piece, spec.rank, of.inputs, of.outputs_of(piece), axes))

    def __call__(self, linear, x, index):
        return linear.plain(x, index) + self.update(self.dropped(x), index)

    def update(self, x, index):
        """What is added to the outputs at an index, for inputs x."""
        linear = layers.LINEAR[sharding.platform()]
        hidden = {piece: linear(x, getattr(self, piece).down, None, len(self.of.inputs)) for piece in self.chosen}
        pieces = {piece: linear(hidden[piece], getattr(self, piece).B[...], None, 1) for piece in self.chosen}
        return self.scale * self.assembled(pieces, 0.0, index)

    def weight_update(self):
        """[*inputs, *outputs], float32: what is added to the weight."""
        return self.scale * self.assembled({piece: getattr(self, piece).product for piece in self.chosen}, 0.0, ...)

    def merged(self, weight, bias):
        return weight + self.weight_update(), bias, None

    def restored(self, weight, bias, kept):
        return weight - self.weight_update(), bias


class Decomposed(LowRank):
    """LowRank, with a trained change of the length of each output."""

    def __init__(self, spec: Dora, linear, of: targets.Map, pieces, key):
        super().__init__(spec, linear, of, pieces, key)
        axes = linear.weight.get_metadata()["axes"][len(of.inputs) :]
        for piece in pieces:
            zeros = jnp.zeros(of.outputs_of(piece), jnp.float32)
            getattr(self, piece).magnitude = nnx.Param(zeros, axes=axes, kind="vector")

    def __call__(self, linear, x, index):
        y, ratio = linear.plain(x, index), at_index(self.ratio(linear.whole_weight()), self.of, index)
        dropped = self.dropped(x)
        if dropped is x:
            bias = 0 if linear.bias is None else at_index(linear.bias[...], self.of, index).astype(y.dtype)
            base = y - bias
        else:
            base = linear.plain(dropped, index, biased=False)
        change = (ratio - 1).astype(y.dtype) * base
        return y + change + ratio.astype(y.dtype) * self.update(dropped, index)

    def ratio(self, weight):
        """[*outputs], float32: the trained length of each output over that of W + scale A B; 1 of pieces that stay."""
        weight = jax.lax.stop_gradient(weight.astype(jnp.float32))
        return self.assembled({piece: self._ratio_of(weight, piece) for piece in self.chosen}, 1.0, ...)

    def _ratio_of(self, weight, piece: str):
        update, n_inputs = getattr(self, piece), len(self.of.inputs)
        A, B = (jax.lax.stop_gradient(part[...].astype(jnp.float32)) for part in (update.A, update.B))
        weight, over = self.piece_of(weight, piece), tuple(range(n_inputs))
        square = jnp.square(weight).sum(over)
        by_rank = jnp.tensordot(A, 2 * weight + self.scale * jnp.tensordot(A, B, 1), (over, over))
        changed = square + self.scale * (by_rank * B).sum(0)
        # Not a root over a root: XLA would make a product of it, which is not 1 where both are one number.
        return jnp.sqrt(square / changed) * (1 + update.magnitude[...].astype(jnp.float32) / jnp.sqrt(square))

    def merged(self, weight, bias):
        ratio = self.ratio(weight)
        return ratio * (weight + self.weight_update()), bias, ratio

    def restored(self, weight, bias, kept):
        return weight / kept - self.weight_update(), bias
