"""The weights of a mixture, as its config gives them: checked before any source is opened."""

import math

from gptjax.errors import UserError, did_you_mean

PERIOD = 1 << 16  # rows


def check_weights(names: tuple[str, ...], stages: list[dict[str, float]]) -> None:
    """Raises UserError: a name without weight or a weight without source, a weight that is negative, too small, or 0
    in all stages."""
    there_are = f"the sources of data.mixture are {', '.join(names)}"
    for weights in stages:
        for name in weights:
            if name not in names:
                raise UserError(f"data.weights has {name!r}{did_you_mean(name, names)}; {there_are}.")
        for name in names:
            if name not in weights:
                raise UserError(f"data.weights has none for {name!r}; {there_are}, and each needs one (0 is allowed).")
        total = sum(weights.values())
        for name, weight in weights.items():
            if not 0 <= weight < math.inf or total <= 0:  # also what is not a number
                raise UserError(f"data.weights={weights}: expected weights of at least 0, one of them larger.")
            if 0 < weight / total < 1 / PERIOD:
                raise UserError(
                    f"data.weights gives {name!r} {weight / total:.2g} of the rows, less than one in {PERIOD}; raise its"
                    " weight, or leave it out of data.mixture."
                )
    for name in names:
        if all(weights[name] == 0 for weights in stages):
            raise UserError(f"data.weights gives {name!r} 0 in all stages: it would never be read; leave it out.")
