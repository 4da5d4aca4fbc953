"""The objective of approach 3 and its exact derivatives, for R weightings of the same P points at once.

Constants are x = (a, b, e, alpha, beta) of LSE(a - alpha n, b - beta d, e), with n and d the logarithms of N and D less
their means: a and alpha then hardly move together, and an optimizer needs tens of steps where it needed thousands.
"""

import dataclasses

import numpy as np

STEPS = 200
TIGHT = 1e-11  # of the scaled gradient, in units of residual x sqrt(points); rounding leaves 1e-15


@dataclasses.dataclass(frozen=True)
class Cloud:
    """P points in logarithms. Arrays [P]."""

    n: np.ndarray
    d: np.ndarray
    log_loss: np.ndarray
    n_centre: float
    d_centre: float
    delta: float

    @classmethod
    def of(cls, points, delta: float) -> "Cloud":
        log_n, log_d = np.log(points.params), np.log(points.tokens)
        n_centre, d_centre = float(log_n.mean()), float(log_d.mean())
        return cls(log_n - n_centre, log_d - d_centre, np.log(points.loss), n_centre, d_centre, delta)

    def centred(self, x):
        """(a, b, e, alpha, beta) as published -> the same law in centred logarithms. Last axis 5."""
        a, b, e, alpha, beta = np.moveaxis(np.asarray(x, float), -1, 0)
        return np.stack([a - alpha * self.n_centre, b - beta * self.d_centre, e, alpha, beta], -1)

    def published(self, x):
        """The way back."""
        a, b, e, alpha, beta = np.moveaxis(np.asarray(x, float), -1, 0)
        return np.stack([a + alpha * self.n_centre, b + beta * self.d_centre, e, alpha, beta], -1)

    def shares(self, x_R5):
        """(residual of ln L, shares of the three terms in L), each [R, P]."""
        a, b, e, alpha, beta = x_R5.T[:, :, None]
        size, data = a - alpha * self.n, b - beta * self.d
        top = np.maximum(np.maximum(size, data), e)
        size, data, rest = np.exp(size - top), np.exp(data - top), np.exp(e - top)
        total = size + data + rest
        return top + np.log(total) - self.log_loss, (size / total, data / total, rest / total)

    def huber(self, residual):
        """r^2/2 up to delta, then delta (|r| - delta/2) (Huber 1964)."""
        clipped = np.minimum(np.abs(residual), self.delta)
        return clipped * (np.abs(residual) - clipped / 2)

    def value(self, x_R5, weight_RP):
        """[R]: the weighted sum over points."""
        return np.sum(weight_RP * self.huber(self.shares(x_R5)[0]), -1)

    def slope(self, pull_RP, shares):
        """[R, 5]: sum over points of pull times the gradient of the log of the law."""
        size, data, rest = (pull_RP * share for share in shares)
        return np.stack([size.sum(-1), data.sum(-1), rest.sum(-1), -(size @ self.n), -(data @ self.d)], -1)

    def value_and_gradient(self, x_R5, weight_RP):
        residual, shares = self.shares(x_R5)
        pull = weight_RP * np.clip(residual, -self.delta, self.delta)
        return np.sum(weight_RP * self.huber(residual), -1), self.slope(pull, shares)

    def derivatives(self, x_R5, weight_RP):
        """(value [R], gradient [R, 5], Hessian [R, 5, 5], metric [R, 5, 5]).

        The metric is the Gauss-Newton matrix with each point weighed by min(1, delta/|r|): never indefinite, and an upper
        bound of the objective's curvature where the law is linear.
        """
        residual, shares = self.shares(x_R5)
        pull = weight_RP * np.clip(residual, -self.delta, self.delta)
        size, data, rest = shares
        jacobian = np.stack([size, data, rest, -size * self.n, -data * self.d], 1)
        inside = weight_RP * (np.abs(residual) <= self.delta)
        softened = weight_RP * np.minimum(1.0, self.delta / np.maximum(np.abs(residual), 1e-300))
        metric = (jacobian * softened[:, None]) @ jacobian.swapaxes(1, 2)
        hessian = (jacobian * (inside - pull)[:, None]) @ jacobian.swapaxes(1, 2) + self._bend(pull, shares)
        return np.sum(weight_RP * self.huber(residual), -1), self.slope(pull, shares), hessian, metric

    def _bend(self, pull, shares):
        """[R, 5, 5]: what the curvature of the exponentials adds to the Hessian."""
        bend = np.zeros((len(pull), 5, 5))
        bend[:, 2, 2] = np.sum(pull * shares[2], -1)
        for share, log_x, level, exponent in ((shares[0], self.n, 0, 3), (shares[1], self.d, 1, 4)):
            moments = (pull * share) @ np.stack([np.ones_like(log_x), -log_x, log_x**2], -1)
            bend[:, level, level], bend[:, exponent, exponent] = moments[:, 0], moments[:, 2]
            bend[:, level, exponent] = bend[:, exponent, level] = moments[:, 1]
        return bend


def scales(metric):
    """[R, 5]: roots of the metric's diagonal; a constant without any hold gets a small one instead of none."""
    size = np.sqrt(np.maximum(np.diagonal(metric, axis1=-2, axis2=-1), 0.0))
    return np.maximum(size, 1e-12 * size.max(-1, keepdims=True) + 1e-300)


def descend(cloud: Cloud, x_R5, weight_RP, steps: int = STEPS):
    """(x [R, 5], value [R], tight [R]): damped Newton steps on the exact Hessian until the scaled gradient is TIGHT.

    Negative curvature is turned round and a step is taken only where it lowers the value, so that a saddle holds nobody.
    SciPy has no optimizer for many problems at once; one after the other a bootstrap takes minutes.
    """
    x, weight = np.array(x_R5, float), np.broadcast_to(weight_RP, (len(x_R5), len(cloud.n)))
    going, damping, tight = np.arange(len(x)), np.full(len(x), 1e-3), np.zeros(len(x), bool)
    for _ in range(steps):
        value, gradient, hessian, metric = cloud.derivatives(x[going], weight[going])
        size = scales(metric)
        gradient, hessian = gradient / size, hessian / (size[:, :, None] * size[:, None, :])
        tight[going] = np.max(np.abs(gradient), -1) <= TIGHT * np.sqrt(weight[going].sum(-1))
        left = np.flatnonzero(~tight[going])
        moved = _step(cloud, x, weight, damping, going[left], value[left], gradient[left], hessian[left], size[left])
        going = going[left][moved]
        if not len(going):
            break
    return x, cloud.value(x, weight), tight


def _step(cloud, x, weight, damping, going, value, gradient, hessian, size):
    """Moves x[going] in place, raising the damping until each has a lower value; bool: who found one."""
    curvature, axes = np.linalg.eigh(hessian)
    along = (axes.swapaxes(1, 2) @ gradient[..., None])[..., 0]
    moved = np.zeros(len(going), bool)
    for _ in range(40):
        left = np.flatnonzero(~moved & (damping[going] < 1e12))
        if not len(left):
            break
        rows = going[left]
        move = along[left] / (np.maximum(np.abs(curvature[left]), 1e-12) + damping[rows, None])
        trial = x[rows] - (axes[left] @ move[..., None])[..., 0] / size[left]
        better = cloud.value(trial, weight[rows]) < value[left]
        x[rows[better]], moved[left[better]] = trial[better], True
        damping[rows] = np.where(better, np.maximum(damping[rows] / 10, 1e-14), damping[rows] * 10)
    return moved
