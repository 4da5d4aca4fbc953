"""What of a text is the answer, and numbers as people write them, exactly."""

import fractions
import re
from collections.abc import Callable

from gptjax.errors import UserError, choose

_AFTER = re.compile(r"(?:\banswer\s*(?:is\s*:?|:)|####)\s*(.*)", re.IGNORECASE)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)"
_SIGN = r"(?:(?<![\w.)])[-+\u2212])?"  # of "3-4" the minus is an operator
_NUMBER = re.compile(
    rf"{_SIGN}(?:\\[dt]?frac\s*\{{\s*[-+]?{_DECIMAL}\s*\}}\s*\{{\s*{_DECIMAL}\s*\}}"
    rf"|{_DIGITS}\s*/\s*{_DIGITS}(?![\d/])"
    rf"|{_DECIMAL}(?:[eE][-+]?\d{{1,3}}(?!\w))?)"
)


def whole(text: str) -> str:
    return text.strip()


def last_line(text: str) -> str | None:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else None


def after_answer(text: str) -> str | None:
    """The rest of the line behind the last "answer:", "answer is" or "####"."""
    matches = _AFTER.findall(text)
    return matches[-1].strip() if matches else None


def tagged(text: str) -> str | None:
    """The inside of the last <answer>...</answer>."""
    matches = _TAGGED.findall(text)
    return matches[-1].strip() if matches else None


def boxed(text: str) -> str | None:
    r"""The inside of the last \boxed{...}, with the braces that it holds."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, first = 0, start + len("\\boxed{")
    for i in range(first - 1, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[first:i].strip()
    return None


FORMS: dict[str, Callable[[str], str | None]] = {
    "whole": whole,
    "last_line": last_line,
    "answer": after_answer,
    "tag": tagged,
    "boxed": boxed,
}


def extracted(text: str, form: str) -> str | None:
    """The answer in a text; None: it has none in this form. Raises UserError: no such form."""
    return choose(FORMS, form, "form")(text)


def numbers(text: str) -> list[fractions.Fraction]:
    r"""All numbers of a text, exactly: 1,234.5, -3/4, \frac{3}{4}, 2e-3. Units count for nothing: 15% is 15."""
    return [number for match in _NUMBER.finditer(text) if (number := _exact(match[0])) is not None]


def only_number(text: str) -> fractions.Fraction | None:
    """Of a text that is a number and nothing else but spaces, signs of dollars and per cent around it, and a full stop."""
    bare = text.strip().rstrip(".").strip().strip("$%\\").strip()
    return _exact(bare) if _NUMBER.fullmatch(bare) else None


def _exact(written: str) -> fractions.Fraction | None:
    """None: a fraction with denominator 0, or more digits than Python takes (sys.int_info.default_max_str_digits)."""
    plain = written.replace(",", "").replace("\u2212", "-").replace(" ", "")
    sign = -1 if plain.startswith("-") else 1
    plain = plain.lstrip("+-")
    parts = re.findall(r"[-+]?[\d.]+", plain) if plain.startswith("\\") else plain.split("/")
    try:
        numerator, denominator = map(fractions.Fraction, parts if len(parts) == 2 else (parts[0], 1))
        return sign * numerator / denominator
    except (ValueError, ZeroDivisionError):
        return None


def reference_number(value, name: str) -> fractions.Fraction:
    """Of a record's field: a number, a text that is one, or a solution that ends in one, as GSM8K's behind ####.

    Raises UserError: it has no number."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return fractions.Fraction(value) if isinstance(value, int) else fractions.Fraction(repr(value))
    text = str(value)
    number = only_number(text)
    if number is None:
        marked = numbers(after_answer(text) or boxed(text) or text)
        number = marked[-1] if marked else None
    if number is None:
        raise UserError(f"the record's field {name!r} has no number: {text[:80]!r}; expected one.")
    return number
