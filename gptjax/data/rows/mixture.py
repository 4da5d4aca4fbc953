"""Which source row g of a run comes from, and which of that source's rows it is: arithmetic, for any g at once.

A stage of the mixture repeats a table of PERIOD rows. In it source i has a whole number of places, its weight's share,
spread as evenly as its randomness allows: one in every PERIOD / places rows, at a random point in between. So of the first
n rows of a stage a source with p n to have, of S sources, has less than 1 + p (S - 2) rows more or less, whatever n, on any
number of hosts. Within a source rows are counted without gaps, also over stages: what it gives is its own epochs, in
its own order.
"""

import dataclasses
import typing

import numpy as np

from gptjax.config.mixture_weights import PERIOD, check_weights
from gptjax.data.rows.hashing import hash_of, hash_of_name


@dataclasses.dataclass(frozen=True)
class _Stage:
    first_row: int
    source_N: np.ndarray  # the source at each place of the table
    rank_N: np.ndarray  # its places before
    places_S: np.ndarray  # of each source in the table
    before_S: np.ndarray  # rows of each source before this stage

    def counts(self, n_rows: int) -> np.ndarray:
        """int64 [S]: rows of each source among the first n_rows of this stage."""
        periods, rest = divmod(n_rows, PERIOD)
        return periods * self.places_S + np.bincount(self.source_N[:rest], minlength=len(self.places_S))


class Mixture:
    """names: of the sources. stages: (first row, {name: weight}), the first from row 0 on.

    Raises UserError: weights that don't fit the names, or are too small for the table.
    """

    def __init__(self, names: typing.Sequence[str], stages: list[tuple[int, dict[str, float]]], seed: int):
        self._names = tuple(names)
        check_weights(self._names, [weights for _, weights in stages])
        self._stages = []
        before_S = np.zeros(len(names), np.int64)
        for (first, weights), (end, _) in zip(stages, [*stages[1:], (None, None)]):
            stage = self._stage(first, weights, before_S, seed)
            self._stages.append(stage)
            if end is not None:
                before_S = before_S + stage.counts(end - first)

    def _stage(self, first: int, weights: dict[str, float], before_S: np.ndarray, seed: int) -> _Stage:
        """The table is made of the names in alphabetical order, so that the order in which they are given changes no row."""
        names = sorted(self._names)
        places_S = _places(np.array([weights[name] for name in names], np.float64))
        source_K = np.repeat(np.arange(len(places_S)), places_S)
        rank_K = np.arange(PERIOD) - np.repeat(np.cumsum(places_S) - places_S, places_S)
        jitter = [hash_of(hash_of_name(f"{seed} {first} {name}"), np.arange(n), 0) for name, n in zip(names, places_S)]
        order_K = np.argsort((rank_K + np.concatenate(jitter) / 2.0**64) / places_S[source_K], kind="stable")
        given_S = np.array([self._names.index(name) for name in names])
        return _Stage(first, given_S[source_K[order_K]], rank_K[order_K], places_S[np.argsort(given_S)], before_S)

    def locate(self, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 [stop - first] twice: the source of rows first to stop - 1, and which of its rows each is."""
        source_B, index_B = (np.empty(stop - first, np.int64) for _ in range(2))
        row_B = np.arange(first, stop, dtype=np.int64)
        firsts = [stage.first_row for stage in self._stages]
        stage_B = np.searchsorted(firsts, row_B, "right") - 1
        for i in np.unique(stage_B):
            stage, here = self._stages[i], stage_B == i
            period_B, place_B = np.divmod(row_B[here] - stage.first_row, PERIOD)
            source = stage.source_N[place_B]
            source_B[here] = source
            index_B[here] = stage.before_S[source] + period_B * stage.places_S[source] + stage.rank_N[place_B]
        return source_B, index_B

    def counts(self, n_rows: int) -> np.ndarray:
        """int64 [S]: rows of each source among the first n_rows of the run."""
        stage = [stage for stage in self._stages if stage.first_row <= n_rows][-1]
        return stage.before_S + stage.counts(n_rows - stage.first_row)


def _places(weight_S: np.ndarray) -> np.ndarray:
    """int64 [S], their sum PERIOD: the largest remainders get the places that rounding down leaves."""
    exact_S = weight_S / weight_S.sum() * PERIOD
    places_S = np.floor(exact_S).astype(np.int64)
    largest = np.argsort(places_S - exact_S, kind="stable")[: PERIOD - places_S.sum()]
    places_S[largest] += 1
    return places_S
