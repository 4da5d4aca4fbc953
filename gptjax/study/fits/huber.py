"""Sums of Huber's loss of ln L and their exact derivatives, for R weightings of the same P points at once, and their minima.

Axes: R fits that run side by side, K constants, P points.
"""

import dataclasses

import numpy as np

LBFGS = {"maxiter": 5000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 20}
STEPS = 200
TIGHT = 1e-11  # of the scaled gradient, in units of residual x sqrt(points); rounding leaves 1e-15
ROUNDING = 1e-13  # of the value: a step that promises less is not seen in a sum of float64
SAME = 1e-6  # of the value: two starts that ended this near are at one optimum


@dataclasses.dataclass(frozen=True)
class Objective:
    """sum_i w_i Huber_delta(ln law(x) - ln L_i). A law is a subclass with log_law, jacobian and bend.

    n and d are the logarithms of N and D less their means: a term's size at the middle of the points and its exponent then
    hardly move together, and an optimizer needs tens of steps where it needed thousands.
    """

    n: np.ndarray
    d: np.ndarray
    log_loss: np.ndarray
    n_centre: float
    d_centre: float
    delta: float

    @classmethod
    def of(cls, points, delta: float):
        log_n, log_d = np.log(points.params), np.log(points.tokens)
        n_centre, d_centre = float(log_n.mean()), float(log_d.mean())
        return cls(log_n - n_centre, log_d - d_centre, np.log(points.loss), n_centre, d_centre, delta)

    def log_law(self, x_RK):
        """[R, P]: ln of the law at each point."""
        raise NotImplementedError

    def jacobian(self, x_RK):
        """[R, K, P] of log_law."""
        raise NotImplementedError

    def bend(self, x_RK, pull_RP):
        """[R, K, K]: sum over points of pull times the second derivatives of log_law."""
        raise NotImplementedError

    def huber(self, residual):
        """r^2/2 up to delta, then delta (|r| - delta/2) (Huber 1964)."""
        clipped = np.minimum(np.abs(residual), self.delta)
        return clipped * (np.abs(residual) - clipped / 2)

    def value(self, x_RK, weight_RP):
        """[R]: the weighted sum over points."""
        return np.sum(weight_RP * self.huber(self.log_law(x_RK) - self.log_loss), -1)

    def value_and_gradient(self, x_RK, weight_RP):
        """([R], [R, K])."""
        residual = self.log_law(x_RK) - self.log_loss
        pull = weight_RP * np.clip(residual, -self.delta, self.delta)
        return np.sum(weight_RP * self.huber(residual), -1), (self.jacobian(x_RK) @ pull[..., None])[..., 0]

    def derivatives(self, x_RK, weight_RP):
        """(value [R], gradient [R, K], Hessian [R, K, K], scales [R, K]: how steep a constant's own direction is)."""
        residual, jacobian = self.log_law(x_RK) - self.log_loss, self.jacobian(x_RK)
        pull = weight_RP * np.clip(residual, -self.delta, self.delta)
        inside = weight_RP * (np.abs(residual) <= self.delta)
        hessian = (jacobian * inside[:, None]) @ jacobian.swapaxes(1, 2) + self.bend(x_RK, pull)
        metric = self.metric(residual, jacobian, weight_RP)
        value = np.sum(weight_RP * self.huber(residual), -1)
        return value, (jacobian @ pull[..., None])[..., 0], hessian, scales(metric)

    def metric(self, residual, jacobian, weight_RP):
        """[R, K, K]: Gauss-Newton's matrix with each point weighed by min(1, delta/|r|); never indefinite."""
        softened = weight_RP * np.minimum(1.0, self.delta / np.maximum(np.abs(residual), 1e-300))
        return (jacobian * softened[:, None]) @ jacobian.swapaxes(1, 2)

    def flat_direction(self, x, weight, limit: float) -> np.ndarray | None:
        """[K], a direction of unit length in scaled constants with curvature under `limit` of the largest; None: there is none."""
        x = np.asarray(x)[None]
        metric = self.metric(self.log_law(x) - self.log_loss, self.jacobian(x), weight[None])
        size = scales(metric)[0]
        curvature, axes = np.linalg.eigh(metric[0] / np.outer(size, size))
        return axes[:, 0] if curvature[0] <= limit * curvature[-1] else None


