"""Bottleneck adapters (Houlsby et al. 2019, section 2.1): behind attention and MLP, before their output joins the residual
stream, y + up(gelu(down(y))), of biased maps to few dimensions and back.

The way up starts at 0 and the way down with deviation 0.01, as the paper has it: so the whole starts as the identity.
"""

import dataclasses

import jax

from gptjax.errors import UserError
from gptjax.models import layers
from gptjax.models.adapters.adapter import OnLinear, Part, at_least_one, check_dropout
from gptjax.parallel import sharding

PLACES = {"attention": "o", "mlp": "down"}  # whose outputs it follows


@dataclasses.dataclass(frozen=True)
class Bottleneck(OnLinear):
    """size: dimensions in its middle; behind: attention, mlp or both; dropout: of its inputs."""

    size: int = 64
    behind: str = "attention,mlp"
    dropout: float = 0.0
    can_merge = False

    @property
    def on(self) -> str:
        """The linear maps whose outputs it follows."""
        names = [word.strip() for word in self.behind.split(",")]
        if not set(names) <= PLACES.keys() or len(names) > len(set(names)):
            raise UserError(f"behind={self.behind!r} is not known; expected attention, mlp or attention,mlp.")
        return ",".join(PLACES[name] for name in names)

    @property
    def dropout_rate(self) -> float:
        return self.dropout

    def check(self, model) -> None:
        super().check(model)
        at_least_one(self, "size")
        check_dropout(self.dropout)

    def part(self, linear, of, pieces, key):
        return Middle(self, of, pieces, key)

    def piece_parameters(self, of, piece):
        (width,) = of.outputs
        return 2 * width * self.size, width + self.size


class Middle(Part):
    def __init__(self, spec: Bottleneck, of, pieces, key):
        super().__init__(of, pieces, spec.dropout)
        (width,) = of.outputs
        self.down = layers.Linear(key, (width,), (spec.size,), ("embed", "rank"), 0.01, bias=True)
        self.up = layers.Linear(jax.random.fold_in(key, 1), (spec.size,), (width,), ("rank", "embed"), 0.0, bias=True)

    def __call__(self, linear, x, index):
        y = linear.plain(x, index)
        y = sharding.constrain(y, "batch", "length", "width") if y.ndim == 3 else y
        return y + self.up(jax.nn.gelu(self.down(self.dropped(y)), approximate=False))
