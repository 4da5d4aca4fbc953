"""Numbers as a report prints them: as many digits as they are known to, with the interval they belong to."""

import math

NONE = "–"
_SUFFIXES = ("", "k", "M", "B", "T")  # the field's: B is 1e9


def plain(value, digits: int = 4) -> str:
    """`value` to `digits` significant ones; 1.23e13 and 1.2e-05 as such."""
    if value is None:
        return NONE
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 10**5:
        return _fixed(value, digits - 1 - _magnitude(value))
    return _scientific(value, digits - 1)


def uncertain(value, interval) -> str:
    """`value` to the digits that its interval leaves: two more than the width's first."""
    known = _known(interval)
    if value is None or known is None:
        return plain(value)
    return _to(value, known, _is_large(value, *interval))


def bounds(interval, value=None) -> str:
    """[low, high], to the digits of `uncertain`."""
    known = _known(interval)
    if known is None:
        return NONE
    low, high = interval
    large = _is_large(low, high, high if value is None else value)
    return f"[{_to(low, known, large)}, {_to(high, known, large)}]"


def beside(value, interval, shown=uncertain) -> str:
    """A value and its interval in one cell."""
    return f"{shown(value, interval)} {bounds(interval, value)}" if _known(interval) is not None else plain(value)


def count(value, digits: int = 3) -> str:
    """Parameters or tokens: 72253000000 -> '72.3B'."""
    if value is None:
        return NONE
    size = 0
    while abs(float(f"{value:.{digits}g}")) >= 1000 and size < len(_SUFFIXES) - 1:
        value, size = value / 1000, size + 1
    return f"{_fixed(value, digits - 1 - _magnitude(value))}{_SUFFIXES[size]}" if abs(value) < 1000 else plain(value)


def count_bounds(interval) -> str:
    return NONE if _known(interval) is None else f"[{count(interval[0])}, {count(interval[1])}]"


def count_beside(value, interval) -> str:
    return count(value) if _known(interval) is None else f"{count(value)} {count_bounds(interval)}"


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


def _magnitude(value: float) -> int:
    return 0 if value == 0 else math.floor(math.log10(abs(value)))


def _known(interval) -> int | None:
    """The power of ten of the last digit worth printing; None without an interval."""
    if interval is None or None in interval or not all(map(math.isfinite, interval)):
        return None
    width = abs(interval[1] - interval[0])
    return _magnitude(width) - 1 if width else _magnitude(interval[0]) - 3


def _is_large(*values: float) -> bool:
    return max(map(abs, values)) >= 10**5 or 0 < max(map(abs, values)) < 1e-3


def _to(value: float, last: int, scientific: bool) -> str:
    if scientific:
        return _scientific(value, min(max(_magnitude(value) - last, 1), 4))
    return _fixed(value, min(-last, 6))


def _fixed(value: float, decimals: int) -> str:
    return f"{value:,.{max(decimals, 0)}f}"


def _scientific(value: float, decimals: int) -> str:
    mantissa, exponent = f"{value:.{decimals}e}".split("e")
    return f"{mantissa}e{int(exponent)}"
