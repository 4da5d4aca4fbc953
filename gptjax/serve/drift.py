"""How far a histogram has moved from another: the population stability index.

    PSI = sum over bins of (p - q) log(p / q)

It is Jeffreys' symmetric divergence of 1946 (Kullback and Leibler 1951, section 2), called PSI in credit scoring, where
0.1 is a change to look into and 0.25 one to act on (Siddiqi, Credit Risk Scorecards, 2006, chapter 8). Such a threshold alone
cries wolf where answers are few: of n and m from one distribution, PSI n m / (n + m) is about chi-square with one degree of
freedom less than there are bins (Yurdakul, Statistical Properties of Population Stability Index, 2018). A drift is
reported where it is above both.
"""

import typing

import numpy as np

NOTABLE = 0.1
LEVEL = 0.999  # quantile of what chance gives
FEWEST = 30  # answers on either side: below that nothing is said
PRIOR = 0.5  # added to each bin, so that an empty one has a logarithm: Krichevsky and Trofimov 1981


class Drift(typing.NamedTuple):
    """psi: how far; chance: what it is below in LEVEL of all cases where nothing has changed."""

    psi: float
    chance: float

    @property
    def is_notable(self) -> bool:
        return self.psi > max(NOTABLE, self.chance)


def of(counts, reference) -> Drift | None:
    """How far one histogram is from another in the same bins. None: one of them has too few answers."""
    from scipy import special

    count_B, reference_B = np.asarray(counts, float), np.asarray(reference, float)
    n, m = count_B.sum(), reference_B.sum()
    if min(n, m) < FEWEST:
        return None
    used_B = (count_B + reference_B) > 0  # bins that nothing fell into say nothing
    p_B, q_B = ((side_B[used_B] + PRIOR) / (side_B[used_B] + PRIOR).sum() for side_B in (count_B, reference_B))
    degrees = max(1, int(used_B.sum()) - 1)
    psi = float(((p_B - q_B) * np.log(p_B / q_B)).sum())
    return Drift(psi, float(special.chdtri(degrees, 1 - LEVEL)) * (1 / n + 1 / m))


def of_all(bins: dict, reference: dict) -> dict[str, Drift]:
    """measure -> Drift, of those that have enough."""
    found = {name: of(counts, reference[name]) for name, counts in bins.items()}
    return {name: each for name, each in found.items() if each is not None}
