"""Colours that readers with any colour vision tell apart: Okabe and Ito 2008, the yellow darkened for white paper."""

BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, YELLOW = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#b8a800",
)


def ordered(n: int) -> list[str]:
    """n colours for what has an order, from violet over green to orange, to be seen on white and on black."""
    return [f"hsl({270 - 240 * i / max(n - 1, 1):.0f} 65% 48%)" for i in range(n)]
