"""(IA)^3: outputs of a frozen matrix times a trained vector, which starts at 1 (Liu et al. 2022, section 3.3).

Of the MLP's way down its inputs are scaled, which are the activation's outputs. `scale` [*outputs], or [*inputs] there.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from gptjax.models.adapters.adapter import OnLinear, Part, at_index, fan


@dataclasses.dataclass(frozen=True)
class IA3(OnLinear):
    """on: which matrices (targets.py)."""

    on: str = "k,v,down"

    def part(self, linear, of, pieces, key):
        return Scales(linear, of, pieces)

    def piece_parameters(self, of, piece):
        return 0, fan(of.inputs if scales_inputs(of) else of.outputs_of(piece))


def scales_inputs(of) -> bool:
    return of.path == ("mlp", "down")


class Scale(nnx.Module):
    def __init__(self, shape, axes):
        self.scale = nnx.Param(jnp.ones(shape, jnp.float32), axes=axes, kind="vector")


class Scales(Part):
    """The scales of one linear map, by piece."""

    def __init__(self, linear, of, pieces):
        super().__init__(of, pieces)
        axes, n_inputs = linear.weight.get_metadata()["axes"], len(of.inputs)
        for piece in pieces:
            if scales_inputs(of):
                setattr(self, piece, Scale(of.inputs, axes[:n_inputs]))
            else:
                setattr(self, piece, Scale(of.outputs_of(piece), axes[n_inputs:]))

    def __call__(self, linear, x, index):
        if scales_inputs(self.of):
            return linear.plain(x * self.whole.scale[...].astype(x.dtype), index)
        return linear.plain(x, index) * at_index(self.output_scale(), self.of, index).astype(x.dtype)

    def output_scale(self):
        """[*outputs]: 1 of pieces that stay."""
        return self.assembled({piece: getattr(self, piece).scale[...] for piece in self.chosen}, 1.0, ...)

    def merged(self, weight, bias):
        if scales_inputs(self.of):
            scale = self.whole.scale[...]
            return scale.reshape(*scale.shape, *[1] * len(self.of.outputs)) * weight, bias, None
        scale = self.output_scale()
        return weight * scale, None if bias is None else bias * scale, None

    def restored(self, weight, bias, kept):
        if scales_inputs(self.of):
            scale = self.whole.scale[...]
            return weight / scale.reshape(*scale.shape, *[1] * len(self.of.outputs)), bias
        scale = self.output_scale()
        return weight / scale, None if bias is None else bias / scale
