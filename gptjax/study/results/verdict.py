"""What may be quoted of a study's fits, and what speaks against it.

The headline is of the first law, in the order of catalogue.by_rank, that is not refused and does not miss its points: the
parametric law uses every point and gives E; isoFLOP parabolas assume no law but see only the best points; training curves are
of unfinished schedules; Kaplan's laws have no irreducible loss, and get no headline.
"""

import math

from gptjax.study.methods import catalogue

FAR = 2.0  # times the noise between seeds that a law may leave before it is said to miss the points
FINE = 1e-3  # of the loss: where no seeds tell the noise, a law that leaves less is not said to miss the points
EXACT = 1e-6  # of the loss: whatever seeds differ by, what is left below this is nothing
DIGITS = 3  # of an exponent; what differs behind them does not differ


def verdict(results: dict) -> dict:
    """{"headline": whether there is one, "text", "reasons", "standing": methods that may be quoted, in order}."""
    methods = catalogue.by_rank()
    whole = [name for name in methods if _is_whole(results.get(name))]
    misses = {name: said for name in whole if (said := _misfit(results, name, whole))}
    standing = [name for name in whole if name not in misses]
    leading = [name for name, method in methods.items() if method.no_headline is None]
    first = next((name for name in standing if name in leading), None)
    reasons = [
        f"{methods[name].called}: {reason}"
        for name in leading
        for reason in (results.get(name) or {}).get("refused", ())
    ]
    if first is None:
        text = "No law stands: there is no exponent here to quote."
        if misses:
            text = (
                "No law stands: those that can be fitted miss their points, and their exponents are not to be quoted."
            )
        reasons += [method.no_headline for name, method in methods.items() if method.no_headline and name in results]
        return {"headline": False, "text": text, "reasons": reasons + list(misses.values()), "standing": []}
    against = {name: said for name in whole if name != first and (said := _disagreement(results, first, name))}
    reasons += [*misses.values(), *against.values(), *_doubts(results[first], first)]
    reasons += [methods[first].caveat] if methods[first].caveat else []
    return {
        "headline": True,
        "text": f"{_exponent(results[first])} by {methods[first].called}{_floor(results[first])}.{_most_moved(results[first])}",
        "reasons": reasons,
        "standing": [name for name in standing if name not in against],
    }


def _is_whole(fit: dict | None) -> bool:
    return bool(fit) and not fit["refused"] and fit.get("a") is not None


def _exponent(fit: dict) -> str:
    low, high = _interval(fit) or (None, None)
    interval = "" if low is None else f" (95%: {low:.3f} to {high:.3f})"
    return f"N* grows as C^{fit['a']:.3f}{interval}"


def _interval(fit: dict) -> tuple[float, float] | None:
    """95%, of the exponent."""
    low, high = (fit.get("interval95") or {}).get("a") or (None, None)
    return None if low is None or high is None else (low, high)


def _floor(fit: dict) -> str:
    if fit.get("E") is None:
        return ""
    low, high = fit["interval95"]["E"]
    return f"; irreducible loss E = {fit['E']:.3f} (95%: {low:.3f} to {high:.3f}) nats per token"


def _misfit(results: dict, name: str, whole: list[str]) -> str | None:
    """That a law misses its points by more than noise: then intervals, too, are those of a wrong form. The noise is what
    seeds differ by; where there are none, it is at most what the best of the other laws leaves."""
    fit = results[name]
    left, noise = _left(fit), fit.get("seed_noise") or results.get("seed_noise")
    if left is None or left < EXACT:
        return None
    form = "they miss their points" if catalogue.of(name).plural else "its form is wrong"
    said = f"{_leaves(name)} {left:.2%} of the loss"
    if noise and noise["relative"]:
        times = left / noise["relative"]
        seeds = f"{times:.1f} times what seeds differ by ({noise['relative']:.2%})"
        return f"{said}, {seeds}: {form}" if times > FAR else None
    others = {other: _left(results[other]) for other in whole if _left(results[other]) is not None}
    best = min(others, key=others.get)
    if left > FINE and left > FAR * others[best]:
        return f"{said}, where {_leaves(best)} {others[best]:.2%}: {form}"
    if left > FINE and fit.get("window_fits") is False:
        return f"{said}, and fit no window of them: {form}"
    return None


