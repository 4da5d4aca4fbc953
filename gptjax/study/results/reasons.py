"""Many names with one reason, in one line: what is left out of a fit can be every point of a file."""

import dataclasses
import re

NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
OTHER = "…"  # where the reasons of a group have different numbers
NAMES = 3  # that a line shows


@dataclasses.dataclass(frozen=True)
class Group:
    reason: str
    names: list[str]

    def shown(self, of: str = "") -> str:
        """'5 (line 2, line 3, line 9, …): out of range: a loss of … is not above 0'; `of` stands before each name."""
        listed = ", ".join(of + name for name in self.names[:NAMES])
        if len(self.names) == 1:
            return f"{listed}: {self.reason}"
        return f"{len(self.names)} ({listed}{', …' if len(self.names) > NAMES else ''}): {self.reason}"


def grouped(pairs: list[tuple[str, str]]) -> list[Group]:
    """(name, reason)s by what their reasons say but for the numbers in them, in the order of the first of each."""
    alike = {}
    for name, reason in pairs:
        alike.setdefault(NUMBER.sub(OTHER, reason), []).append((name, reason))
    return [Group(_common([reason for _, reason in group]), [name for name, _ in group]) for group in alike.values()]


def _common(reasons: list[str]) -> str:
    """The reason with the numbers that all have in common."""
    places = zip(*(NUMBER.findall(reason) for reason in reasons))
    shared = [values[0] if len(set(values)) == 1 else OTHER for values in places]
    return "".join(part for pair in zip(NUMBER.split(reasons[0]), [*shared, ""]) for part in pair)
