"""Updates that are left out, decided on the device inside the step: state in, state out, no host in between.

    optim.skip = "nonfinite"   those whose loss or gradient norm is not finite
                 "outliers"    and those whose loss or gradient norm lies more than optim.skip_sigma standard deviations
                               above the mean of the last optim.skip_window updates that were made

Both numbers are known before the optimizer runs, and are the same on every device, so that all decide alike. Of an
update left out only the step count and the counters here stay: parameters, moments and averages keep their bits.

The rule is that of OLMo (OLMo 2, 2025, section 3; its SkipStepOptimizer, which levanter has too): 128 steps, 6 standard
deviations, nothing judged before half a window. Other than there, what is left out never enters the window: one huge
number in it would widen what passes next, one NaN would let nothing pass. A level that has changed for good is thus left
out again and again, until train.max_skips of them in a row end the run or turn it back (recovery.py).
"""

import typing

import jax.numpy as jnp

REASONS = ("", "the loss is not finite", "the gradient is not finite", "the loss is an outlier", "the gradient norm is an outlier")  # fmt: skip

SHOWN = ("loss", "grad_norm", "loss_z", "grad_norm_z", "skipped_updates", "skipped_in_a_row")  # of a step's numbers


class Verdict(typing.NamedTuple):
    taken: typing.Any  # bool: whether the update is made
    skips: dict  # counters and windows after the step
    numbers: dict  # what the log gets


def initial(optim) -> dict | None:
    """Counters and windows [W] before the first step; None where every update is made."""
    if optim.skip == "none":
        return None
    counts = {name: jnp.zeros((), jnp.int32) for name in ("skipped", "in_a_row")}
    if optim.skip == "nonfinite":
        return counts
    windows = {name: jnp.zeros(optim.skip_window, jnp.float32) for name in ("loss_W", "grad_norm_W")}
    return counts | windows | {"taken": jnp.zeros((), jnp.int32)}


def judge(skips: dict, loss, grad_norm, optim) -> Verdict:
    """Of the update that a step is about to make."""
    reason = jnp.where(jnp.isfinite(loss), jnp.where(jnp.isfinite(grad_norm), 0, 2), 1)
    z_scores = {}
    if optim.skip == "outliers":
        z_loss = z_score(loss, skips["loss_W"], skips["taken"])
        z_norm = z_score(grad_norm, skips["grad_norm_W"], skips["taken"])
        outlier = jnp.where(z_loss > optim.skip_sigma, 3, jnp.where(z_norm > optim.skip_sigma, 4, 0))
        reason = jnp.where(reason == 0, outlier, reason)
        z_scores = {"loss_z": z_loss, "grad_norm_z": z_norm}
    after = _count(skips, reason == 0, loss, grad_norm)
    counts = {"skip_reason": reason, "skipped_updates": after["skipped"], "skipped_in_a_row": after["in_a_row"]}
    return Verdict(reason == 0, after, counts | z_scores)


def said(reason: str, numbers: dict) -> str:
    """Of an update left out, for people: the reason and the numbers it was taken from."""
    beyond = {
        name: f" ({numbers[f'{name}_z']:+.1f} deviations)" if f"{name}_z" in numbers else ""
        for name in ("loss", "grad_norm")
    }
    return f"{reason}: loss {numbers['loss']:.4g}{beyond['loss']}, gradient norm {numbers['grad_norm']:.4g}{beyond['grad_norm']}"


def z_score(value, value_W, n_taken):
    """Standard deviations of value above the mean of the window; 0 while that is less than half full.

    Numbers that are all alike have the spread of float32's rounding, so that rounding is no outlier.
    """
    size = value_W.shape[0]
    known_W = jnp.arange(size) < n_taken
    count = jnp.maximum(jnp.minimum(n_taken, size), 1)
    mean = jnp.sum(jnp.where(known_W, value_W, 0)) / count
    spread = jnp.sqrt(jnp.sum(jnp.where(known_W, jnp.square(value_W - mean), 0)) / count)
    score = (value - mean) / jnp.maximum(jnp.maximum(spread, 1e-6 * jnp.abs(mean)), 1e-30)
    return jnp.where(n_taken >= max(2, size // 2), score, 0.0)


def _count(skips: dict, taken, loss, grad_norm) -> dict:
    left_out = 1 - taken.astype(jnp.int32)
    after = {"skipped": skips["skipped"] + left_out, "in_a_row": (skips["in_a_row"] + 1) * left_out}
    if "taken" not in skips:
        return after
    place = skips["taken"] % skips["loss_W"].shape[0]
    for name, value in {"loss_W": loss, "grad_norm_W": grad_norm}.items():
        after[name] = jnp.where(taken, skips[name].at[place].set(value), skips[name])
    return after | {"taken": skips["taken"] + 1 - left_out}
