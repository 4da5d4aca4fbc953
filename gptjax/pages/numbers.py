"""Numbers as a report prints them: as many digits as they are known to, with the interval they belong to."""

import math
import re

NONE = "–"
_SUFFIXES = ("", "k", "M", "B", "T")  # the field's: B is 1e9
NOTHING = 1e-18  # a constant that a fit left at its bound of zero comes out as 3e-24, and is printed as 0
THREE_DECIMALS = re.compile(
    r"(joint_)?(a|b|alpha|beta|E|loss_E|exponent)(_\w+)?"
)  # constants of order 1, as verdicts print them


def plain(value, digits: int = 4) -> str:
    """`value` to `digits` significant ones; 1.23e13 and 1.2e-5 as such; whole numbers and words as they are."""
    if value is None:
        return NONE
    if isinstance(value, bool) or not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    if abs(value) < NOTHING:
        return "0"
    if 1e-3 <= abs(value) < 10**5:
        return _fixed(value, digits - 1 - _magnitude(value))
    return _scientific(value, digits - 1)


def constant(name: str, value, wide=None) -> str:
    """A constant of a law by its name: exponents and irreducible losses to three decimals, others as `uncertain`."""
    if value is None or abs(value) < NOTHING or not _has_three_decimals(name, value):
        return uncertain(value, wide)
    return _fixed(value, 3)


def constant_bounds(name: str, interval, value=None, wide=None) -> str:
    """Its interval, likewise."""
    if _last(interval) is None or not all(_has_three_decimals(name, bound) for bound in interval):
        return bounds(interval, value, wide)
    return f"[{', '.join(constant(name, bound) for bound in interval)}]"


def constant_beside(name: str, value, wide) -> str:
    """A constant and its interval in one cell."""
    shown = constant(name, value, wide)
    return shown if value is None or _last(wide) is None else f"{shown} {constant_bounds(name, wide, value)}"


def _has_three_decimals(name: str, value: float) -> bool:
    return THREE_DECIMALS.fullmatch(name) is not None and abs(value) < 100


def setting(value) -> str:
    """What was chosen, not measured: 0.001, 3e-4; no more digits than it was given."""
    if value is None or isinstance(value, str | bool):
        return {True: "yes", False: "no", None: NONE}.get(value, value)
    shown = f"{value:.4g}"
    mantissa, _, exponent = shown.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else shown


def uncertain(value, wide) -> str:
    """`value` to the digits that its 95% interval leaves: the second of the interval's width is the last."""
    last = _last(wide)
    return (
        plain(value)
        if value is None or last is None or abs(value) < NOTHING
        else _to(value, last, _is_large(value, *wide))
    )


def bounds(interval, value=None, wide=None) -> str:
    """[low, high], to the digits of `uncertain(value, wide)`; `wide` is the interval itself where none is given."""
    wide = interval if wide is None else wide
    if _last(interval) is None or _last(wide) is None:
        return NONE
    large = _is_large(*wide, wide[1] if value is None else value)
    return f"[{', '.join(_to(bound, _last(wide), large) for bound in interval)}]"


def beside(value, wide) -> str:
    """A value and its interval in one cell."""
    return plain(value) if value is None or _last(wide) is None else f"{uncertain(value, wide)} {bounds(wide, value)}"


def count(value, digits: int = 3) -> str:
    """Parameters or tokens: 72253000000 -> '72.3B'."""
    if value is None:
        return NONE
    size = 0
    while float(f"{value:.{digits}g}") >= 1000 and size < len(_SUFFIXES) - 1:
        value, size = value / 1000, size + 1
    rounded = float(f"{value:.{digits}g}")
    return f"{_fixed(rounded, digits - 1 - _magnitude(rounded))}{_SUFFIXES[size]}" if rounded < 1000 else plain(rounded)


def count_bounds(interval) -> str:
    return NONE if _last(interval) is None else f"[{count(interval[0])}, {count(interval[1])}]"


def count_beside(value, interval) -> str:
    return count(value) if _last(interval) is None else f"{count(value)} {count_bounds(interval)}"


def number_of(count: int, one: str, more: str | None = None) -> str:
    """'1 replicate', '2 replicates'."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def whole(value) -> str:
    """All digits: 1,234,567."""
    return NONE if value is None else f"{value:,.0f}"


def flops(value) -> str:
    return NONE if value is None else _scientific(value, 2)


def loss(value) -> str:
    return NONE if value is None else f"{value:.4f}"


def percent(share, digits: int = 2) -> str:
    """0.0123 -> '1.23%'."""
    return NONE if share is None else f"{100 * share:.{digits}f}%"


def window(fit: dict) -> str:
    """Which points the parabolas of isoFLOPs go through."""
    ratio = fit.get("window")
    if ratio is None or math.isinf(ratio):
        return "all points of a budget"
    within = f"points within a factor of {ratio:.3g} of the optimum"
    return within if fit["window_fits"] else f"{within}, the narrowest; a parabola fits no window of these points"


def _magnitude(value: float) -> int:
    """The power of ten of its first digit."""
    return 0 if value == 0 else math.floor(math.log10(abs(value)))


def _last(interval) -> int | None:
    """The power of ten of the last digit worth printing; None without an interval."""
    if interval is None or None in interval or not all(map(math.isfinite, interval)):
        return None
    width = abs(interval[1] - interval[0])
    return _magnitude(width) - 1 if width >= NOTHING else _magnitude(interval[0]) - 3


def _is_large(*values: float) -> bool:
    """Or small: either way it takes a power of ten."""
    largest = max(map(abs, values))
    return largest >= 10**5 or 0 < largest < 1e-3


def _to(value: float, last: int, scientific: bool) -> str:
    if abs(value) < NOTHING:
        return "0"
    if scientific and 1e-3 <= abs(value) < 10**5:  # beside one that takes a power of ten
        return f"{float(f'{value:.2g}'):,g}"
    if scientific:
        return _scientific(value, min(max(_magnitude(value) - last, 1), 4))
    fixed = _fixed(value, min(-last, 6))
    return (
        fixed if float(fixed.replace(",", "")) else f"{value:.1g}"
    )  # less than the interval's last digit, and not nothing


def _fixed(value: float, decimals: int) -> str:
    return f"{value:,.{max(decimals, 0)}f}"


def _scientific(value: float, decimals: int) -> str:
    mantissa, exponent = f"{value:.{decimals}e}".split("e")
    return f"{mantissa}e{int(exponent)}"
