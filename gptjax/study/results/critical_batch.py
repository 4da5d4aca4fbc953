"""The critical batch of a study's runs: the gradient noise scale at the end of each (noise_scales.py), and a law through them.

    B(L) = scale * L^-exponent, in tokens      (Kaplan et al. 2020, equation 5.3: scale 2e8, exponent 1 / 0.21)

The noise scale belongs to a loss and a learning rate: runs are compared in the same part of their schedule, the last quarter
of their steps, as far as they logged them. Needs no JAX.
"""

import math

import numpy as np

from gptjax.study.fits.points import Row
from gptjax.study.results import noise_scales

PART = 0.25  # of a run's steps, the last ones
FEWEST = 4


def at_the_end(workdir, steps: int) -> dict | None:
    """noise_scales.NoiseScale as JSON of the last steps of a run in a directory; None of one that did not log it."""
    found = noise_scales.logged(workdir, first=math.floor((1 - PART) * steps) + 1, last=steps)
    return noise_scales.average(found).as_dict() if found else None


def of_runs(rows: list[Row], params: str) -> dict | None:
    """{"unit", "part", "points": [...], "law"}; None where no run logged it. params: convention of N."""
    points = [_point(row, params) for row in rows if row.facts.get("noise_scale")]
    if not points:
        return None
    return {"unit": "tokens", "part": PART, "points": points, "law": law([p for p in points if not p["refused"]])}


def _point(row: Row, params: str) -> dict:
    given = row.facts["noise_scale"]
    b, error = given["b_simple"], given["standard_error"]
    names = ("standard_error", "first", "last", "n_steps", "refused")
    return {
        "run": row.run,
        "params": row.params[params],
        "loss": given["loss"],  # of these steps, in training
        "batch_size": row.facts.get("batch_size"),
        "noise_scale": b,
        "interval95": None if b is None else [b - 1.96 * error, b + 1.96 * error],
        **{name: given[name] for name in names},
    }


def law(points: list[dict]) -> dict:
    """{"scale", "exponent", "standard_error" (of the exponent), "points_used", "refused"}: least squares of ln B."""
    refused = [f"{len(points)} runs have a noise scale, a law needs {FEWEST}"] if len(points) < FEWEST else []
    refused += [f"the noise scale of {p['run']} is {p['noise_scale']:.3g}" for p in points if p["noise_scale"] <= 0]
    if refused:
        return {"points_used": len(points), "refused": refused}
    x, y = (np.log([p[name] for p in points]) for name in ("loss", "noise_scale"))
    if np.ptp(x) == 0:
        return {"points_used": len(points), "refused": ["all runs have the same loss"]}
    slope, level = np.polyfit(x, y, 1)
    rest = y - level - slope * x
    error = math.sqrt(np.square(rest).sum() / (len(x) - 2) / np.square(x - x.mean()).sum())
    numbers = {"scale": math.exp(level), "exponent": -float(slope), "standard_error": error}
    return numbers | {"points_used": len(points), "refused": []}
