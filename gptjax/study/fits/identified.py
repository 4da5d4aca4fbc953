"""Which constants of E + A/N^alpha + B/D^beta the points determine, and which they leave open."""

import numpy as np

from gptjax.study.fits import huber

NAMES = ("A", "B", "E", "alpha", "beta")  # in the order of huber's x = (a, b, e, alpha, beta)
FLAT = 1e-7  # of the largest curvature: a direction with less is not seen in float64's Hessian
SHARE = 1e-4  # of the loss: a term that nowhere is more has no influence on the fit
STEEP = 3.0  # an exponent above this is no power law of any loss, but a step
MAGNITUDES = {"A": 1e3, "B": 1e3}  # they are the loss at N = 1 and D = 1, far from any point: an interval spans decades
RATIO = 10.0  # of upper to lower bound, for E, alpha, beta


def too_few(points) -> list[str]:
    """Why five constants cannot be asked of these points at all."""
    held = points.weight > 0
    cells = len({(n, d) for n, d in zip(points.params[held], points.tokens[held])})
    reasons = []
    if cells < 6:
        reasons.append(f"{cells} different (N, D); five constants need at least 6")
    for name, symbol, lost in (("params", "N", "alpha and A"), ("tokens", "D", "beta and B")):
        distinct = len(np.unique(getattr(points, name)[held]))
        if distinct < 3:
            reasons.append(f"{distinct} different {symbol}; {lost} beside E need at least 3")
    return reasons


def of_optimum(cloud: huber.Cloud, points, x, constants) -> list[str]:
    """What at the optimum speaks against a headline: E not below the losses, a term without influence, a flat direction."""
    E, _, _, alpha, beta = constants
    used = points.weight > 0
    reasons = []
    lowest = float(np.min(points.loss[used]))
    if not lowest > E:
        reasons.append(f"E = {E:.4g} is not below the smallest observed loss, {lowest:.4g}")
    _, shares = cloud.shares(np.asarray(x)[None])
    for share, term in zip(shares, ("A/N^alpha", "B/D^beta", "E")):
        if np.max(share[0][used]) < SHARE:
            reasons.append(f"{term} is nowhere more than {SHARE:g} of the loss: not identified")
    for name, exponent in (("alpha", alpha), ("beta", beta)):
        if not 0 < exponent < STEEP:
            reasons.append(f"{name} = {exponent:.4g} lies outside 0..{STEEP:g}: not identified")
    return reasons or _flat(cloud, points, x)


def _flat(cloud: huber.Cloud, points, x) -> list[str]:
    *_, metric = cloud.derivatives(np.asarray(x)[None], points.weight[None])
    size = huber.scales(metric)[0]
    curvature, axes = np.linalg.eigh(metric[0] / np.outer(size, size))
    if curvature[0] > FLAT * curvature[-1]:
        return []
    open_ = [name for name, part in zip(NAMES, np.abs(axes[:, 0])) if part > 0.3]
    return [f"the objective is flat along {', '.join(open_)}: not identified by these (N, D)"]


def of_intervals(interval95: dict[str, tuple[float, float]]) -> list[str]:
    """Constants whose 95% interval reaches 0 or spans more than RATIO (A, B: MAGNITUDES)."""
    reasons = []
    for name in ("E", "A", "B", "alpha", "beta"):
        low, high = interval95[name]
        limit = MAGNITUDES[name] if name in MAGNITUDES else RATIO
        if not (low > 0 and high < limit * low):
            reasons.append(f"{name} is not identified: its 95% interval is {low:.4g} to {high:.4g}")
    return reasons