def _leaves(name: str) -> str:
    method = catalogue.of(name)
    return f"{method.called} {'leave' if method.plural else 'leaves'}"


def _left(fit: dict) -> float | None:
    """Of the loss, relative; None where a fit does not say, or nothing can be left."""
    left = fit.get("residual")
    return left if left is not None and math.isfinite(left) else None


# ---- methods beside each other


def _disagreement(results: dict, first: str, other: str) -> str | None:
    """That two methods give exponents whose 95% intervals do not meet, and what it comes from; None where they do."""
    one, two = _interval(results[first]), _interval(results[other])
    if not one or not two or not (_below(one[1], two[0]) or _below(two[1], one[0])):
        return None
    each = (f"{catalogue.of(name).called} {results[name]['a']:.3f} ({low:.3f} to {high:.3f})" for name, (low, high) in ((first, one), (other, two)))  # fmt: skip
    said = f"{' and '.join(each)} give exponents whose 95% intervals do not meet"
    return said + "".join(f"; {reason}" for reason in _why(results, first, other))


def _why(results: dict, first: str, other: str) -> list[str]:
    """Likely reasons: changes under which the two agree, a form without an irreducible loss."""
    changes = [{one["change"]: one for one in results[name].get("sensitivity") or ()} for name in (first, other)]
    low, high = _interval(results[first])
    shared = [name for name in changes[0] if name in changes[1] and all(_counts(by[name]) for by in changes)]
    gap = abs(results[first]["a"] - results[other]["a"])
    meet = [name for name in shared if abs(changes[0][name]["a"] - changes[1][name]["a"]) < max(gap / 3, high - low)]
    reasons = []
    if of_size := [name for name in meet if name.startswith("N ")]:
        reasons.append(f"counted as {_listed(of_size)} they agree: it is the convention of N")
    if of_points := [name for name in meet if not name.startswith("N ") and "Huber" not in name]:
        reasons.append(f"with {_listed(of_points)} they agree: some points are beyond the regime of one of them")
    return reasons + catalogue.of(other).why_it_differs(results)


def _listed(names: list[str]) -> str:
    return " or ".join(names)


# ---- what the headline hangs on


def _most_moved(fit: dict) -> str:
    """The change of the fit that moves its exponent most."""
    changes = [one for one in fit.get("sensitivity") or () if _counts(one)]
    most = max(changes, key=lambda one: abs(one["a"] - fit["a"]), default=None)
    if most is None or round(most["a"], DIGITS) == round(fit["a"], DIGITS):
        return ""
    return f" What moves the exponent most: {most['change']}, to {most['a']:.3f}."


def _doubts(fit: dict, name: str) -> list[str]:
    """Changes of the fit that move its exponent out of its own interval, the furthest first."""
    if not (interval := _interval(fit)):
        return []
    low, high = interval
    moved = [
        one
        for one in fit.get("sensitivity") or ()
        if _counts(one) and (_below(one["a"], low) or _below(high, one["a"]))
    ]
    moved = sorted(moved, key=lambda one: -abs(one["a"] - fit["a"]))
    said = ", ".join(f"{one['change']} ({one['a']:.3f})" for one in moved)
    return [f"{catalogue.of(name).called}: the exponent leaves its 95% interval with {said}"] if moved else []


def _counts(change: dict) -> bool:
    return change.get("a") is not None and math.isfinite(change["a"]) and not change["refused"]


def _below(one: float, other: float) -> bool:
    """As printed: a difference that no digit shows is none."""
    return round(one, DIGITS) < round(other, DIGITS)
