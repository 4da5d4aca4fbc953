"""Published laws, and points made from them: clouds as Chinchilla's, ladders of isoFLOP budgets, noise of a known size."""

import numpy as np

from gptjax.study.fits.laws import ParametricLaw
from gptjax.study.fits.points import Points

PRINTED = ParametricLaw(1.69, 406.4, 410.7, 0.34, 0.28)  # Hoffmann et al. 2022, equation 10
HOFFMANN = ParametricLaw(1.69337, 406.401, 410.723, 0.33917084, 0.2849083)  # the same, from the paper's TeX source
BESIROGLU = ParametricLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # Besiroglu et al. 2024
SYMMETRIC = ParametricLaw(1.7, 400.0, 400.0, 0.31, 0.31)
SMALL = ParametricLaw(1.2, 30.0, 90.0, 0.35, 0.3)  # of models of 10k to 3M parameters


def points(law, params, tokens, sigma=0.0, rng=None, run=None) -> Points:
    """loss = law * exp(sigma * noise), C = 6ND; a run each unless said otherwise."""
    noise = sigma * rng.normal(size=len(params)) if sigma else 0.0
    run = tuple(f"r{i}" for i in range(len(params))) if run is None else run
    loss = law.loss(params, tokens) * np.exp(noise)
    return Points(params, tokens, 6 * params * tokens, loss, np.ones(len(params)), run, np.zeros(len(params), int))


def chinchilla(law, sigma=0.0, seed=0, size=240) -> Points:
    """6e18 to 3e21 FLOPs and 40M to 16B parameters, around 20 tokens per parameter, as Hoffmann et al. 2022, figure 2."""
    rng = np.random.default_rng(seed)
    product = np.exp(rng.uniform(np.log(6e18), np.log(3e21), size)) / 6
    params = np.clip(np.sqrt(product / 20) * np.exp(rng.normal(size=size)), 4e7, 1.6e10)
    return points(law, params, product / params, sigma, rng)


def ladder(law, budgets, sizes=9, width=4.0, off=1.0, seeds=1, sigma=0.0, seed=0) -> Points:
    """Per budget `sizes` log-spaced from 1/width to width times `off` times the optimum, each `seeds` times."""
    params = [law.optimum(C).params * off * np.geomspace(1 / width, width, sizes).repeat(seeds) for C in budgets]
    flops = np.repeat(budgets, sizes * seeds)
    params = np.concatenate(params)
    return points(law, params, flops / 6 / params, sigma, np.random.default_rng(seed))


def grid(law, params, tokens, sigma=0.0, seed=0) -> Points:
    """Every size with every number of tokens."""
    N, D = (np.ravel(x) for x in np.meshgrid(params, tokens, indexing="ij"))
    return points(law, N, D, sigma, np.random.default_rng(seed))
