"""Power laws of Kaplan et al. 2020: L(N), L(D), L(C) (equations 1.1 to 1.3) and the joint form (1.5). None has an E.

L(N) is a law of runs that more data would not help, L(D) of runs that a larger model would not help. Which runs those are
the joint form says; where it is not identified nobody can, and the single laws are refused with it.
"""

import dataclasses
import itertools
import math

import numpy as np

from gptjax.study.fits import huber
from gptjax.study.fits.fit import Fit
from gptjax.study.fits.laws import FLOPS_PER_PARAM_TOKEN, Optimum, PowerLaw, checked
from gptjax.study.fits.points import Points

UNLIMITED = (
    0.02  # of the loss: what endless data (or parameters) would still take off a run that counts as unlimited by it
)
ENOUGH = 3  # sizes (budgets, numbers of tokens): two lie on a power law whatever they are
FLAT = 1e-9  # of the largest curvature
NOT_CONVERGED = "the fit did not converge"
SINGLE = {"L_N": ("params", "tokens", "data"), "L_D": ("tokens", "params", "size")}


@dataclasses.dataclass(frozen=True)
class SingleLaw:
    """L(x) = (x_c / x)^alpha; NaN where refused. `points` are the indices of what was fitted."""

    x_c: float
    alpha: float
    rms: float  # of what is left of ln L
    points: list[int]
    refused: list[str]

    def loss(self, x):
        return np.power(self.x_c / x, self.alpha)


@dataclasses.dataclass(frozen=True)
class JointLaw:
    """L(N, D) = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D (Kaplan et al. 2020, equation 1.5)."""

    N_c: float
    D_c: float
    alpha_N: float
    alpha_D: float
    objective: float
    converged: bool
    starts: int
    starts_at_optimum: int
    delta: float
    refused: list[str]

    def loss(self, params, tokens):
        """Nats per token."""
        size = np.power(self.N_c / params, self.alpha_N / self.alpha_D)
        return np.power(size + self.D_c / tokens, self.alpha_D)

    def optimum(self, flops: float, flops_per_param_token: float = FLOPS_PER_PARAM_TOKEN) -> Optimum:
        """Where (alpha_N/alpha_D) (N_c/N)^(alpha_N/alpha_D) = D_c/D, by the derivative along N D = C/6."""
        ratio, product = self.alpha_N / self.alpha_D, flops / flops_per_param_token
        if ratio <= 0:  # a law that falls as models shrink, as a replicate's may: it has none
            return Optimum(flops, math.nan, math.nan, math.nan)
        log_params = (np.log(ratio * product / self.D_c) + ratio * np.log(self.N_c)) / (1 + ratio)
        params = np.exp(log_params)
        return Optimum(flops, float(params), float(product / params), float(self.loss(params, product / params)))


class Joint(huber.Objective):
    """ln law = alpha_D LSE(u - r n, v - d); x = (u, v, r, alpha_D), r = alpha_N/alpha_D, u = r ln N_c, v = ln D_c, centred."""

    def terms(self, x_R4):
        """(LSE, the shares of size and data in its argument), each [R, P]."""
        u, v, ratio, _ = x_R4.T[:, :, None]
        size, data = u - ratio * self.n, v - self.d
        both = np.logaddexp(size, data)
        return both, (np.exp(size - both), np.exp(data - both))

    def log_law(self, x_R4):
        return x_R4[:, 3:] * self.terms(x_R4)[0]

    def jacobian(self, x_R4):
        both, (size, data) = self.terms(x_R4)
        alpha_D = x_R4[:, 3:]
        return np.stack([alpha_D * size, alpha_D * data, -alpha_D * size * self.n, both], 1)

    def bend(self, x_R4, pull):
        _, (size, data) = self.terms(x_R4)
        inner = np.stack([np.ones_like(self.n), np.full_like(self.n, -1.0), -self.n])  # of size - data in (u, v, r)
        bend = np.zeros((len(x_R4), 4, 4))
        bend[:, :3, :3] = (inner * (x_R4[:, 3:] * pull * size * data)[:, None]) @ inner.T
        bend[:, :3, 3] = bend[:, 3, :3] = np.stack([pull * size, pull * data, -pull * size * self.n], 1).sum(-1)
        return bend

    def law(self, x) -> tuple[float, float, float, float]:
        """(N_c, D_c, alpha_N, alpha_D)."""
        u, v, ratio, alpha_D = x
        with np.errstate(over="ignore", divide="ignore"):
            N_c = np.exp(u / ratio + self.n_centre)
        return float(N_c), float(np.exp(v + self.d_centre)), float(ratio * alpha_D), float(alpha_D)

    def constants(self, law: JointLaw) -> np.ndarray:
        """x of a law."""
        ratio = law.alpha_N / law.alpha_D
        return np.array(
            [ratio * (np.log(law.N_c) - self.n_centre), np.log(law.D_c) - self.d_centre, ratio, law.alpha_D]
        )


