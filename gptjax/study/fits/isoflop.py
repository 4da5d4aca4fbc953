"""Approach 2 of Hoffmann et al. 2022 (section 3.2): per budget a parabola of the loss in ln N, a power law through the vertices.

A parabola is biased where its window is wide or not centred, so window.py chooses which points it goes through. Through
all points of x/8..x8 around the optimum, extrapolated from 1e21 to 1e24 FLOPs, D* of Hoffmann's law comes out 2.9% low, and
up to 7% high where the sizes that were run lie a factor of three off; docs/studies_fits.md has both beside the windows'.
"""

import dataclasses

import numpy as np

from gptjax.study.fits import window as windows
from gptjax.study.fits.fit import BudgetLaws
from gptjax.study.fits.laws import PowerLaw, checked, saturating
from gptjax.study.fits.points import Points

GAP = 1.15  # between neighbours in FLOPs: from here on they belong to two budgets
SPAN = 1.25  # of FLOPs within a budget: a loss at more compute is lower for that alone, and moves the vertex
EDGE = 0.05  # of the window's width in ln N
ROUNDING = 1e-9  # relative, of a size through a logarithm and back
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
    window: tuple[float, float]  # smallest and largest N that the parabola goes through
    sizes: tuple[float, float]  # smallest and largest N that were run
    n_points: int  # that the parabola goes through
    n_sizes: int  # distinct N of those
    n_outside: int  # points of the budget outside the window
    widened: bool  # whether the window was widened to have windows.LEAST sizes in it
    residual: float  # standard deviation, nats, of what the parabola leaves; NaN where nothing can be left
    refused: str | None


@dataclasses.dataclass(frozen=True)
class IsoflopFit(BudgetLaws):
    """N* = params_law(C), D* = tokens_law(C), L* = loss_E + loss_law(C)."""

    optima: list[Vertex]  # one per budget, refused ones too, by growing flops
    params_law: PowerLaw
    tokens_law: PowerLaw
    loss_law: PowerLaw
    loss_E: float  # 0 with fewer than four vertices: an offset takes three constants
    window: float  # ratio to the optimum, on either side, that points of a parabola have at most; inf: all points
    window_fits: bool  # False: the narrowest was taken, and fits no better than wider ones
    residual: float  # relative, pooled over the parabolas that are not refused; NaN where nothing can be left
    points_used: int  # within the windows of the budgets that are not refused
    refused: list[str]
    share: float = 1.0  # points_used of all points of those budgets
    asked: float | None = None  # the window that was asked for; None: chosen by the points

    num_constants = 3  # of a parabola

    def spare(self, runs: int) -> float:
        """Of the runs within a window, squared (bootstrap.py)."""
        inside = max(runs * self.share, 1.0)
        return super().spare(inside) ** 2

    def strata(self, points: Points) -> np.ndarray:
        """Int [P]: runs are weighed within their budget, so that none disappears; in one urn where runs span budgets."""
        budget = budgets(points)
        spans = {}
        for run, number in zip(points.run, budget):
            spans.setdefault(run, set()).add(int(number))
        return budget if all(len(numbers) == 1 for numbers in spans.values()) else np.zeros(len(points), int)

    def refits(self, points: Points, weight_RP: np.ndarray) -> list["IsoflopFit"]:
        """One fit per row of weights, each with a window of its own: what choosing it adds to the noise is in the intervals."""
        return _fits(points, weight_RP * points.weight, self.asked)


def budgets(points: Points) -> np.ndarray:
    """Int [P]: which budget a point belongs to, 0 the smallest. Sorted by FLOPs, two neighbours GAP apart are split."""
    order = np.argsort(points.flops, kind="stable")
    steps = np.diff(np.log(points.flops[order])) >= np.log(GAP)
    number = np.empty(len(points), int)
    number[order] = np.concatenate([[0], np.cumsum(steps)]) if len(points) else []
    return number


def fit(points: Points, *, window: float | None = None) -> IsoflopFit:
    """Budgets as `budgets` finds them, whatever their size; each with its vertex or the reason why it has none.

    window: the ratio to the optimum within which points are fitted, inf for all of them; None: as window.py chooses.
    """
    checked(points)
    return _fits(points, points.weight[None], window)[0]


def between(params: np.ndarray, low: float, high: float) -> np.ndarray:
    """Mask of the sizes in a window, ends included."""
    return (params >= low * (1 - ROUNDING)) & (params <= high * (1 + ROUNDING))


