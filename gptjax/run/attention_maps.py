"""Attention weights with the tokens they are of, shown in one line."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class AttentionMaps:
    """Attention weights [layers, heads, query, key]: how much each token (query) attends to each other (key), in every layer
    and head. They add up to 1 over the keys. NumPy takes it for the array that it holds: maps[0, 3], maps.shape, np.mean(maps)."""

    tokens: list[str]  # of queries and keys alike
    weight_NHLM: np.ndarray  # float32

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.weight_NHLM.shape

    @property
    def dtype(self) -> np.dtype:
        return self.weight_NHLM.dtype

    def __getitem__(self, index) -> np.ndarray:
        return self.weight_NHLM[index]

    def __len__(self) -> int:
        """Layers."""
        return len(self.weight_NHLM)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        array = self.weight_NHLM.astype(self.dtype if dtype is None else dtype, copy=False)
        return array.copy() if copy else array

    def __repr__(self) -> str:
        layers, heads, queries, keys = self.shape
        shown = " ".join(map(repr, self.tokens[:6])) + " ..." * (len(self.tokens) > 6)
        return f"AttentionMaps({self.dtype} [{layers} layers, {heads} heads, {queries} queries, {keys} keys], tokens: {shown})"
