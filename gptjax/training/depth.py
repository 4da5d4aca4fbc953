"""Some of the layers, out of the arrays [N, ...] that hold all N of them: train.trainable="blocks[6:]/mlp".

What is trained of such an array and what stays frozen are two arrays of fewer layers, side by side in the trees that
trainable.py makes, and are put together again for the model. So moments exist for the trained layers alone. The layers run
as one scan, whose gradient has them all: that of frozen ones is made and thrown away, microbatch by microbatch.
"""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp

from gptjax.errors import UserError

PATTERN = re.compile(r"blocks\[(?:(-?\d+)|(-?\d+)?:(-?\d+)?)\](/.*)?")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["trained"])
@dataclasses.dataclass(frozen=True)
class Rest:
    """The frozen layers of an array, [N - n, ...]. trained: the indices of the other n."""

    array: object
    trained: tuple[int, ...]


def parse(pattern: str, n_layers: int) -> tuple[str, range]:
    """("blocks/mlp", layers) of "blocks[6:]/mlp", where layers count from 0 as Python's do, also from the end. Raises
    UserError: brackets that cannot be read, or layers that this model has not."""
    parts = PATTERN.fullmatch(pattern)
    if parts is None:
        raise UserError(
            f"train.trainable has {pattern!r}; expected blocks[6:], blocks[2:4], blocks[-1] or the like, then / and a name."
        )
    single, start, end, below = parts.groups()
    first, last = (single, single) if single else (start or "0", end or str(n_layers))
    begin, stop = (int(text) + n_layers * text.startswith("-") for text in (first, last))
    stop += bool(single)
    if not 0 <= begin < stop <= n_layers:
        raise UserError(
            f"train.trainable has {pattern!r}, and model.n_layers={n_layers}; name layers of 0 to {n_layers - 1}, the end of a"
            " range behind its start."
        )
    return f"blocks{below or ''}", range(begin, stop)


def apart(leaf, layers: tuple[int, ...]):
    """(those layers of an array [N, ...] or of its shape, Rest). What has no shape, such as a sharding, is that of both."""
    if not hasattr(leaf, "shape"):
        return leaf, Rest(leaf, layers)
    others = tuple(sorted(set(range(leaf.shape[0])) - set(layers)))
    return _taken(leaf, layers), Rest(_taken(leaf, others), layers)


def _taken(leaf, layers: tuple[int, ...]):
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((len(layers), *leaf.shape[1:]), leaf.dtype)
    return _concatenated([leaf[part.start : part.stop] for part in _runs(layers)])


def together(trained, rest: Rest):
    """The inverse of apart, for arrays."""
    n_layers = trained.shape[0] + rest.array.shape[0]
    parts, used = [], {True: 0, False: 0}
    for is_trained, layers in itertools.groupby(range(n_layers), key=set(rest.trained).__contains__):
        source, start = (trained if is_trained else rest.array), used[is_trained]
        used[is_trained] = end = start + len(list(layers))
        parts.append(source[start:end])
    return _concatenated(parts)


def _concatenated(parts: list):
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _runs(layers: tuple[int, ...]) -> list[range]:
    """Neighbouring layers as ranges."""
    groups = itertools.groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0])
    runs = [[layer for _, layer in group] for _, group in groups]
    return [range(run[0], run[-1] + 1) for run in runs]


def check(layers: tuple[int, ...], name: str, config) -> None:
    """Raises UserError: the trained layers of a parameter do not divide over the stages of a pipeline."""
    stages, total = config.mesh.stage, config.model.n_layers
    if stages > 1 and (len(layers) % stages or (total - len(layers)) % stages):
        raise UserError(
            f"train.trainable={config.train.trainable!r} trains {len(layers)} of {total} layers of {name}, which do not divide"
            f" over mesh.stage={stages} as do the rest; use a multiple of {stages}, or mesh.stage=1."
        )


def roles(of_params: dict, layers_of) -> dict:
    """{path: roles.Role} with what is trained of the layers. layers_of(name): trainable.chosen."""
    chosen = {path: layers_of("/".join(path)) for path in of_params}
    return {
        path: dataclasses.replace(role, layers=chosen[path]) if isinstance(chosen[path], tuple) else role
        for path, role in of_params.items()
    }
