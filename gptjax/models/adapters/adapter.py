"""What every kind of adapter states, and what one that sits on linear maps has in common.

A kind is a frozen dataclass: its fields are the parameters of model.adapter="lora(rank=8)". It attaches parts of its own to
a block when that is made, inside the vmap that stacks the blocks; their parameters stand under the name "adapter", by which
training finds them (train.trainable). Without dropout an adapter changes nothing of a model, to the bit, before it is
trained.
"""

import dataclasses
import math
import typing

import jax
import jax.numpy as jnp
from flax import nnx

from gptjax.errors import UserError
from gptjax.models import layers
from gptjax.models.adapters import targets


@dataclasses.dataclass(frozen=True)
class Adapter:
    """dropout: the share of the adapter's inputs that dropout zeroes; 0: none."""

    def check(self, model) -> None:
        """Raises UserError: a parameter that cannot be, or a ModelConfig that has not what it names."""
        raise NotImplementedError

    def attach(self, block, model, key) -> None:
        """Adds this adapter's parts to a block of a ModelConfig. key: of their initialisation."""
        raise NotImplementedError

    def give_keys(self, block, key) -> None:
        """Gives every part that has dropout a key of its own. The block is one call's, made of stacked ones."""
        parts = [part for _, part in nnx.iter_modules(block) if isinstance(part, Part) and part.dropout_rate]
        for number, part in enumerate(parts):
            part.key = nnx.data(jax.random.fold_in(key, number))  # None until now, which is no data

    def layer_parameters(self, model) -> tuple[int, int]:
        """(matrices, vectors) that it adds to a layer: entries, as gpt_counts has them."""
        raise NotImplementedError

    def attach_outside(self, gpt, model, key) -> None:
        """Adds what stands outside the blocks, as gpt.adapter: see prefix.py. Most kinds have nothing there."""

    def outer_parameters(self, model) -> int:
        """Entries that it adds outside the layers, none of them in matrices."""
        return 0

    @property
    def prefix_length(self) -> int:
        """Keys and values that it puts before every sequence."""
        return 0

    @property
    def position_shift(self) -> int:
        """What it adds to the position of every token."""
        return 0

    @property
    def dropout_rate(self) -> float:
        return 0.0

    @property
    def penalty_weight(self) -> float:
        """What multiplies `penalty(params)` in the loss of training; 0: there is none."""
        return 0.0

    @property
    def allocates_ranks(self) -> bool:
        """Whether training gives up some of its ranks: see optim/rank_budget.py."""
        return False

    @property
    def in_bytes(self) -> bool:
        """Whether the model's own matrices are kept in bytes, int8 or nf4."""
        return False


@dataclasses.dataclass(frozen=True)
class OnLinear(Adapter):
    """One that sits on some of a layer's linear maps, chosen by its field `on`."""

    on: typing.ClassVar[str]
    can_merge: typing.ClassVar[bool] = True  # whether the maps can take its parts up

    def part(self, linear, of: targets.Map, pieces: tuple[str, ...], key) -> "Part":
        """What is attached to one linear map."""
        raise NotImplementedError

    def piece_parameters(self, of: targets.Map, piece: str) -> tuple[int, int]:
        """(matrices, vectors) of one piece of a linear map."""
        raise NotImplementedError

    def check(self, model) -> None:
        targets.chosen(self.on, model)

    def attach(self, block, model, key) -> None:
        chosen = targets.chosen(self.on, model)
        for (of, pieces), key_of_map in zip(chosen, jax.random.split(key, len(chosen))):
            linear = linear_at(block, of.path)
            linear.adapter = nnx.data(self.part(linear, of, pieces, key_of_map))  # None until now, which is no data

    def layer_parameters(self, model) -> tuple[int, int]:
        counts = [self.piece_parameters(of, piece) for of, pieces in targets.chosen(self.on, model) for piece in pieces]
        return sum(matrices for matrices, _ in counts), sum(vectors for _, vectors in counts)


def linear_at(block, path: tuple[str, ...]):
    """The layers.Linear of a block at a path such as ("mlp", "up")."""
    for name in path:
        block = getattr(block, name)
    return block


class Part(nnx.Module):
    """An adapter's part on one linear map: called in its place, with the map, its input and which outputs are wanted.

    Subclasses write `__call__`, and `merged` and `restored` where the map can take the adapter up.
    """

    def __init__(self, of: targets.Map, pieces: tuple[str, ...], dropout: float = 0.0):
        self.of, self.chosen, self.dropout_rate = of, pieces, dropout
        self.key = None  # of dropout, in a call that has some

    def __call__(self, linear, x, index):
        """The adapted map of x. index: of layers.Linear.part."""
        raise NotImplementedError

    def merged(self, weight, bias):
        """(weight, bias, what `restored` needs beside the adapter) of the linear map that computes the same without it."""
        raise NotImplementedError

    def restored(self, weight, bias, kept):
        """(weight, bias) before `merged`, up to rounding."""
        raise NotImplementedError

    def dropped(self, x):
        return layers.dropout(x, self.dropout_rate, self.key)

    def assembled(self, array_of: dict, absent: float, index):
        """Arrays [..., *outputs of a piece] by piece as one [..., *outputs], or at an index of it; `absent` where a piece is not
        adapted."""
        if targets.WHOLE in array_of:
            return at_index(array_of[targets.WHOLE], self.of, index)
        some = next(iter(array_of.values()))
        leading = some.shape[: some.ndim - len(self.of.outputs)]
        shape = lambda piece: (*leading, *self.of.outputs_of(piece))  # noqa: E731
        fill = lambda piece: jnp.full(shape(piece), absent, some.dtype)  # noqa: E731
        whole = [array_of[piece] if piece in array_of else fill(piece) for piece, _ in self.of.pieces]
        return at_index(jnp.concatenate(whole, axis=len(leading) + self.of.dim), self.of, index)

    def piece_of(self, array, piece: str):
        """The entries [..., *outputs of a piece] of an array [..., *outputs]."""
        if piece == targets.WHOLE:
            return array
        start = 0
        for name, size in self.of.pieces:
            if name == piece:
                break
            start += size
        axis = array.ndim - len(self.of.outputs) + self.of.dim
        return jax.lax.slice_in_dim(array, start, start + size, axis=axis)


def at_index(array, of: targets.Map, index):
    """An array [..., *outputs] at an index of layers.Linear.part."""
    if index is ...:
        return array
    return array[(..., slice(None), index, *[slice(None)] * (len(of.outputs) - 2))]


def fan(sizes: tuple[int, ...]) -> int:
    return math.prod(sizes)


def at_least_one(adapter, *names: str) -> None:
    """Raises UserError: one of these fields is below 1."""
    for name in names:
        if getattr(adapter, name) < 1:
            raise UserError(f"{name}={getattr(adapter, name)} is too small; use at least 1.")


def check_dropout(rate: float) -> None:
    """Raises UserError."""
    if not 0 <= rate < 1:
        raise UserError(f"dropout={rate} is not in [0, 1).")
