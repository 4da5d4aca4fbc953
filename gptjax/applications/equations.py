"""Sums in an answer, checked with the calculator: "12 * 3 = 35" is marked with the value that is right.

A sum is a text of numbers, + - * / x × ÷ − and parentheses with at least one operator, an = and a number. Rounded values are right
to the digits that they have.
"""

import decimal
import re
from typing import NamedTuple

from gptjax.errors import UserError
from gptjax.posttrain.calculator import calculate

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_SUM = re.compile(
    rf"(?<![\w.,)])(?P<left>[(\s]*{_NUMBER}(?:[()\s]*(?:\*\*|[-+*/x×÷−])[(\s]*{_NUMBER}[)\s]*)+)=\s*"
    rf"(?P<right>[-−]?{_NUMBER})"
)
_SIGNS = str.maketrans({"x": "*", "×": "*", "÷": "/", "−": "-", ",": ""})


class Sum(NamedTuple):
    text: str  # as it stands in the answer
    value: str  # that is right
    is_right: bool
    end: int  # where it ends in the answer


def sums(text: str) -> list[Sum]:
    """Those of a text, in order; what the calculator takes for no arithmetic is none."""
    found = []
    for match in _SUM.finditer(text):
        try:
            value = calculate(match["left"].translate(_SIGNS).strip())
        except UserError:
            continue
        is_right = _same(value, match["right"].translate(_SIGNS))
        found.append(Sum(match[0].strip(), value, is_right, match.end()))
    return found


def _same(value: str, said: str) -> bool:
    """Whether said is value, or value rounded to as many places as said has, one at least."""
    exact, rounded = decimal.Decimal(value), decimal.Decimal(said)
    places = -rounded.as_tuple().exponent
    return exact == rounded or (places > 0 and abs(exact - rounded) <= decimal.Decimal(5).scaleb(-places - 1))


def marked(text: str) -> str:
    """The text with the right value behind each wrong sum."""
    for one in reversed(sums(text)):
        if not one.is_right:
            text = f"{text[: one.end]} [wrong: {one.value}]{text[one.end :]}"
    return text
