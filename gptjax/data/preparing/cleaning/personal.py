"""Personal data out of the text: pii replaces what can be told by its form. Names and addresses cannot, and stay."""

import dataclasses
import ipaddress
import re

from gptjax.data.preparing.cleaning.outcome import Outcome, kept
from gptjax.errors import UserError, did_you_mean

_EMAIL = re.compile(r"(?<![\w.+%@-])[\w+%-]+(?:\.[\w+%-]+)*@(?:[^\W_](?:[\w-]*[^\W_])?\.)+[^\W\d_]{2,24}(?![\w@-])")
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[23][0-9a-f]{3}:[0-9a-f:]*[0-9a-f:](?![\w:]|\.\d)", re.IGNORECASE)
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
# All digits together, or in the groups printed on cards (4-4-4-4, 4-4-4-4-3, 4-6-5, 4-6-4), one kind of separator.
_CARD = re.compile(
    r"(?<![\w.+-])(?:[2-6]\d{12,18}|[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|3\d{3}([ -])\d{6}\2\d{4,5})(?!\w|[.-]\d)"
)
# +49 30 1234567, +1-202-555-0143, (202) 555-0143, 202-555-0143, 202.555.0143
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+[1-9]\d{0,2}(?:[ .-]?\(?\d{1,5}\)?){2,6}|(?:\([2-9]\d\d\) ?|[2-9]\d\d[-.])[2-9]\d\d[-.]\d{4})(?!\w|[.-]\d)"
)
_ZERO_A = ord("A") - 10


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _is_card(digits: str) -> bool:
    """The check digit of ISO/IEC 7812 (Luhn), of 13 to 19 digits that are not all the same."""
    number = [int(c) for c in digits if c.isdigit()]
    doubled = [sum(divmod(2 * d, 10)) for d in number[-2::-2]]
    return len(set(number)) > 1 and (sum(number[-1::-2]) + sum(doubled)) % 10 == 0


def _is_iban(text: str) -> bool:
    """ISO 13616: the first four characters moved behind, letters as 10 to 35, 1 modulo 97; 15 to 34 characters."""
    compact = text.replace(" ", "")
    moved = compact[4:] + compact[:4]
    digits = "".join(c if c.isdigit() else str(ord(c) - _ZERO_A) for c in moved)
    return 15 <= len(compact) <= 34 and int(digits) % 97 == 1


def _is_phone(text: str) -> bool:
    """8 to 15 digits (ITU-T E.164 allows no more)."""
    return 8 <= sum(map(str.isdigit, text)) <= 15


def _always(text: str) -> bool:
    return True


# Name: what a text must hold to be searched, the pattern, the check, the placeholder. In the order of searching.
KINDS = {
    "email": ("@", _EMAIL, _always, "[EMAIL]"),
    "ipv6": (":", _IPV6, _is_public, "[IP]"),
    "ipv4": (".", _IPV4, _is_public, "[IP]"),
    "iban": ("", _IBAN, _is_iban, "[IBAN]"),
    "card": ("", _CARD, _is_card, "[CARD]"),
    "phone": ("", _PHONE, _is_phone, "[PHONE]"),
}


@dataclasses.dataclass(frozen=True)
class Pii:
    """Replaced: e-mail addresses by [EMAIL], public IPv4 and IPv6 addresses by [IP] (private, loopback and example
    ranges stay), IBANs with a right check number by [IBAN], card numbers of 13 to 19 digits with a right check digit
    by [CARD] (together or in the groups printed on cards), telephone numbers (international with +, or North American with area code) by [PHONE].

    kinds narrows them: `pii=email+phone`. Four numbers of a version, as 8.8.8.8, look like an address and go too;
    national telephone numbers other than North American stay.
    """

    kinds: str = "+".join(KINDS)

    def ready(self) -> None:
        for kind in self.kinds.split("+"):
            if kind not in KINDS:
                raise UserError(f"pii={kind!r} is not known{did_you_mean(kind, KINDS)}; expected: {', '.join(KINDS)}.")

    def __call__(self, text: str) -> Outcome:
        counts: dict[str, int] = {}
        while True:  # what stood against another number is seen once that is gone
            before, text = text, self._pass(text, counts)
            if before == text:
                return kept(text, **counts)

    def _pass(self, text: str, counts: dict[str, int]) -> str:
        wanted = self.kinds.split("+")
        for kind, (sign, pattern, check, placeholder) in KINDS.items():
            if kind in wanted and sign in text:
                text, count = _replaced(text, pattern, check, placeholder)
                if count:
                    counts[kind] = counts.get(kind, 0) + count
        return text


def _replaced(text: str, pattern: re.Pattern, check, placeholder: str) -> tuple[str, int]:
    count = 0

    def put(match: re.Match) -> str:
        nonlocal count
        if not check(match.group()):
            return match.group()
        count += 1
        return placeholder

    return pattern.sub(put, text), count