def is_inside(vertex: Vertex, params: np.ndarray) -> np.ndarray:
    """Mask of the sizes its parabola goes through."""
    return between(params, *vertex.window)


@dataclasses.dataclass(frozen=True)
class _Budget:
    """Points of one budget with a parabola for each of R weighings in each of the windows that were tried."""

    points: Points
    weight_RP: np.ndarray  # of mean 1
    unfit: str | None  # why it can have no vertex, whatever the losses
    nested: list[windows.Parabolas]  # empty: too few sizes for a parabola

    @property
    def flops(self) -> float:
        return float(np.exp(np.mean(np.log(self.points.flops))))


def _fits(points: Points, weight_RP: np.ndarray, asked: float | None) -> list[IsoflopFit]:
    """One fit per row of weights; a point that none of them weighs is not there."""
    held = weight_RP.any(0)
    points, weight_RP = points.take(held), weight_RP[:, held]
    ratios = windows.RATIOS if asked is None else (*(ratio for ratio in windows.RATIOS if ratio > asked), asked)
    number = budgets(points)
    found = [_budget(points.take(number == k), weight_RP[:, number == k], ratios) for k in np.unique(number)]
    if asked is None:
        index_R, fits_R = windows.widest([budget.nested for budget in found if not budget.unfit])
    else:
        index_R, fits_R = np.array([len(ratios) - 1]), np.array([True])
    index_R, fits_R = (np.broadcast_to(values_R, len(weight_RP)) for values_R in (index_R, fits_R))
    vertices = [_vertices(budget, index_R, ratios) for budget in found]
    return [
        dataclasses.replace(_through([of_budget[r] for of_budget in vertices], ratios[i], bool(fits)), asked=asked)
        for r, (i, fits) in enumerate(zip(index_R, fits_R))
    ]


def _budget(points: Points, weight_RP: np.ndarray, ratios: tuple[float, ...]) -> _Budget:
    weight_RP = weight_RP * len(points) / weight_RP.sum(1, keepdims=True)
    sizes, span = len(np.unique(points.params)), float(points.flops.max() / points.flops.min())
    unfit = None
    if sizes < 4:
        unfit = f"{sizes} sizes; a parabola that can be checked needs 4"
    elif span > SPAN:
        unfit = f"no single budget: FLOPs from {points.flops.min():.4g} to {points.flops.max():.4g}"
    ratios = ratios[:1] if unfit else ratios
    nested = windows.nested(np.log(points.params), points.loss, weight_RP, ratios) if sizes > 2 else []
    return _Budget(points, weight_RP, unfit, nested)


def _through(optima: list[Vertex], ratio: float, fits: bool) -> IsoflopFit:
    """The laws through the vertices that are not refused."""
    good = [vertex for vertex in optima if vertex.refused is None]
    used, outside = sum(vertex.n_points for vertex in good), sum(vertex.n_outside for vertex in good)
    facts = {"window": ratio, "window_fits": fits, "residual": _pooled(good), "points_used": used, "refused": []}
    facts["share"] = used / (used + outside) if used else 1.0
    if len(good) < ENOUGH:
        facts["refused"] = [f"{len(good)} of {len(optima)} budgets have a usable vertex; a power law needs {ENOUGH}"]
    if len(good) < 2:
        nothing = PowerLaw(np.nan, np.nan, np.nan)
        return IsoflopFit(optima, nothing, nothing, nothing, np.nan, **facts)
    flops, params, tokens, loss = np.array([(v.flops, v.params, v.tokens, v.loss) for v in good]).T
    loss_E, loss_law = saturating(flops, loss) if len(good) > 3 else (0.0, PowerLaw.through(flops, loss))
    return IsoflopFit(
        optima, PowerLaw.through(flops, params), PowerLaw.through(flops, tokens), loss_law, loss_E, **facts
    )


def _pooled(good: list[Vertex]) -> float:
    """Of the loss, what the parabolas leave."""
    left = [((v.residual / v.loss) ** 2, v.n_points - 3) for v in good if v.n_points > 3]
    free = sum(degrees for _, degrees in left)
    return float(np.sqrt(sum(square * degrees for square, degrees in left) / free)) if free else np.nan


