"""Patterns of personal data, each with the check that tells it from other digits and letters.

They find what is written in the usual ways, and are no proof that a text holds none.
"""

import dataclasses
import re
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Kind:
    """pattern: for the package `regex`. is_valid(text): whether a match is one; a match that is none may be longer than one,
    which is then looked for at its beginning."""

    pattern: str
    is_valid: Callable[[str], bool] = lambda text: True


def luhn(text: str) -> bool:
    """Whether the digits of a card's number pass ISO/IEC 7812's check, and are 13 to 19."""
    digits = [int(c) for c in text if c.isdecimal()]
    doubled = [d if i % 2 == 0 else d * 2 - 9 * (d > 4) for i, d in enumerate(reversed(digits))]
    return 13 <= len(digits) <= 19 and sum(doubled) % 10 == 0


def iban(text: str) -> bool:
    """Whether a bank account's number passes ISO 13616's check: 1 modulo 97."""
    number = text.replace(" ", "").upper()
    if not 15 <= len(number) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1


def _phone(text: str) -> bool:
    """E.164: at most 15 digits; at least 7, so that no year is one."""
    return 7 <= len(re.sub(r"\D", "", text)) <= 15


KINDS: dict[str, Kind] = {
    "email": Kind(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])"),
    "card": Kind(r"(?<![\w-])[0-9](?:[ -]?[0-9]){12,18}(?![0-9])", luhn),
    "iban": Kind(r"(?<!\w)[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}(?!\w)", iban),
    "phone": Kind(
        r"(?<![\w+])(?:\+[0-9]{1,3}(?:[ .-]?\(?[0-9]{1,5}\)?){2,6}|\(?[0-9]{3}\)?[ .-][0-9]{3}[ .-][0-9]{4}"
        r"|0[0-9]{1,4}[ /-][0-9]{3,4}[ -]?[0-9]{3,5}|1[3-9][0-9]{9})(?![0-9])",
        _phone,
    ),
}
