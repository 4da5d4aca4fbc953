"""Approach 2 of Hoffmann et al. 2022 (section 3.2): per budget a parabola of the loss in ln N, a power law through the vertices.

The parabola is biased where the window is wide or not centred: extrapolated from 1e21 to 1e24 FLOPs, D* of Hoffmann's law
comes out 0.3% low for a window of x/2..x2 around the optimum, 2.9% low for x/8..x8, and up to 7% high a factor of three off.
"""

import dataclasses

import numpy as np

from gptjax.study.fits.laws import BudgetLaws, PowerLaw, checked, saturating
from gptjax.study.points import Points

GAP = 1.15  # between neighbours in FLOPs: from here on they belong to two budgets
SPAN = 1.25  # of FLOPs within a budget: a loss at more compute is lower for that alone, and moves the vertex
EDGE = 0.05  # of the window's width in ln N
ENOUGH = 3  # vertices: two lie on a power law whatever they are


@dataclasses.dataclass(frozen=True)
class Vertex:
    """The bottom of one budget's parabola; `refused` says why it is not used, None where it is."""

    flops: float  # geometric mean of the budget's points
    params: float  # NaN without a minimum
    tokens: float
    loss: float
    curvature: float  # of the loss in ln N; positive: a minimum
    coefficients: tuple[float, float, float]  # loss = c0 + c1 x + c2 x^2 with x = ln N, to draw it
    window: tuple[float, float]  # smallest and largest N that were run
    n_points: int
    n_sizes: int  # distinct N
    refused: str | None


@dataclasses.dataclass(frozen=True)
class IsoflopFit(BudgetLaws):
    """N* = params_law(C), D* = tokens_law(C), L* = loss_E + loss_law(C)."""

    optima: list[Vertex]  # one per budget, refused ones too, by growing flops
    params_law: PowerLaw
    tokens_law: PowerLaw
    loss_law: PowerLaw
    loss_E: float  # 0 with fewer than four vertices: an offset takes three constants
    points_used: int  # of the budgets that are not refused
    refused: list[str]

    def spare(self, runs: int) -> float:
        """Share of the noise that is left after 3 constants, for the weights of a bootstrap."""
        return (max(runs - 3, 1) / runs) ** 2

    def runs(self, points: Points) -> tuple[str, ...]:
        return points.run

    def strata(self, points: Points) -> np.ndarray:
        """Int [P]: runs are weighed within their budget, so that none disappears; in one urn where runs span budgets."""
        budget = budgets(points)
        spans = {}
        for run, number in zip(points.run, budget):
            spans.setdefault(run, set()).add(int(number))
        return budget if all(len(numbers) == 1 for numbers in spans.values()) else np.zeros(len(points), int)

    def refits(self, points: Points, weight_RP: np.ndarray) -> list["IsoflopFit"]:
        """One fit per row of weights."""
        budget = budgets(points)
        return [_fit(points, budget, weight) for weight in weight_RP * points.weight]


def budgets(points: Points) -> np.ndarray:
    """Int [P]: which budget a point belongs to, 0 the smallest. Sorted by FLOPs, two neighbours GAP apart are split."""
    order = np.argsort(points.flops, kind="stable")
    steps = np.diff(np.log(points.flops[order])) >= np.log(GAP)
    number = np.empty(len(points), int)
    number[order] = np.concatenate([[0], np.cumsum(steps)]) if len(points) else []
    return number


def fit(points: Points) -> IsoflopFit:
    """Budgets as `budgets` finds them, whatever their size; each with its vertex or the reason why it has none."""
    checked(points)
    return _fit(points, budgets(points), points.weight)


