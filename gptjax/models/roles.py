"""What a parameter is to an optimizer, stated beside its shape, as its logical axes are.

    nnx.Param(table, axes=("vocab", "embed"), kind="embedding")
    nnx.Param(weight, axes=("embed", "mlp"), kind="matrix", inputs=(0,), outputs=(1,))

kind is one of KINDS. Weight decay shrinks matrices, embeddings where optim.decay_embeddings asks for it, and vectors never.
A matrix of the stacked layers is hidden: its activations grow with width on both sides, so that muP gives it another
learning rate, and Muon makes its updates orthogonal. Of such a matrix inputs and outputs say which dimensions it maps from
and to; those that are neither count matrices side by side. One of two dimensions need not say so.
"""

import dataclasses

import jax

KINDS = ("matrix", "embedding", "vector")  # what multiplies activations; tables of rows; biases and gains


@dataclasses.dataclass(frozen=True)
class Role:
    """Of one parameter. Dimensions count that of the stacked layers."""

    kind: str
    stacked: bool  # whether it belongs to the layers, along whose dimension it is stacked
    inputs: tuple[int, ...] = ()  # dimensions of a hidden matrix
    outputs: tuple[int, ...] = ()
    input_axes: tuple[str, ...] = ()  # the logical axes of these dimensions
    output_axes: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None  # the layers in the stack; None: all

    @property
    def is_hidden(self) -> bool:
        return self.kind == "matrix" and self.stacked


def of_variable(path: tuple[str, ...], variable) -> Role:
    """What an nnx.Param at a path of a model states. Raises ValueError that names the parameter if it states no kind."""
    stated = variable.get_metadata()
    kind, stacked = stated.get("kind"), "blocks" in path
    if kind not in KINDS:
        raise ValueError(
            f"parameter {'/'.join(path)} states kind={kind!r}; give nnx.Param(..., kind=...) beside its shape, one of:"
            f" {', '.join(KINDS)}."
        )
    if kind != "matrix" or not stacked:
        return Role(kind, stacked)
    axes = tuple(stated.get("axes") or ())
    inputs, outputs = stated.get("inputs", ()), stated.get("outputs", ())
    if not inputs and not outputs and len(axes) == 2:
        inputs, outputs = (0,), (1,)
    dims = ((1 + dim for dim in given) for given in (inputs, outputs))
    return Role(kind, stacked, *map(tuple, dims), *(tuple(axes[dim] for dim in given) for given in (inputs, outputs)))


def by_role(function, roles: dict, params):
    """The tree of function(role) for the parameters of a tree, a part of the model's.

    roles: {path: Role}. Raises ValueError that names a parameter which has none.
    """

    def of(path, _):
        names = tuple(key.key for key in path)
        if names not in roles:
            raise ValueError(
                f"parameter {'/'.join(names)} is none of the model's: nothing says what an optimizer does with it."
            )
        return function(roles[names])

    return jax.tree_util.tree_map_with_path(of, params)