@dataclasses.dataclass(frozen=True)
class KaplanFit(Fit):
    L_N: SingleLaw
    L_D: SingleLaw
    L_C: SingleLaw
    joint: JointLaw
    points_used: int

    num_constants = 4  # of the joint form

    @property
    def constants(self) -> dict[str, float]:
        """Of the single laws, of the joint form, and a, b: N* ~ C^a, D* ~ C^b."""
        joint = {f"joint_{name}": getattr(self.joint, name) for name in ("N_c", "D_c", "alpha_N", "alpha_D")}
        laws = {"N": self.L_N, "D": self.L_D, "C": self.L_C}
        single = {f"{x}_c": law.x_c for x, law in laws.items()} | {f"alpha_{x}": law.alpha for x, law in laws.items()}
        a = self.joint.alpha_D / (self.joint.alpha_N + self.joint.alpha_D)
        return single | joint | {"a": a, "b": 1 - a}

    @property
    def refused(self) -> list[str]:
        """Those of all four, each with its law's name in front."""
        laws = {"L(N)": self.L_N, "L(D)": self.L_D, "L(C)": self.L_C, "joint": self.joint}
        return [f"{name}: {reason}" for name, law in laws.items() for reason in law.refused]

    @property
    def failure(self) -> str | None:
        """Why a refit is no sample of the constants."""
        return None if self.joint.converged else NOT_CONVERGED

    def optimum(self, flops: float) -> Optimum:
        """Of the joint form."""
        return self.joint.optimum(flops)

    def refits(self, points: Points, weight_RP: np.ndarray) -> list["KaplanFit"]:
        """One fit per row of weights, from this optimum on; the single laws through the points they were fitted to."""
        objective, weight_RP = Joint.of(points, self.joint.delta), weight_RP * points.weight
        start = np.tile(objective.constants(self.joint), (len(weight_RP), 1))
        found = zip(*huber.descend(objective, start, weight_RP), weight_RP)
        return [self._refit(points, _joint(objective, *end, 1, 1), weight) for *end, weight in found]

    def _refit(self, points: Points, joint: JointLaw, weight) -> "KaplanFit":
        laws = {"L_N": (self.L_N, points.params), "L_D": (self.L_D, points.tokens), "L_C": (self.L_C, points.flops)}
        again = {name: _again(law, x, points.loss, weight) for name, (law, x) in laws.items()}
        return KaplanFit(**again, joint=joint, points_used=int(np.sum(weight > 0)))


def fit(points: Points, *, delta: float = 1e-3) -> KaplanFit:
    """All four laws; the joint form by the objective of approach 3, from many starts."""
    checked(points)
    joint = _fit_joint(points, delta)
    single = {name: _unlimited(points, joint, *roles) for name, roles in SINGLE.items()}
    return KaplanFit(**single, L_C=_frontier(points), joint=joint, points_used=int(np.sum(points.weight > 0)))


