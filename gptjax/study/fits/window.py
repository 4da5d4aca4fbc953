"""Which points of a budget its parabola goes through: those in the widest window about the optimum in which a parabola fits.

The loss is no parabola in ln N: it bends more on the side of the small models or of the large ones, and points far away pull
the vertex there. A narrow window has less of that bias and more noise, so the points decide. The windows are
x/2..x2 about the optimum, x/2.8..x2.8, and so on to all points; one width serves all budgets, since then what bias is left
is the same factor at each of them and leaves the exponent alone. The widest is taken in which, over all budgets together,

- cubic and quartic terms in ln N add nothing to the parabolas: the F-test of nested models (Draper and Smith, Applied
  Regression Analysis, 1998, chapter 6) at LEVEL; the cubic term is what moves a vertex; and
- the points beyond the narrowest window lie no further off than those within: Chow's predictive test (1960, Econometrica
  28:591), which sees what no polynomial follows, such as runs of another kind.

Where none passes, the narrowest is taken and said to fit no better. Arrays end in their axes: R weighings of the points
(one for a fit, many for its bootstrap), P points of a budget, K coefficients.
"""

import dataclasses

import numpy as np

RATIOS = (np.inf, 16.0, 11.3, 8.0, 5.7, 4.0, 2.8, 2.0)  # to the optimum on either side, a factor of sqrt(2) apart
LEAST = 5  # sizes in a window, if so many were run: a parabola through four has one number left to show that it does not fit
LEVEL = 0.05  # of both tests
JUMP = np.log(2)  # in ln N: a narrower window's vertex that is further from the wider one's has lost the optimum
EXACT = 1e-9  # of the loss: residuals below this are rounding, not noise


@dataclasses.dataclass(frozen=True)
class Parabolas:
    """Of one budget in one window, one for each of R weighings: loss = c0 + c1 u + c2 u^2, u = (ln N - centre) / scale."""

    inside_RP: np.ndarray
    centre: float
    scale: float
    coefficient_RK: np.ndarray
    squares_R: np.ndarray  # weighted, of what is left of the loss
    free_R: np.ndarray  # points less constants
    squares4_R: np.ndarray  # with a cubic and, where there are sizes for it, a quartic term
    free4_R: np.ndarray
    rounding: float  # variance of the loss that is none of noise

    def vertex_R(self) -> np.ndarray:
        """ln N at the minimum; NaN where the parabola has none."""
        _, slope_R, square_R = self.coefficient_RK.T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(square_R > 0, self.centre - self.scale * slope_R / (2 * square_R), np.nan)

    def coefficients(self, r: int) -> tuple[float, float, float]:
        """Of the parabola of weighing r in ln N itself."""
        level, slope, square = self.coefficient_RK[r] / self.scale ** np.arange(3)
        x = self.centre
        return float(level - slope * x + square * x**2), float(slope - 2 * square * x), float(square)


def nested(log_N_P: np.ndarray, loss_P: np.ndarray, weight_RP: np.ndarray, ratios=RATIOS) -> list[Parabolas]:
    """A budget in windows of these ratios, each about the vertex that the wider one before has. Weights have mean 1."""
    found, vertex_R = [], _start(log_N_P, loss_P, weight_RP)
    for ratio in ratios:
        for _ in range(1 if np.isinf(ratio) else 2):  # the second time about the vertex the first one found
            inside_RP = _inside(log_N_P, vertex_R, ratio)
            fitted = _fit(log_N_P, loss_P, weight_RP, inside_RP)
            there_R = fitted.vertex_R()
            with np.errstate(invalid="ignore"):
                near_R = (np.abs(there_R - vertex_R) < JUMP) | np.isinf(ratio)
            within_R = (there_R > log_N_P.min()) & (there_R < log_N_P.max())
            vertex_R = np.where(near_R & within_R, there_R, vertex_R)
        found.append(fitted)
    return found


def widest(budgets: list[list[Parabolas]]) -> tuple[np.ndarray, np.ndarray]:
    """(index [R] into RATIOS of the widest window that fits, whether one does [R]); all points where there is no budget."""
    if not budgets:
        return np.zeros(1, int), np.ones(1, bool)
    names = ("squares_R", "free_R", "squares4_R", "free4_R")
    of_window = [[sum(getattr(budget[i], name) for budget in budgets) for name in names] for i in range(len(RATIOS))]
    rounding, narrowest = max(budget[0].rounding for budget in budgets), of_window[-1]
    passes_WR = np.array(
        [_is_parabola(*one, rounding) & _is_of_a_kind(*one[:2], *narrowest[:2], rounding) for one in of_window]
    )
    fits_R = passes_WR.any(0)
    return np.where(fits_R, passes_WR.argmax(0), len(RATIOS) - 1), fits_R