def _vertices(budget: _Budget, index_R: np.ndarray, ratios: tuple[float, ...]) -> list[Vertex]:
    """Of a budget under each weighing, in the window that was chosen there."""
    points, rows = budget.points, len(index_R)
    sizes = float(points.params.min()), float(points.params.max())
    if not budget.nested:
        nothing = dict(params=np.nan, tokens=np.nan, loss=np.nan, curvature=np.nan, coefficients=(np.nan,) * 3)
        count = dict(n_points=len(points), n_sizes=len(np.unique(points.params)), n_outside=0)
        facts = dict(flops=budget.flops, window=sizes, sizes=sizes, widened=False, residual=np.nan)
        return [Vertex(**nothing, **count, **facts, refused=budget.unfit)] * rows
    index_R = np.minimum(index_R, len(budget.nested) - 1)
    tokens_R = _tokens(budget, index_R)
    return [_vertex(budget, budget.nested[i], r, float(tokens_R[r]), ratios[i]) for r, i in enumerate(index_R)]


def _vertex(budget: _Budget, parabolas: windows.Parabolas, r: int, tokens: float, ratio: float) -> Vertex:
    points, inside_P = budget.points, parabolas.inside_RP[r]
    log_N_P = np.log(points.params)
    used_P, bottom = log_N_P[inside_P], float(parabolas.vertex_R()[r])
    coefficients = parabolas.coefficients(r)
    free = int(parabolas.free_R[r])
    sizes = np.unique(used_P)
    return Vertex(
        flops=budget.flops,
        params=_exp(bottom),
        tokens=tokens,
        loss=float(np.polynomial.polynomial.polyval((bottom - parabolas.centre) / parabolas.scale,
                                                    parabolas.coefficient_RK[r])),
        curvature=2 * coefficients[2],
        coefficients=coefficients,
        window=(float(np.exp(sizes[0])), float(np.exp(sizes[-1]))),
        sizes=(float(points.params.min()), float(points.params.max())),
        n_points=len(used_P),
        n_sizes=len(sizes),
        n_outside=len(points) - len(used_P),
        widened=bool(np.max(np.abs(sizes - bottom)) > np.log(ratio) * (1 + 1e-6)) if np.isfinite(bottom) else False,
        residual=float(np.sqrt(parabolas.squares_R[r] / free)) if free > 0 else np.nan,
        refused=budget.unfit or _reason(budget, budget.weight_RP[r], sizes, bottom),
    )  # fmt: skip


def _exp(x: float) -> float:
    """inf beyond float64."""
    with np.errstate(over="ignore"):
        return float(np.exp(x))


def _tokens(budget: _Budget, index_R: np.ndarray) -> np.ndarray:
    """D [R] at the vertex, along the budget: ln D is all but linear in ln N however FLOPs are counted."""
    tokens_R = np.full(len(index_R), np.nan)
    log_N_P, log_D_P = np.log(budget.points.params), np.log(budget.points.tokens)
    for i in np.unique(index_R):
        parabolas, rows = budget.nested[i], index_R == i
        weight_RP = (budget.weight_RP * parabolas.inside_RP)[rows]
        u_P = (log_N_P - parabolas.centre) / parabolas.scale
        coefficient_RK, _ = windows.polynomial(u_P, log_D_P, weight_RP, 2)
        u_R = (parabolas.vertex_R()[rows] - parabolas.centre) / parabolas.scale
        with np.errstate(over="ignore"):  # of a parabola that is all but a line the vertex is nowhere; it is refused
            tokens_R[rows] = np.exp(np.sum(coefficient_RK * u_R[:, None] ** np.arange(3), 1))
    return tokens_R


def _reason(budget: _Budget, weight_P, sizes: np.ndarray, bottom: float) -> str | None:
    """Why the vertex is no optimum that was measured. `sizes` of the window and `bottom` in ln N."""
    run, size_P = np.unique(np.log(budget.points.params), return_inverse=True)
    if not np.isfinite(bottom):
        return "the parabola is concave: its vertex is a maximum"
    if not run[0] <= bottom <= run[-1]:
        return f"the vertex, N = {_exp(bottom):.4g}, lies outside the sizes that were run"
    if not sizes[0] <= bottom <= sizes[-1]:
        return f"the vertex, N = {_exp(bottom):.4g}, lies outside the sizes of its window"
    side = "smallest" if 2 * bottom < run[0] + run[-1] else "largest"
    if min(bottom - run[0], run[-1] - bottom) < EDGE * (run[-1] - run[0]):
        return f"the vertex, N = {_exp(bottom):.4g}, lies at the edge of the sizes that were run: add runs beyond the {side}"
    means = np.bincount(size_P, weight_P * budget.points.loss) / np.bincount(size_P, weight_P)
    if np.argmin(means) in (0, len(means) - 1):
        end = "smallest" if np.argmin(means) == 0 else "largest"
        return f"the {end} size has the lowest loss: add runs beyond it"
    return None
