"""The matrices of a layer by name, as `on` of an adapter lists them.

    q k v o          of attention: its queries, keys, values, and its way out
    gate up down     of the MLP; gate where its activation has one
    qkv              queries, keys and values as the one matrix that they are here, and in GPT-2
    attention        q, k, v, o          mlp    gate, up, down          all    both

Some lie side by side in one linear map, which is then adapted piece by piece: q, k and v in [D, G, R + 2, K], gate and up
in [D, 2, F]. Axes as in gpt.py. Needs no JAX.
"""

import dataclasses

from gptjax.errors import UserError, did_you_mean
from gptjax.models.gpt_counts import GATED

WHOLE = "whole"  # the name of a linear map's only piece
GROUPS = {
    "attention": ("q", "k", "v", "o"),
    "mlp": ("gate", "up", "down"),
    "all": ("q", "k", "v", "o", "gate", "up", "down"),
}


@dataclasses.dataclass(frozen=True)
class Map:
    """A linear map of a block. path: its attributes from the block; pieces: ((name, size), ...) along dimension `dim` of the
    outputs; one piece is the whole map."""

    path: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    pieces: tuple[tuple[str, int], ...] = ((WHOLE, 1),)
    dim: int = 0

    def outputs_of(self, piece: str) -> tuple[int, ...]:
        """The outputs of one piece, with `dim` as long as it is."""
        if piece == WHOLE:
            return self.outputs
        return (*self.outputs[: self.dim], dict(self.pieces)[piece], *self.outputs[self.dim + 1 :])


def maps(model) -> dict[str, Map]:
    """{"qkv": Map} of the linear maps of a ModelConfig's layer."""
    D, F, K, G = model.d_model, model.ff_size, model.head_size, model.kv_heads
    R = model.n_heads // G
    up = Map(("mlp", "up"), (D,), (F,))
    if model.mlp in GATED:
        up = Map(("mlp", "up"), (D,), (2, F), (("gate", 1), ("up", 1)), dim=0)
    return {
        "qkv": Map(("attention", "qkv"), (D,), (G, R + 2, K), (("q", R), ("k", 1), ("v", 1)), dim=1),
        "o": Map(("attention", "out"), (model.n_heads, K), (D,)),
        "up": up,
        "down": Map(("mlp", "down"), (F,), (D,)),
    }


def chosen(on: str, model) -> list[tuple[Map, tuple[str, ...]]]:
    """[(linear map, the pieces of it)] that `on` names. Raises UserError: a name that is none, or one that this model has
    not, or one twice."""
    names = _names(on, model)
    pieces: dict[str, list[str]] = {}
    for name in names:
        home, piece = _home(name, model)
        pieces.setdefault(home, []).append(piece)
    table = maps(model)
    for home, listed in pieces.items():
        if len(listed) != len(set(listed)) or (WHOLE in listed and len(listed) > 1):
            raise UserError(f"on={on!r} names a part of {home} twice; name it once.")
    return [(table[home], tuple(pieces[home])) for home in table if home in pieces]


def _names(on: str, model) -> list[str]:
    gated = model.mlp in GATED
    names = []
    for word in (word.strip() for word in on.split(",")):
        if word in GROUPS:
            names += [name for name in GROUPS[word] if name != "gate" or gated]
        elif word == "gate" and not gated:
            raise UserError(f"on={on!r} names gate, which model.mlp={model.mlp!r} has not; leave it out.")
        elif word == "qkv" or word in GROUPS["all"]:
            names.append(word)
        else:
            every = [*GROUPS, "qkv", *GROUPS["all"]]
            near = did_you_mean(word, every)
            raise UserError(
                f"on={on!r} has the name {word!r}{near}; expected names of {', '.join(every)}, with commas."
            )
    return names


def _home(name: str, model) -> tuple[str, str]:
    """(linear map, piece) of a name."""
    if name in ("q", "k", "v"):
        return "qkv", name
    if name in ("gate", "up"):
        return "up", name if model.mlp in GATED else WHOLE
    return name, WHOLE
