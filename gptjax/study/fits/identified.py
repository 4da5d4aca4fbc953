"""Which constants of E + A/N^alpha + B/D^beta the points determine, and which they leave open."""

import numpy as np

NAMES = ("A", "B", "E", "alpha", "beta")  # in the order of the objective's x = (a, b, e, alpha, beta)
FLAT = 1e-7  # of the largest curvature, constants scaled to their own: a direction with less is lost in rounding
SHARE = 1e-4  # of the loss: a term that nowhere is more has no influence on the fit
STEEP = 3.0  # an exponent above this is a step, no power law of any loss
LIMITS = {"E": 10.0, "alpha": 10.0, "beta": 10.0, "A": 1e3, "B": 1e3}  # upper over lower bound; A and B are the terms
# at N = 1 and D = 1, five to ten decades from any point, where an uncertainty of 0.05 in the exponent is a factor of 3


NO_TRACE = {  # what is said of a term that is SHARE of the loss at no point
    "A/N^alpha": "the term A/N^alpha fitted to zero; these runs cannot determine how the loss depends on size",
    "B/D^beta": "the term B/D^beta fitted to zero; these runs cannot determine how the loss depends on tokens",
    "E": "the irreducible loss E fitted to zero; these runs cannot determine it",
}


def too_few(points) -> list[str]:
    """Why five constants cannot be asked of these points at all."""
    held = points.weight > 0
    cells = len(set(zip(points.params[held], points.tokens[held])))
    reasons = [f"{cells} different (N, D); five constants need at least 6"] if cells < 6 else []
    for name, symbol, lost in (("params", "N", "A and alpha"), ("tokens", "D", "B and beta")):
        distinct = len(np.unique(getattr(points, name)[held]))
        if distinct < 3:
            reasons.append(f"{distinct} different values of {symbol}; {lost} besides E need at least 3")
    return reasons


def of_optimum(objective, x, law, loss, weight) -> list[str]:
    """What at the optimum speaks against a headline: E not below the losses, a term without influence, a flat direction."""
    lowest = float(np.min(loss[weight > 0]))
    reasons = [] if law.E < lowest else [f"E = {law.E:.4g} is not below the smallest observed loss, {lowest:.4g}"]
    _, shares = objective.terms(np.asarray(x)[None])
    for share, term in zip(shares, ("A/N^alpha", "B/D^beta", "E")):
        if np.max(share[0][weight > 0]) < SHARE:
            reasons.append(NO_TRACE[term])
    for name, exponent in (("alpha", law.alpha), ("beta", law.beta)):
        if not 0 < exponent < STEEP:
            reasons.append(f"{name} = {exponent:.4g} is not between 0 and {STEEP:g}; these runs cannot determine it")
    flat = objective.flat_direction(x, weight, FLAT)
    if flat is not None and not reasons:
        open_ = [name for name, part in zip(NAMES, np.abs(flat)) if part > 0.3]
        reasons.append(f"these runs cannot determine {', '.join(open_)}: other values fit as well")
    return reasons


def of_intervals(interval95: dict[str, tuple[float, float]]) -> list[str]:
    """Constants whose 95% interval reaches 0 or spans more than LIMITS allows."""
    reasons = []
    for name, limit in LIMITS.items():
        low, high = interval95.get(name, (1.0, 1.0))
        if not (low > 0 and high < limit * low):
            reasons.append(f"these runs cannot determine {name}: its 95% interval is {low:.4g} to {high:.4g}")
    return reasons
