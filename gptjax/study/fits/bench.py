"""`python -m gptjax.study.fits.bench`: CPU seconds of fits and intervals on 240 points of Besiroglu's law with 1% noise."""

import functools
import time

import numpy as np

from gptjax.study.fits import bootstrap, isoflop, kaplan, parametric
from gptjax.study.fits.laws import ParametricLaw
from gptjax.study.fits.points import Points

LAW = ParametricLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)  # Besiroglu et al. 2024


def ladder(sizes: int = 24, budgets: int = 10, sigma: float = 0.01) -> Points:
    """Ten budgets from 6e18 to 3e21 FLOPs, each with sizes from a quarter of the optimum to four times it."""
    flops = np.geomspace(6e18, 3e21, budgets).repeat(sizes)
    best = np.array([LAW.optimum(C).params for C in flops])
    params = best * np.tile(np.geomspace(0.25, 4, sizes), budgets)
    loss = LAW.loss(params, flops / 6 / params) * np.exp(sigma * np.random.default_rng(0).normal(size=len(flops)))
    run = tuple(map(str, range(len(flops))))
    return Points(params, flops / 6 / params, flops, loss, np.ones(len(flops)), run, np.zeros(len(flops), int))


def main() -> None:
    points = ladder()
    few = functools.partial(parametric.fit, starts=1)
    rows = {
        "parametric, 100 starts": lambda: parametric.fit(points),
        "parametric, the grid's 4500": lambda: parametric.fit(points, starts=4500),
        "parametric, 1 start and 1000 replicates": lambda: bootstrap.intervals(few, points, budgets=(1e24,)),
        "isoflop": lambda: isoflop.fit(points),
        "isoflop, 1000 replicates": lambda: bootstrap.intervals(isoflop.fit, points, budgets=(1e24,)),
        "kaplan": lambda: kaplan.fit(points),
        "kaplan, 1000 replicates": lambda: bootstrap.intervals(kaplan.fit, points, budgets=(1e24,)),
    }
    kaplan.fit(points)  # SciPy is imported on first use
    for name, call in rows.items():
        start, clock = time.process_time(), time.perf_counter()
        call()
        print(f"{name:42}{time.process_time() - start:9.3f} s CPU {time.perf_counter() - clock:9.3f} s")


if __name__ == "__main__":
    main()