def _is_parabola(squares_R, free_R, squares4_R, free4_R, rounding) -> np.ndarray:
    """Whether cubic and quartic terms leave as much as noise would."""
    return ~_exceeds(squares_R - squares4_R, free_R - free4_R, squares4_R, free4_R, rounding)


def _is_of_a_kind(squares_R, free_R, narrow_squares_R, narrow_free_R, rounding) -> np.ndarray:
    """Whether the points outside the narrowest window add as much as noise would."""
    return ~_exceeds(squares_R - narrow_squares_R, free_R - narrow_free_R, narrow_squares_R, narrow_free_R, rounding)


def _exceeds(extra_R, degrees_R, noise_R, free_R, rounding) -> np.ndarray:
    """The F-test: whether `extra_R` on so many degrees is more than noise."""
    from scipy.special import fdtri

    degrees_R, free_R = np.broadcast_arrays(degrees_R, free_R)
    askable_R = (degrees_R > 0) & (free_R > 0)
    limit_R = fdtri(np.maximum(degrees_R, 1), np.maximum(free_R, 1), 1 - LEVEL)
    return askable_R & (extra_R / np.maximum(degrees_R, 1) > limit_R * (noise_R / np.maximum(free_R, 1) + rounding))


def _start(log_N_P, loss_P, weight_RP) -> np.ndarray:
    """ln N [R] of the size with the lowest mean loss."""
    sizes_S, size_P = np.unique(log_N_P, return_inverse=True)
    belongs_PS = (size_P[:, None] == np.arange(len(sizes_S))).astype(float)
    return sizes_S[np.argmin((weight_RP * loss_P) @ belongs_PS / (weight_RP @ belongs_PS), axis=1)]


def _inside(log_N_P, vertex_R, ratio: float) -> np.ndarray:
    """Bool [R, P]: the points within the ratio, and those of the LEAST sizes that are nearest."""
    sizes_S, size_P = np.unique(log_N_P, return_inverse=True)
    away_RS = np.abs(sizes_S - vertex_R[:, None])
    nearest_RS = np.argsort(np.argsort(away_RS, axis=1, kind="stable"), axis=1) < LEAST
    return ((away_RS <= np.log(ratio) * (1 + 1e-9)) | nearest_RS)[:, size_P]


def _fit(log_N_P, loss_P, weight_RP, inside_RP) -> Parabolas:
    used_P = inside_RP.any(0)
    centre = float(np.mean(log_N_P[used_P]))
    scale = float(np.max(np.abs(log_N_P[used_P] - centre))) or 1.0
    u_P, weight_RP = (log_N_P - centre) / scale, weight_RP * inside_RP
    points_R, sizes_R = inside_RP.sum(1), _distinct(log_N_P, inside_RP)
    coefficient_RK, squares_R = polynomial(u_P, loss_P, weight_RP, 2)
    squares4_R, free4_R = squares_R, points_R - 3
    for degree in (3, 4):  # as far as something is left over
        can_R = (sizes_R > degree + 1) & (points_R > degree + 1)
        if can_R.any():
            squares4_R = np.where(can_R, polynomial(u_P, loss_P, weight_RP, degree)[1], squares4_R)
            free4_R = np.where(can_R, points_R - degree - 1, free4_R)
    rounding = float(EXACT * loss_P.min()) ** 2
    free_R = points_R - 3
    return Parabolas(inside_RP, centre, scale, coefficient_RK, squares_R, free_R, squares4_R, free4_R, rounding)


def _distinct(log_N_P, inside_RP) -> np.ndarray:
    """How many sizes [R] the points of each row have."""
    sizes_S, size_P = np.unique(log_N_P, return_inverse=True)
    return (inside_RP.astype(float) @ (size_P[:, None] == np.arange(len(sizes_S))) > 0).sum(1)


def polynomial(u_P, loss_P, weight_RP, degree: int) -> tuple[np.ndarray, np.ndarray]:
    """(coefficients [R, K], weighted squares [R] of what they leave): least squares, all rows at once by their moments."""
    power_PK = u_P[:, None] ** np.arange(2 * degree + 1)
    moment_RK = weight_RP @ power_PK
    which = np.add.outer(np.arange(degree + 1), np.arange(degree + 1))
    right_RK = (weight_RP * loss_P) @ power_PK[:, : degree + 1]
    scale_R = moment_RK[:, 0]
    matrix_RKK = moment_RK[:, which] / scale_R[:, None, None] + 1e-14 * np.eye(degree + 1)
    coefficient_RK = np.linalg.solve(matrix_RKK, (right_RK / scale_R[:, None])[..., None])[..., 0]
    left_RP = loss_P - coefficient_RK @ power_PK[:, : degree + 1].T
    return coefficient_RK, (weight_RP * left_RP**2).sum(1)
