"""Slices of TPUs as their compiler would describe them."""

import numpy as np

from gptjax.planning import topology


def torus(family: str, shape: tuple[int, ...], slices: int = 1) -> topology.Topology:
    """A slice as libtpu would describe it: chips in row-major order."""
    count = int(np.prod(shape))
    places = np.stack([*np.unravel_index(np.arange(count), shape), np.zeros(count, int)], axis=1)
    return topology.Topology(
        "t", family, shape, slices, [], np.tile(places, (slices, 1)), np.repeat(np.arange(slices), count)
    )
