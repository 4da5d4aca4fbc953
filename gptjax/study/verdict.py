"""What may be quoted of a study's fits, and what speaks against it."""

FAR = 2.0  # times the noise between seeds that a law may leave before it is said to miss the points

NAMES = {"parametric": "the parametric law", "isoflop": "isoFLOP parabolas", "envelope": "the envelope"}


def verdict(results: dict) -> dict:
    """{"headline": whether there is one, "text", "reasons"}: of the first method that is not refused."""
    standing = [name for name in NAMES if _stands(results.get(name))]
    reasons = [f"{NAMES[name]}: {reason}" for name in NAMES for reason in (results.get(name) or {}).get("refused", ())]
    if not standing:
        if "kaplan" in results:
            reasons.append("Kaplan's laws have no irreducible loss: their exponents alone make no headline")
        return {"headline": False, "text": "No law stands: there is no exponent here to quote.", "reasons": reasons}
    first = standing[0]
    reasons += [*_disagreements(results, standing), *_doubts(results[first], first)]
    if first == "envelope":
        reasons.append("the envelope: losses on the way of a schedule lie above those of a schedule of that length")
    reasons += _unexplained(results[first], first, results.get("seed_noise"))
    return {
        "headline": True,
        "text": f"{_exponent(results[first])} by {NAMES[first]}{_floor(results[first])}.",
        "reasons": reasons,
    }


def _stands(fit: dict | None) -> bool:
    return bool(fit) and not fit["refused"] and fit.get("a") is not None


def _exponent(fit: dict) -> str:
    low, high = (fit.get("interval95") or {}).get("a") or (None, None)
    interval = "" if low is None else f" (95%: {low:.3f} to {high:.3f})"
    return f"N* grows as C^{fit['a']:.3f}{interval}"


def _floor(fit: dict) -> str:
    if fit.get("E") is None:
        return ""
    low, high = fit["interval95"]["E"]
    return f"; irreducible loss E = {fit['E']:.3f} (95%: {low:.3f} to {high:.3f}) nats per token"


def _disagreements(results: dict, standing: list[str]) -> list[str]:
    """Methods whose 95% intervals of the exponent do not meet."""
    found = []
    for i, one in enumerate(standing):
        for other in standing[i + 1 :]:
            a, b = ((results[name].get("interval95") or {}).get("a") for name in (one, other))
            if a and b and (a[1] < b[0] or b[1] < a[0]):
                found.append(f"{NAMES[one]} and {NAMES[other]} give exponents whose 95% intervals do not meet")
    return found


def _unexplained(fit: dict, name: str, noise: dict | None) -> list[str]:
    """That a law misses its points by more than seeds explain: then intervals, too, are those of a wrong form."""
    if not noise or not noise["relative"] or fit.get("residual") is None:
        return []
    times = fit["residual"] / noise["relative"]
    seeds = f"{times:.1f} times what seeds differ by ({noise['relative']:.2%})"
    return (
        [f"{NAMES[name]} leaves {fit['residual']:.2%} of the loss, {seeds}: its form is wrong"] if times > FAR else []
    )


def _doubts(fit: dict, name: str) -> list[str]:
    """Changes of the fit that move its exponent out of its own interval."""
    low, high = (fit.get("interval95") or {}).get("a") or (None, None)
    if low is None:
        return []
    moved = [
        f"{one['change']} ({one['a']:.3f})"
        for one in fit.get("sensitivity") or ()
        if one.get("a") is not None and not one["refused"] and not low <= one["a"] <= high
    ]
    return [f"{NAMES[name]}: the exponent leaves its 95% interval with {', '.join(moved)}"] if moved else []
