"""How the losses on two texts go together over the same runs: a power law between what is above each one's floor.

    L_y = floor_y + scale (L_x - floor_x)^exponent      (Brandfonbrener et al. 2024, equation 3)

Both floors are irreducible losses, which few runs determine: they are fitted where there are at least eight runs, else the
law is one without floors.
"""

import dataclasses

import numpy as np

from gptjax.study.fits.points import Row

FEWEST = 4
FEWEST_WITH_FLOORS = 8


@dataclasses.dataclass(frozen=True)
class Law:
    scale: float
    exponent: float
    floor_x: float
    floor_y: float
    rms: float  # of what is left of ln L_y

    def __call__(self, x):
        return self.floor_y + self.scale * np.power(np.maximum(np.asarray(x) - self.floor_x, 1e-12), self.exponent)


def fit(x, y) -> Law:
    """The law that leaves the least squares of ln L_y."""
    from scipy.optimize import least_squares

    x, y = np.asarray(x, float), np.asarray(y, float)
    exponent, level = np.polyfit(np.log(x), np.log(y), 1)
    straight = Law(float(np.exp(level)), float(exponent), 0.0, 0.0, 0.0)
    straight = dataclasses.replace(straight, rms=_rms(straight, x, y))
    if len(x) < FEWEST_WITH_FLOORS:
        return straight

    def law(z) -> Law:
        """Floors are parts of the smallest losses, by a logistic function."""
        parts = 1 / (1 + np.exp(-z[2:]))
        return Law(float(np.exp(z[0])), float(z[1]), float(parts[0] * x.min()), float(parts[1] * y.min()), 0.0)

    def residuals(z):
        return np.log(law(z)(x)) - np.log(y)

    starts = [[level, exponent, a, b] for a in (-3.0, 0.0) for b in (-3.0, 0.0)]
    ends = [least_squares(residuals, start, xtol=1e-12, ftol=1e-12, gtol=1e-12) for start in starts]
    best = law(min(ends, key=lambda end: end.cost).x)
    best = dataclasses.replace(best, rms=_rms(best, x, y))
    return best if best.rms < straight.rms else straight


def _rms(law: Law, x, y) -> float:
    return float(np.sqrt(np.mean((np.log(law(x)) - np.log(y)) ** 2)))


def between_sources(rows: list[Row]) -> dict | None:
    """{"x", "y", "points", "curve", constants} of the first two sources of held-out text; None where there is one."""
    names = [name for name in (rows[0].facts if rows else {}) if name.startswith("loss/")][:2]
    pairs = [(row, *(row.facts[name] for name in names)) for row in rows if all(name in row.facts for name in names)]
    if len(names) < 2 or len(pairs) < FEWEST:
        return None
    x, y = ([pair[i] for pair in pairs] for i in (1, 2))
    law = fit(x, y)
    line = np.linspace(min(x), max(x), 100)
    return {
        "x": names[0].removeprefix("loss/"),
        "y": names[1].removeprefix("loss/"),
        "points": [{"run": row.run, "x": a, "y": b} for row, a, b in pairs],
        "curve": {"x": line.tolist(), "y": law(line).tolist()},
        **dataclasses.asdict(law),
    }