def _fit(points: Points, budget: np.ndarray, weight: np.ndarray) -> IsoflopFit:
    optima = [
        _vertex(points.take((budget == k) & (weight > 0)), weight[(budget == k) & (weight > 0)])
        for k in np.unique(budget)
    ]
    optima = [vertex for vertex in optima if vertex is not None]
    good = [vertex for vertex in optima if vertex.refused is None]
    used = sum(vertex.n_points for vertex in good)
    refused = (
        [f"{len(good)} of {len(optima)} budgets have a usable vertex; a power law needs {ENOUGH}"]
        if len(good) < ENOUGH
        else []
    )
    if len(good) < 2:
        nothing = PowerLaw(np.nan, np.nan, np.nan)
        return IsoflopFit(optima, nothing, nothing, nothing, np.nan, used, refused)
    flops, params, tokens, loss = np.array([(v.flops, v.params, v.tokens, v.loss) for v in good]).T
    loss_E, loss_law = saturating(flops, loss) if len(good) > 3 else (0.0, PowerLaw.through(flops, loss))
    return IsoflopFit(
        optima, PowerLaw.through(flops, params), PowerLaw.through(flops, tokens), loss_law, loss_E, used, refused
    )


def _vertex(points: Points, weight: np.ndarray) -> Vertex | None:
    """None: no point of the budget has any weight."""
    if not len(points):
        return None
    log_n = np.log(points.params)
    sizes, cell = np.unique(log_n, return_inverse=True)
    flops = float(np.exp(np.average(np.log(points.flops), weights=weight)))
    known = {
        "flops": flops,
        "window": (float(np.exp(sizes[0])), float(np.exp(sizes[-1]))),
        "n_points": len(points),
        "n_sizes": len(sizes),
    }
    if len(sizes) < 3:
        return Vertex(
            params=np.nan,
            tokens=np.nan,
            loss=np.nan,
            curvature=np.nan,
            coefficients=(np.nan,) * 3,
            refused=_few(sizes),
            **known,
        )
    centre = float(np.average(log_n, weights=weight))
    square, slope, level = np.polyfit(log_n - centre, points.loss, 2, w=np.sqrt(weight))
    coefficients = (
        float(level - slope * centre + square * centre**2),
        float(slope - 2 * square * centre),
        float(square),
    )
    means = np.bincount(cell, weight * points.loss) / np.bincount(cell, weight)
    bottom = -slope / (2 * square) if square > 0 else np.nan
    refused = _reason(points, sizes, means, centre + bottom)
    params, tokens = np.exp(centre + bottom), _tokens(points, weight, log_n - centre, bottom)
    loss = float(level + slope * bottom + square * bottom**2)
    return Vertex(
        params=float(params),
        tokens=tokens,
        loss=loss,
        curvature=2 * float(square),
        coefficients=coefficients,
        refused=refused,
        **known,
    )


def _tokens(points: Points, weight: np.ndarray, x: np.ndarray, bottom: float) -> float:
    """D at the vertex, along the budget: ln D is all but linear in ln N however FLOPs are counted."""
    return float(np.exp(np.polyval(np.polyfit(x, np.log(points.tokens), 2, w=np.sqrt(weight)), bottom)))


def _few(sizes) -> str:
    return f"{len(sizes)} sizes; a parabola with something left over needs 4"


def _reason(points: Points, sizes: np.ndarray, means: np.ndarray, bottom: float) -> str | None:
    """Why the vertex is no optimum that was measured. `sizes` and `bottom` in ln N."""
    span = float(points.flops.max() / points.flops.min())
    if len(sizes) < 4:
        return _few(sizes)
    if span > SPAN:
        return f"no single budget: FLOPs from {points.flops.min():.4g} to {points.flops.max():.4g}"
    if not np.isfinite(bottom):
        return "the parabola is concave: its vertex is a maximum"
    if not sizes[0] <= bottom <= sizes[-1]:
        return f"the vertex, N = {np.exp(bottom):.4g}, lies outside the sizes that were run"
    side = "smallest" if 2 * bottom < sizes[0] + sizes[-1] else "largest"
    if min(bottom - sizes[0], sizes[-1] - bottom) < EDGE * (sizes[-1] - sizes[0]):
        return f"the vertex, N = {np.exp(bottom):.4g}, lies at the edge of the sizes that were run: run some beyond the {side}"
    if np.argmin(means) in (0, len(means) - 1):
        end = "smallest" if np.argmin(means) == 0 else "largest"
        return f"the lowest loss is that of the {end} size: run some beyond it"
    return None