def scales(metric):
    """[R, K]: roots of the metric's diagonal; a constant without any hold gets a small one instead of none."""
    size = np.sqrt(np.maximum(np.diagonal(metric, axis1=-2, axis2=-1), 0.0))
    return np.maximum(size, 1e-12 * size.max(-1, keepdims=True) + 1e-300)


def minimise(objective: Objective, starts_SK, weight):
    """(x [K], value, tight: gradient 0 to rounding, how many starts ended there): L-BFGS from each start, then `descend`."""
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    def at(x):
        value, gradient = objective.value_and_gradient(x[None], weight[None])
        return value[0], gradient[0]

    with threadpool_limits(1):  # SciPy's BLAS wakes all cores for matrices of 5 x 5: 20 times the CPU time
        ends = np.stack([minimize(at, start, jac=True, method="L-BFGS-B", options=LBFGS).x for start in starts_SK])
    ends, values, tight = descend(objective, ends, weight[None])
    best = int(np.argmin(np.where(tight, values, np.inf) if tight.any() else values))
    rounding = np.sum(weight) * 1e-20  # the value of a law that is met exactly is 0 but for it
    return (
        ends[best],
        float(values[best]),
        bool(tight[best]),
        int(np.sum(values <= values[best] * (1 + SAME) + rounding)),
    )


def descend(objective: Objective, x_RK, weight_RP, steps: int = STEPS):
    """(x [R, K], value [R], tight [R]): damped Newton steps on the exact Hessian until the scaled gradient is TIGHT.

    Negative curvature is turned round and a step is taken only where it lowers the value, so that a saddle holds nobody.
    SciPy has no optimizer for many problems at once; one after the other a bootstrap takes minutes.
    """
    x, weight = np.array(x_RK, float), np.broadcast_to(weight_RP, (len(x_RK), len(objective.n)))
    going, damping, tight = np.arange(len(x)), np.full(len(x), 1e-3), np.zeros(len(x), bool)
    for _ in range(steps):
        value, gradient, hessian, size = objective.derivatives(x[going], weight[going])
        curvature, axes = np.linalg.eigh(hessian / (size[:, :, None] * size[:, None, :]))
        along = (axes.swapaxes(1, 2) @ (gradient / size)[..., None])[..., 0]
        promise = np.sum(along**2 / np.maximum(np.abs(curvature), 1e-12), -1)
        small = np.max(np.abs(gradient / size), -1) <= TIGHT * np.sqrt(weight[going].sum(-1))
        tight[going] = (small | (promise <= ROUNDING * value)) & (curvature[:, 0] > -1e-6)
        left = np.flatnonzero(~tight[going])
        state = (value, along, curvature, axes, size)
        going = going[left][_step(objective, x, weight, damping, going[left], *(array[left] for array in state))]
        if not len(going):
            break
    return x, objective.value(x, weight), tight


def _step(objective, x, weight, damping, going, value, along, curvature, axes, size):
    """Moves x[going] in place, raising the damping until each has a lower value; bool: who found one."""
    moved = np.zeros(len(going), bool)
    for _ in range(40):
        left = np.flatnonzero(~moved & (damping[going] < 1e12))
        if not len(left):
            break
        rows = going[left]
        move = along[left] / (np.maximum(np.abs(curvature[left]), 1e-12) + damping[rows, None])
        trial = x[rows] - (axes[left] @ move[..., None])[..., 0] / size[left]
        better = objective.value(trial, weight[rows]) < value[left]
        x[rows[better]], moved[left[better]] = trial[better], True
        damping[rows] = np.where(better, np.maximum(damping[rows] / 10, 1e-14), damping[rows] * 10)
    return moved
