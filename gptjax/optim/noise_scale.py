"""The gradient noise scale: beyond which batch more text in a step stops paying (McCandlish et al. 2018, section 2).

A batch of B tokens has a gradient whose squared norm is |G|^2 + tr S / B on average: that of the whole text's, and the
noise of one token's, of covariance S. Two batch sizes give both: the microbatches of a step, and the step. With
train.log_noise_scale a step logs

    noise_signal   an unbiased estimate of |G|^2
    noise_trace    an unbiased estimate of tr S, the unit of a batch being the token (that counts in the loss)

Averages over steps, the critical batch they give, and what it means: study/noise_scales.py.

Symbols: G microbatches. Needs no JAX.
"""

SIGNAL, TRACE = "noise_signal", "noise_trace"  # in metrics.jsonl


def estimates(square_G, weight_G, square) -> dict:
    """{SIGNAL, TRACE} of a step, scalars; NaN where fewer than two microbatches have a token that counts.

    square_G: squared norms of each microbatch's gradient of its summed loss; weight_G: its tokens; square: of the sum of
    the gradients. With microbatches of equal weight these are the formulas of the paper's appendix A.1; of unequal,
    small weights count less, so that both stay unbiased. NumPy's arrays or JAX's.
    """
    parts, weight = (weight_G > 0).sum(), weight_G.sum()
    small = (square_G / (weight_G + (weight_G == 0))).sum() / weight  # mean |gradient|^2 of a microbatch's mean loss
    large = square / (weight * weight)
    return {SIGNAL: (parts * large - small) / (parts - 1), TRACE: (small - large) * weight / (parts - 1)}