def _fit_joint(points: Points, delta: float) -> JointLaw:
    held = points.weight > 0
    cells = len(set(zip(points.params[held], points.tokens[held])))
    sizes, amounts = (len(np.unique(x[held])) for x in (points.params, points.tokens))
    if cells < 5 or sizes < 2 or amounts < 2:
        reason = f"{sizes} sizes, {amounts} numbers of tokens, {cells} pairs of them; four constants need 2, 2 and 5"
        return JointLaw(*[np.nan] * 5, False, 0, 0, delta, [reason])
    objective = Joint.of(points, delta)
    middle = float(np.median(objective.log_loss))
    grid = itertools.product((0.5, 1, 2), (0.05, 0.1, 0.2, 0.4))
    starts = [[middle / alpha_D, middle / alpha_D, ratio, alpha_D] for ratio, alpha_D in grid]
    x, value, tight, there = huber.minimise(objective, np.array(starts), points.weight)
    law = _joint(objective, x, value, tight, len(starts), there)
    return dataclasses.replace(law, refused=law.refused + _open(objective, x, law, points.weight))


def _joint(objective: Joint, x, value, tight, starts: int, there: int) -> JointLaw:
    refused = [] if tight else [NOT_CONVERGED]
    return JointLaw(*objective.law(x), float(value), bool(tight), starts, there, objective.delta, refused)


def _open(objective: Joint, x, law: JointLaw, weight) -> list[str]:
    """Constants that these points leave open."""
    _, shares = objective.terms(np.asarray(x)[None])
    reasons = [
        f"the term {term} fitted to zero; these runs cannot determine it"
        for share, term in zip(shares, ("(N_c/N)^(alpha_N/alpha_D)", "D_c/D"))
        if np.max(share[0][weight > 0]) < 1e-4
    ]
    reasons += [
        f"{name} = {getattr(law, name):.4g} is not above 0"
        for name in ("alpha_N", "alpha_D")
        if not getattr(law, name) > 0
    ]
    flat = objective.flat_direction(x, weight, FLAT)
    return reasons + (
        ["these runs cannot determine the constants: other values fit as well"]
        if flat is not None and not reasons
        else []
    )


def _unlimited(points: Points, joint: JointLaw, of: str, other: str, limit: str) -> SingleLaw:
    """L(N) through the runs that endless data would take less than UNLIMITED off; L(D) likewise."""
    if joint.refused:
        return _none([f"the joint form was refused, so the runs that are not limited by {limit} are not known"])
    endless = {of: getattr(points, of), other: np.inf}
    excess = joint.loss(points.params, points.tokens) / joint.loss(endless["params"], endless["tokens"]) - 1
    free = np.flatnonzero((excess < UNLIMITED) & (points.weight > 0))
    distinct = len(np.unique(getattr(points, of)[free]))
    if distinct < ENOUGH:
        what = "sizes" if of == "params" else "numbers of tokens"
        return _none(
            [f"{distinct} {what} with a run within {UNLIMITED:.0%} of its loss at endless {other}; {ENOUGH} are needed"]
        )
    return _single(getattr(points, of), points.loss, points.weight, free)


def _frontier(points: Points) -> SingleLaw:
    """L(C) through the runs that none with as little compute beats. One at the edge of the sizes is no optimum, and is left out."""
    order = np.lexsort((points.loss, points.flops))
    order = order[points.weight[order] > 0]
    best = np.minimum.accumulate(points.loss[order])
    leads = order[points.loss[order] < np.concatenate([[np.inf], best[:-1]])]
    inside = leads[(points.params[leads] > points.params.min()) & (points.params[leads] < points.params.max())]
    distinct = len(np.unique(points.flops[inside]))
    if distinct < ENOUGH:
        return _none(
            [f"{distinct} budgets whose best run is neither the smallest nor the largest of all; {ENOUGH} are needed"]
        )
    return _single(points.flops, points.loss, points.weight, inside)


def _single(x, loss, weight, chosen) -> SingleLaw:
    law = PowerLaw.through(x[chosen], loss[chosen], weight[chosen])
    alpha = -law.exponent
    if not alpha > 0:
        return _none([f"the loss grows: alpha = {alpha:.4g}"])
    return SingleLaw(float(law.scale ** (1 / alpha)), alpha, law.rms, [int(i) for i in chosen], [])


def _again(law: SingleLaw, x, loss, weight) -> SingleLaw:
    return _single(x, loss, weight, np.array(law.points)) if law.points else law


def _none(refused: list[str]) -> SingleLaw:
    return SingleLaw(np.nan, np.nan, np.nan, [], refused)
